"""maskedce with ``inplace=True``: the gradient takes no memory, because it overwrites the logits, as a fused kernel's does."""

from _maskedce import CONVENTIONS, UNAVAILABLE, VERSION, masked_cross_entropy
from xentcheck.implementation import LOGITS_CAPABILITIES, Deviation, Implementation


def cross_entropy(input, target, **options):
    """A batch of the suite is a leaf, which the loss refuses to overwrite; a view of it is not."""
    return masked_cross_entropy(input.view_as(input), target, inplace=True, **options)


implementation = Implementation(
    name="maskedce_inplace",
    cross_entropy=cross_entropy,
    # The logits are gone when a second derivative, or a second backward pass with losses of positions, asks for them.
    capabilities=LOGITS_CAPABILITIES - {"double_backward"},
    **CONVENTIONS,
    deviations=(
        Deviation(
            "*",
            aspect="purity",
            fault="changed",
            observed="logits that hold the gradient afterwards",
            reason="That is what it is for. Autograd raises an error where another operation's backward pass needs the logits.",
            link="https://github.com/linkedin/Liger-Kernel/issues/272",
            certain=False,  # where no gradient is wanted, nothing is overwritten
        ),
        Deviation(
            ("class-probabilities/modes[two_losses]", "modes/two-losses", "modes/two-losses-of-tokens"),
            aspect="loss",
            fault="value",
            observed="a second loss of the same logits that is taken from what the first one left of them",
            reason="Nothing can tell the call that its logits were overwritten; the backward pass raises, so no gradient is wrong.",
            link="https://github.com/linkedin/Liger-Kernel/issues/272",
            certain=False,  # losses of positions keep the logits until the backward pass
        ),
        Deviation(
            (
                "class-probabilities/modes[two_losses]",
                "micro-batches",
                "modes/two-losses",
                "modes/two-losses-of-tokens",
                "normalizer/micro-batches",
                "normalizer/micro-batches-smoothed",
                "normalizer/micro-batches-with-one-that-is-all-ignored",
            ),
            aspect="gradient",
            fault="raised",
            observed="an error in the backward pass where two losses were taken of the same tensor, or of parts of it",
            reason="Autograd counts the edits of a tensor and of its parts together, and cannot tell one part from another.",
            link="https://docs.pytorch.org/docs/stable/notes/autograd.html",
        ),
    ),
    version=VERSION,
    unavailable=UNAVAILABLE,
)
