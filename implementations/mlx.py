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
DEVIATIONS = (
    Deviation(
        "*",
        aspect="poisoning",
        fault="nan",
        observed="an infinity or NaN in a row that is masked afterwards makes its gradient NaN",
        reason="there is no ignoring: the row is computed all the same, and 0 * NaN stays NaN",
        link=SOURCE,
        certain=False,
    ),
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
