"""Liger Kernel: its cross entropy and its fused linear cross entropy. On the CPU in Triton's interpreter, which has faults of its own."""

from xentcheck.implementation import Adapter, Deviation

INSTALLED = {
    "requires": ["liger-kernel==0.8.5", "triton==3.9.0"],
    "no_deps": True,
    "env": {"TRITON_INTERPRET": "1"},
    "empty_mean": "zero",
    # The interpreter calculates with the bits of bfloat16: https://github.com/triton-lang/triton/issues/10919
    # A kernel that widens them first would be right, but not all do.
    "lacks": {"bfloat16"},
}
OVERWRITTEN = Deviation(
    "*",
    aspect="purity",
    fault="changed",
    observed="the logits of the caller are overwritten, by their gradient",
    reason="The kernel stores the gradient in the place of the logits, to save memory; logits that it has to copy first stay as they are.",
    link="https://github.com/linkedin/Liger-Kernel/issues/272",
    certain=False,
)


def cross_entropy(logits, labels, **options):
    from liger_kernel.transformers import LigerCrossEntropyLoss

    return LigerCrossEntropyLoss(**options)(logits, labels)


def fused_linear(hidden, linear_weight, labels, *, linear_bias=None, **options):
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss(**options)(linear_weight, hidden, labels, bias=linear_bias)


UNCHECKED = Deviation(
    ("bad-input/target[class-count]", "bad-input/target[too-large]"),
    aspect="rejection",
    fault="accepted",
    observed="a target beyond the last class gives a loss, from memory behind the row",
    reason="The fused loss does not look at the range of its targets, as Liger's own cross entropy does, and the kernel reads at the target.",
    link="https://github.com/linkedin/Liger-Kernel/blob/v0.8.5/src/liger_kernel/ops/fused_linear_cross_entropy.py",
    certain=False,
)

implementations = (
    Adapter(
        name="liger_cross_entropy",
        slow=True,
        computes_in="float32",
        call=cross_entropy,
        offers={"label_smoothing", "weight"},
        half_loss_dtype="input",
        deviations=(OVERWRITTEN,),
        **INSTALLED,
    ),
    Adapter(
        name="liger_fused_linear",
        slow=True,
        computes_in="float32",
        call=fused_linear,
        linear=True,
        keywords={"weight": "ce_weight"},
        offers={"label_smoothing", "linear_bias"},
        half_loss_dtype="float32",
        deviations=(UNCHECKED,),
        **INSTALLED,
    ),
)
