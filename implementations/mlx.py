"""MLX: mlx.nn.losses.cross_entropy, on the CPU. The adapter masks and divides."""

from xentcheck.implementation import Adapter


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
)
