"""Keras 3: SparseCategoricalCrossentropy on the backends torch and JAX."""

from functools import cache

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


@cache
def compiled(**options):
    """The loss and its gradient, compiled once for each shape: JAX compiles each operation on its own otherwise."""
    import jax

    @jax.jit
    def run(logits, labels, upstream):
        loss, pull = jax.vjp(lambda given: of_keras(**options)(labels, given), logits)
        return loss, pull(upstream.astype(loss.dtype))[0]

    return run


def on_jax(logits, labels, upstream, **options):
    return compiled(**options)(logits, labels, upstream)


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
        env={"KERAS_BACKEND": "jax", "JAX_ENABLE_X64": "1"},
        **DECLARED,
    ),
)
