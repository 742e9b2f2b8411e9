"""Keras 3: SparseCategoricalCrossentropy on the backends torch and JAX."""

from xentcheck.implementation import Adapter

REDUCTIONS = {"mean": "sum_over_batch_size", "sum": "sum", "none": None}
DECLARED = {
    "layout": "classes-last",
    "keywords": {"ignore_index": "ignore_class"},
}


def of_keras(ignore_class=-100, reduction="mean"):
    from keras.losses import SparseCategoricalCrossentropy

    return SparseCategoricalCrossentropy(from_logits=True, ignore_class=ignore_class, reduction=REDUCTIONS[reduction])


def on_torch(logits, labels, **options):
    return of_keras(**options)(labels, logits)


def on_jax(logits, labels, upstream, **options):
    import jax
    import jax.numpy as jnp

    loss, pull = jax.vjp(lambda given: of_keras(**options)(labels, given), jnp.asarray(logits))
    return loss, pull(jnp.asarray(upstream).astype(loss.dtype))[0]


implementations = (
    Adapter(
        name="keras_torch",
        call=on_torch,
        requires=["keras==3.15.1"],
        environment="keras_torch",
        built_on="torch",
        env={"KERAS_BACKEND": "torch"},
        **DECLARED,
    ),
    Adapter(
        name="keras_jax",
        call=on_jax,
        gradient="returned",
        requires=["keras==3.15.1", "jax[cpu]==0.10.2"],
        environment="keras_jax",
        shares_torch=False,
        env={"KERAS_BACKEND": "jax", "JAX_ENABLE_X64": "1", "JAX_DISABLE_JIT": "1"},
        **DECLARED,
    ),
)
