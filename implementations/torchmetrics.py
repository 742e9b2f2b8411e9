"""The logarithm of the perplexity of TorchMetrics. Forward only."""

from xentcheck.implementation import Adapter, Deviation


def logarithm(logits, labels, *, ignore_index=-100):
    from torchmetrics.functional.text import perplexity

    return perplexity(logits, labels, ignore_index=ignore_index).log()


implementation = Adapter(
    name="torchmetrics",
    call=logarithm,
    layout="sequence",
    reductions={"mean"},
    gradient="none",
    by_hand={"takes the logarithm"},
    requires=["torchmetrics==1.9.0", "lightning-utilities==0.15.3", "packaging==26.0"],
    no_deps=True,
    deviations=(
        Deviation(
            ("bad-input/compiled-target[minus-1]", "bad-input/target[minus-1-under-minus-100]"),
            aspect="rejection",
            fault="accepted",
            observed="a label of -1 that is not ignored counts as the last class",
            reason="_perplexity_update indexes the probabilities with the labels, and an index of -1 is the last one.",
        ),
    ),
)
