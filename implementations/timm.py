"""LabelSmoothingCrossEntropy of timm. It ignores no targets."""

from _hollow import hollow
from xentcheck.implementation import Adapter, Deviation


def smoothed(logits, labels, *, label_smoothing=0.0):
    hollow("timm", "timm.loss")
    from timm.loss.cross_entropy import LabelSmoothingCrossEntropy

    return LabelSmoothingCrossEntropy(label_smoothing)(logits, labels)


implementation = Adapter(
    name="timm",
    call=smoothed,
    ignores="none",
    reductions={"mean"},
    offers={"label_smoothing"},
    requires=["timm==1.0.31"],
    no_deps=True,
    deviations=(
        Deviation(
            (
                "minus-infinity/all-other-classes",
                "minus-infinity/at-the-target",
                "minus-infinity/column",
                "minus-infinity/one-other-class",
            ),
            aspect="loss",
            fault="nan",
            observed="NaN where any class is at -inf, without smoothing too",
            reason="LabelSmoothingCrossEntropy.forward multiplies the mean of all log-probabilities, -inf here, by a smoothing of 0.",
        ),
        Deviation(
            ("bad-input/shape[one]", "bad-input/smoothing[below-0]"),
            aspect="rejection",
            fault="accepted",
            observed="one label for all rows, or a smoothing below 0, gives a number",
            reason="gather takes an index that is shorter than its input, and only smoothing < 1 is asserted.",
        ),
        *(
            Deviation(
                "label-smoothing/amount[1.0]",
                aspect=aspect,
                fault="raised",
                observed="an AssertionError for a smoothing of 1",
                reason="LabelSmoothingCrossEntropy.__init__ asserts that smoothing is below 1.",
            )
            for aspect in ("loss", "gradient", "shape")
        ),
    ),
)
