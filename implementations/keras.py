"""Keras 3: SparseCategoricalCrossentropy on the backends torch and JAX."""

from functools import cache

from xentcheck.implementation import Adapter, Deviation

SOURCE = "https://github.com/keras-team/keras/blob/v3.15.1/keras/src/"
TAKEN = Deviation(
    (
        "bad-input/shape[column]",
        "bad-input/shape[row]",
        "bad-input/shape-of-tokens[additional-axis]",
        "bad-input/target-dtype[*]",
        "bad-input/float-target-of-tokens",
        "bad-input/integer-logits",
    ),
    aspect="rejection",
    fault="accepted",
    observed="labels with one more axis or of a floating dtype, and integer logits, are taken",
    reason="everything is cast to floatx, and an axis of length 1 is squeezed",
    link=SOURCE + "losses/loss.py#L61",
)
HIDDEN_MINUS_100 = Deviation(
    "bad-input/target[minus-100-under-minus-1]",
    aspect="rejection",
    fault="accepted",
    observed="a label of -100 gives a loss of 0 and is counted in the mean, whatever ignore_class is",
    reason="torch's loss is called without ignore_index, and ignores -100 by default",
    link=SOURCE + "backend/torch/nn.py#L912",
)
EMPTY = {
    "observed": "the mean and the sum of no position are an empty array",
    "reason": "reduce_values returns losses of shape (0,) unreduced",
    "link": SOURCE + "losses/loss.py#L145",
}
EMPTY_CASES = ("empty-batch/classification[mean]", "empty-batch/classification[sum]", "empty-batch/ignore-value")
EMPTY_DEVIATIONS = (
    *(Deviation(EMPTY_CASES, aspect=aspect, fault="shape", **EMPTY) for aspect in ("loss", "shape")),
    Deviation(EMPTY_CASES, aspect="gradient", fault="raised", **EMPTY),
)

REDUCTIONS = {"mean": "sum_over_batch_size", "sum": "sum", "none": None}
DECLARED = {
    "layout": "classes-last",
    "keywords": {"ignore_index": "ignore_class"},
    "computes_in": "float32",
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
    import numpy as np

    return tuple(map(np.asarray, compiled(**options)(logits, labels, upstream)))


implementations = (
    Adapter(
        name="keras_torch",
        call=on_torch,
        requires=["keras==3.15.1"],
        environment="keras_torch",
        built_on="torch",
        deviations=(TAKEN, HIDDEN_MINUS_100, *EMPTY_DEVIATIONS),
        env={"KERAS_BACKEND": "torch"},
        **DECLARED,
    ),
    Adapter(
        name="keras_jax",
        slow=True,
        call=on_jax,
        gradient="returned",
        refuses="nothing",
        deviations=tuple(
            Deviation(EMPTY_CASES, aspect=aspect, fault="raised", **EMPTY) for aspect in ("loss", "gradient", "shape")
        ),
        requires=["keras==3.15.1", "jax[cpu]==0.10.2"],
        environment="keras_jax",
        shares_torch=False,
        env={"KERAS_BACKEND": "jax", "JAX_ENABLE_X64": "1"},
        **DECLARED,
    ),
)
