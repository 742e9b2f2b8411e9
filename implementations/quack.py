"""QuACK: its cross entropy in CuTe DSL, for CUDA only."""

from xentcheck.implementation import Adapter


def cross_entropy(logits, labels, **options):
    from quack.cross_entropy import cross_entropy

    return cross_entropy(logits, labels, **options)


implementation = Adapter(
    name="quack",
    call=cross_entropy,
    requires=["quack-kernels==0.6.5"],
    no_deps=True,
    device="cuda",
)
