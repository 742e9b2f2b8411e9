"""flash-linear-attention: its fused linear cross entropy in Triton's interpreter, and its cross entropy, for CUDA only."""

from xentcheck.implementation import Adapter

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


implementations = (
    Adapter(
        name="flash_linear_attention_fused_linear",
        call=fused_linear,
        linear=True,
        reductions={"mean", "sum"},
        offers={"label_smoothing", "linear_bias"},
        env={"TRITON_INTERPRET": "1"},
        **INSTALLED,
    ),
    Adapter(
        name="flash_linear_attention_cross_entropy",
        call=cross_entropy,
        offers={"label_smoothing"},
        device="cuda",
        **INSTALLED,
    ),
)
