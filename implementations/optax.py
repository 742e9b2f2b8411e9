"""optax: the cross entropy of integer labels with where=, on JAX. The mean is divided by the adapter."""

from functools import cache

from xentcheck.implementation import Adapter


@cache
def compiled(ignore_index):
    """The losses and their gradient, compiled once for each shape: JAX compiles each operation on its own otherwise."""
    import jax
    from optax.losses import softmax_cross_entropy_with_integer_labels as library

    @jax.jit
    def run(logits, labels, upstream):
        losses, pull = jax.vjp(lambda given: library(given, labels, where=labels != ignore_index), logits)
        return losses, pull(upstream)[0]

    return run


def call(logits, labels, upstream, *, ignore_index=-100):
    import numpy as np

    return tuple(map(np.asarray, compiled(ignore_index)(logits, labels, upstream)))


implementation = Adapter(
    name="optax",
    slow=True,
    call=call,
    layout="classes-last",
    reductions={"none"},
    adapter_does={"divide"},
    gradient="returned",
    offers={"normalizer"},
    refuses="nothing",
    requires=["optax==0.2.8", "jax[cpu]==0.10.2"],
    shares_torch=False,
    env={"JAX_ENABLE_X64": "1"},
)
