"""PaddlePaddle: paddle.nn.functional.cross_entropy, on the CPU."""

from xentcheck.implementation import Adapter


def call(logits, labels, upstream, *, weight=None, **options):
    import paddle
    from paddle.nn.functional import cross_entropy

    if labels.ndim == logits.ndim and labels.dtype.kind == "f":
        options["soft_label"] = True
    if weight is not None:
        options["weight"] = paddle.to_tensor(weight)
    given = paddle.to_tensor(logits, stop_gradient=False)
    loss = cross_entropy(given, paddle.to_tensor(labels), **options)
    loss.backward(paddle.to_tensor(upstream).reshape(loss.shape))
    return loss.numpy(), given.grad.numpy()


implementation = Adapter(
    name="paddle",
    call=call,
    layout="classes-last",
    gradient="returned",
    offers={"weight", "label_smoothing", "class_probabilities"},
    lacks={"bfloat16", "float16"},
    requires=["paddlepaddle==3.3.1", "setuptools==80.9.0"],
    shares_torch=False,
)
