"""The logarithm of the perplexity of TorchEval. Forward only."""

from xentcheck.implementation import Adapter


def logarithm(logits, labels, *, ignore_index=-100):
    from torcheval.metrics.functional.text import perplexity

    return perplexity(logits, labels, ignore_index=ignore_index).log().to(logits.dtype)  # it is float64 for all


implementation = Adapter(
    name="torcheval",
    slow=True,
    call=logarithm,
    layout="sequence",
    reductions={"mean"},
    gradient="none",
    by_hand={"takes the logarithm, in the dtype of the logits"},
    requires=["torcheval==0.0.7"],
    no_deps=True,
)
