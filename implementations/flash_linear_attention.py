"""flash-linear-attention: its fused linear cross entropy in Triton's interpreter, and its cross entropy, for CUDA only."""

from xentcheck.implementation import Adapter, Deviation

INSTALLED = {
    "requires": ["flash-linear-attention==0.6.0", "fla-core==0.6.0", "einops==0.8.1", "triton==3.9.0"],
    "no_deps": True,
}


def fused_linear(hidden, linear_weight, labels, *, linear_bias=None, **options):
    from fla.modules.fused_linear_cross_entropy import FusedLinearCrossEntropyLoss

    return FusedLinearCrossEntropyLoss(**options)(hidden, labels, linear_weight, linear_bias)


def cross_entropy(logits, labels, **options):
    from fla.modules.fused_cross_entropy import FusedCrossEntropyLoss

    return FusedCrossEntropyLoss(**options)(logits, labels)


UNCHECKED = Deviation(
    (
        "bad-input/target[*]",
        "bad-input/target-of-a-sum",
        "bad-input/target-beside-ignored",
        "bad-input/target-of-unbatched",
        "bad-input/target-with-smoothing[class-count]",
        "bad-input/target-with-smoothing[minus-1]",
        "bad-input/target-dtype[float*]",
    ),
    aspect="rejection",
    fault="accepted",
    observed="targets that are no class, or no integers, give a loss: for no class, the logarithm of the sum alone",
    reason="The kernel compares targets with the range of its classes, and one outside counts as another rank's.",
    link="https://github.com/fla-org/flash-linear-attention/blob/v0.6.0/fla/modules/fused_cross_entropy/ops.py",
)

implementations = (
    Adapter(
        name="flash_linear_attention_fused_linear",
        slow=True,
        computes_in="float32",
        call=fused_linear,
        linear=True,
        reductions={"mean", "sum"},
        offers={"label_smoothing", "linear_bias"},
        env={"TRITON_INTERPRET": "1"},
        empty_mean="zero",
        half_loss_dtype="float32",
        deviations=(UNCHECKED,),
        **INSTALLED,
    ),
    Adapter(
        name="flash_linear_attention_cross_entropy",
        computes_in="float32",
        call=cross_entropy,
        offers={"label_smoothing"},
        device="cuda",
        **INSTALLED,
    ),
)
