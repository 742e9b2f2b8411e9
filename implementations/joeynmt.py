"""XentLoss of JoeyNMT without smoothing, whose formula leaves out the padding class. It takes log-probabilities."""

from xentcheck.implementation import Adapter, Deviation


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
    deviations=(
        Deviation(
            (
                "bad-input/shape-of-pixels",
                "bad-input/shape-of-tokens[additional-axis]",
                "bad-input/shape-of-tokens[swapped]",
                "bad-input/shape[column]",
            ),
            aspect="rejection",
            fault="accepted",
            observed="labels of any shape with the right number of them are taken",
            reason="XentLoss._reshape flattens log-probabilities and labels, and compares only their numbers.",
        ),
    ),
)
