"""The logarithm of the perplexity of TorchMetrics. Forward only."""

from xentcheck.implementation import Adapter


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
)
