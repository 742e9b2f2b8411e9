"""RobustCrossEntropyLoss of nnU-Net: torch's own, which takes labels of floating point as well."""

from xentcheck.implementation import Adapter


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
)
