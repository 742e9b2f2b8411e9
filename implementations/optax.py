"""optax: the cross entropy of integer labels with where=, on JAX. The mean is divided by the adapter."""

from xentcheck.implementation import Adapter


def call(logits, labels, upstream, *, ignore_index=-100):
    import jax
    import jax.numpy as jnp
    import numpy as np
    from optax.losses import softmax_cross_entropy_with_integer_labels as library

    loss, pull = jax.vjp(lambda given: library(given, labels, where=labels != ignore_index), jnp.asarray(logits))
    return np.asarray(loss), pull(jnp.asarray(upstream))[0]


implementation = Adapter(
    name="optax",
    call=call,
    layout="classes-last",
    reductions={"none"},
    adapter_does={"divide"},
    gradient="returned",
    refuses="nothing",
    requires=["optax==0.2.8", "jax[cpu]==0.10.2"],
    shares_torch=False,
    env={"JAX_ENABLE_X64": "1", "JAX_DISABLE_JIT": "1"},
)
