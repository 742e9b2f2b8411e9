"""tinygrad: Tensor.sparse_categorical_crossentropy, in its interpreter written in Python."""

from xentcheck.implementation import Adapter


def call(logits, labels, upstream, **options):
    from tinygrad import Tensor

    given = Tensor(logits)
    loss = given.sparse_categorical_crossentropy(Tensor(labels), **options)
    return loss.numpy(), loss.gradient(given, gradient=Tensor(upstream))[0].numpy()


implementation = Adapter(
    name="tinygrad",
    call=call,
    layout="flat",
    gradient="returned",
    offers={"label_smoothing"},
    lacks={"bfloat16"},
    requires=["tinygrad==0.14.0"],
    shares_torch=False,
    env={"DEV": "PYTHON"},
)
