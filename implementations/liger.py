"""Liger Kernel: its cross entropy and its fused linear cross entropy. On the CPU in Triton's interpreter, which has faults of its own."""

from xentcheck.implementation import Adapter

INSTALLED = {
    "requires": ["liger-kernel==0.8.5", "triton==3.9.0"],
    "no_deps": True,
    "env": {"TRITON_INTERPRET": "1"},
}


def cross_entropy(logits, labels, **options):
    from liger_kernel.transformers import LigerCrossEntropyLoss

    return LigerCrossEntropyLoss(**options)(logits, labels)


def fused_linear(hidden, linear_weight, labels, *, linear_bias=None, **options):
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss(**options)(linear_weight, hidden, labels, bias=linear_bias)


implementations = (
    Adapter(
        name="liger_cross_entropy",
        call=cross_entropy,
        offers={"label_smoothing", "weight"},
        **INSTALLED,
    ),
    Adapter(
        name="liger_fused_linear",
        call=fused_linear,
        linear=True,
        keywords={"weight": "ce_weight"},
        offers={"label_smoothing", "linear_bias"},
        **INSTALLED,
    ),
)
