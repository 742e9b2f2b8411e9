"""tinygrad: Tensor.sparse_categorical_crossentropy, in its interpreter written in Python."""

from xentcheck.implementation import Adapter, Deviation

MINUS_1 = {
    "fault": "value",
    "observed": "under ignore_index=-1, which is its default, ignored positions are counted in the mean",
    "reason": "-1 stands for no ignoring: such labels have a loss of 0 because their one-hot row is empty",
    "link": "https://github.com/tinygrad/tinygrad/blob/v0.14.0/tinygrad/mixin/op.py#L1744",
}


def call(logits, labels, upstream, **options):
    from tinygrad import Tensor

    given = Tensor(logits)
    loss = given.sparse_categorical_crossentropy(Tensor(labels), **options)
    return loss.numpy(), loss.gradient(given, gradient=Tensor(upstream))[0].numpy()


implementation = Adapter(
    name="tinygrad",
    slow=True,
    call=call,
    layout="flat",
    gradient="returned",
    offers={"label_smoothing"},
    lacks={"bfloat16"},
    requires=["tinygrad==0.14.0"],
    shares_torch=False,
    deviations=(
        Deviation(
            "*",
            aspect="poisoning",
            fault="nan",
            observed="an infinity or NaN in an ignored row makes its gradient NaN",
            reason="the losses are multiplied by the mask, and 0 * NaN is NaN",
            link="https://github.com/tinygrad/tinygrad/blob/v0.14.0/tinygrad/mixin/op.py#L1745",
            certain=False,
        ),
        *(
            Deviation("ignored-positions/value[minus-1]", aspect=aspect, **MINUS_1)
            for aspect in ("loss", "gradient", "deletion", "reductions")
        ),
    ),
    env={"DEV": "PYTHON"},
)
