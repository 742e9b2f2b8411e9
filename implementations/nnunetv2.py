"""RobustCrossEntropyLoss of nnU-Net: torch's own, which takes labels of floating point as well."""

from xentcheck.implementation import Adapter, Deviation


def robust(logits, labels, **options):
    from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss

    return RobustCrossEntropyLoss(**options)(logits, labels)


implementation = Adapter(
    name="nnunetv2",
    call=robust,
    layout="channels",
    offers={"weight", "label_smoothing"},
    built_on="torch",
    requires=["nnunetv2==2.8.1"],
    no_deps=True,
    deviations=(
        Deviation(
            ("bad-input/float-target-of-tokens", "bad-input/target-dtype"),
            aspect="rejection",
            fault="accepted",
            observed="labels of floating point are taken",
            reason="RobustCrossEntropyLoss.forward passes target.long(): it is made for labels of floating point.",
        ),
        Deviation(
            ("bad-input/shape-of-pixels[one-channel]", "bad-input/shape[column]"),
            aspect="rejection",
            fault="accepted",
            observed="labels with an additional axis of length 1 are taken",
            reason="RobustCrossEntropyLoss.forward takes target[:, 0] of labels that have as many axes as the logits, which is its purpose.",
        ),
    ),
)
