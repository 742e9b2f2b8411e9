"""verl: its fused linear log-probabilities, for CUDA only, which know no ignored labels."""

from xentcheck.implementation import Adapter


def fused_linear(hidden, linear_weight, labels):
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

    log_probabilities, _ = linear_cross_entropy(hidden, linear_weight, labels, 1.0, "none")
    return -log_probabilities


implementation = Adapter(
    name="verl",
    call=fused_linear,
    linear=True,
    ignores="by-adapter",
    reductions={"none"},
    adapter_does={"mask", "divide"},
    requires=["verl==0.9.1"],
    no_deps=True,
    device="cuda",
)
