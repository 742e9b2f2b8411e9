"""LabelSmoothingCrossEntropy of timm. It ignores no targets."""

from _hollow import hollow
from xentcheck.implementation import Adapter


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
)
