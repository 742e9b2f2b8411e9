"""Apple's cut cross entropy: its kernels, for CUDA only, and what it offers elsewhere, meant for torch.compile and run without it here."""

from xentcheck.implementation import Adapter, Deviation

INSTALLED = {
    "requires": ["cut-cross-entropy==25.1.1", "triton==3.9.0"],
    "no_deps": True,
    "env": {"TORCHDYNAMO_DISABLE": "1"},  # or it compiles each case
}


def torch_compile(hidden, linear_weight, labels, **options):
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(hidden, linear_weight, labels, impl="torch_compile", **options)


def cce(hidden, linear_weight, labels, **options):
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(hidden, linear_weight, labels, impl="cce", **options)


INTEGERS = Deviation(
    "bad-input/integer-logits",
    aspect="rejection",
    fault="accepted",
    observed="hidden states and a matrix of integers give a loss without a gradient",
    reason="Their product becomes float32 before anything looks at its dtype.",
    link="https://github.com/apple/ml-cross-entropy/blob/main/cut_cross_entropy/torch_compile.py",
)
implementations = (
    Adapter(
        name="cut_cross_entropy_torch_compile",
        computes_in="float32",
        call=torch_compile,
        linear=True,
        empty_mean="nan",
        half_loss_dtype="float32",
        built_on="torch",
        deviations=(INTEGERS,),
        **INSTALLED,
    ),
    Adapter(name="cut_cross_entropy_cce", call=cce, linear=True, device="cuda", **INSTALLED),
)
