"""MLX: mlx.nn.losses.cross_entropy, on the CPU. The adapter masks and divides."""

from xentcheck.implementation import Adapter, Deviation

SOURCE = "https://github.com/ml-explore/mlx/blob/v0.32.4/python/mlx/nn/losses.py"
SMOOTHING_1 = {
    "fault": "raised",
    "observed": "label_smoothing=1 is refused",
    "reason": "it takes amounts from 0 to below 1",
    "link": SOURCE,
}
EMPTY = {
    "fault": "raised",
    "observed": "a batch of no position is refused",
    "reason": "logsumexp refuses empty arrays",
    "link": SOURCE,
}
NONFINITE = {
    "fault": "nan",
    "observed": "an infinity or NaN in a row that is masked afterwards makes its gradient NaN",
    "reason": "there is no ignoring: the row is computed all the same, and 0 * NaN stays NaN",
    "link": SOURCE,
}
NONFINITE_GRADIENTS = (
    "infinite-or-nan-valid-row/nan-beside-ignored-nan",
    "ignored-nonfinite/all-ignored[minus-inf]",
    "ignored-nonfinite/all-ignored[nan]",
    "ignored-nonfinite/all-ignored[plus-inf]",
    "ignored-nonfinite/dtype[bfloat16]",
    "ignored-nonfinite/dtype[float16]",
    "ignored-nonfinite/dtype[float64]",
    "ignored-nonfinite/ignored-class",
    "ignored-nonfinite/mixed[mean]",
    "ignored-nonfinite/mixed[none]",
    "ignored-nonfinite/one-class-of-a-row[nan]",
    "ignored-nonfinite/one-class-of-a-row[plus-inf]",
    "ignored-nonfinite/seed-002-row-of-minus-inf",
    "ignored-nonfinite/seed-002-vocabulary-mask",
    "ignored-nonfinite/segmentation",
    "ignored-nonfinite/several-ignore-values",
    "ignored-nonfinite/smoothing[minus-inf]",
    "ignored-nonfinite/smoothing[nan]",
    "ignored-nonfinite/smoothing[plus-inf]",
    "ignored-nonfinite/tokens[minus-inf]",
    "ignored-nonfinite/tokens[nan]",
    "ignored-nonfinite/tokens[plus-inf]",
    "ignored-nonfinite/upstream-is-not-one",
    "ignored-nonfinite/whole-rows[minus-inf-mean]",
    "ignored-nonfinite/whole-rows[minus-inf-none]",
    "ignored-nonfinite/whole-rows[minus-inf-sum]",
    "ignored-nonfinite/whole-rows[nan-mean]",
    "ignored-nonfinite/whole-rows[nan-none]",
    "ignored-nonfinite/whole-rows[nan-sum]",
    "ignored-nonfinite/whole-rows[plus-inf-mean]",
    "ignored-nonfinite/whole-rows[plus-inf-none]",
    "ignored-nonfinite/whole-rows[plus-inf-sum]",
)
DEVIATIONS = (
    Deviation("*", aspect="poisoning", certain=False, **NONFINITE),
    Deviation(NONFINITE_GRADIENTS, aspect="gradient", **NONFINITE),
    *(
        Deviation(
            ("label-smoothing/amount*[1.0]", "label-smoothing/target-at-minus-inf[1.0]"), aspect=aspect, **SMOOTHING_1
        )
        for aspect in ("loss", "gradient", "shape")
    ),
    *(Deviation("empty-batch/*", aspect=aspect, **EMPTY) for aspect in ("loss", "gradient", "shape")),
)


def call(logits, labels, upstream, **options):
    import mlx.core as mx
    import numpy as np
    from mlx.nn.losses import cross_entropy

    def library(given):
        return cross_entropy(given, mx.array(labels), **options)

    def array(values):
        return mx.array(values, dtype=getattr(mx, values.dtype.name))

    losses, gradients = mx.vjp(library, [array(logits)], [array(upstream)])
    # NumPy reads no bfloat16 of MLX, which returns it.
    return tuple(
        np.array(one.astype(mx.float64)).astype(str(one.dtype).rpartition(".")[2]) for one in (losses[0], gradients[0])
    )


implementation = Adapter(
    name="mlx",
    computes_in="float32",
    call=call,
    layout="classes-last",
    ignores="by-adapter",
    reductions={"none"},
    adapter_does={"mask", "divide"},
    gradient="returned",
    offers={"label_smoothing", "normalizer", "ignore_index_list"},
    refuses="nothing",
    requires=["mlx[cpu]==0.32.4"],
    shares_torch=False,
    deviations=DEVIATIONS,
)
