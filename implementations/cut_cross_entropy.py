"""Apple's cut cross entropy: its kernels, for CUDA only, and what it offers elsewhere, meant for torch.compile and run without it here."""

from xentcheck.implementation import Adapter

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


implementations = (
    Adapter(name="cut_cross_entropy_torch_compile", call=torch_compile, linear=True, built_on="torch", **INSTALLED),
    Adapter(name="cut_cross_entropy_cce", call=cce, linear=True, device="cuda", **INSTALLED),
)
