"""XentLoss of JoeyNMT without smoothing, whose formula leaves out the padding class. It takes log-probabilities."""

from xentcheck.implementation import Adapter


def xent(logits, labels, *, ignore_index=-100):
    from joeynmt.loss import XentLoss

    return XentLoss(ignore_index)(logits.log_softmax(-1), trg=labels)


implementation = Adapter(
    name="joeynmt",
    call=xent,
    layout="sequence",
    reductions={"sum"},
    by_hand={"takes log_softmax"},
    built_on="torch",
    requires=["joeynmt==2.3.0"],
    no_deps=True,
)
