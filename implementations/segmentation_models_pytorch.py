"""SoftCrossEntropyLoss of segmentation-models-pytorch."""

from _hollow import hollow
from xentcheck.implementation import Adapter


def soft(logits, labels, *, label_smoothing=0.0, **options):
    hollow("segmentation_models_pytorch", "segmentation_models_pytorch.losses")
    from segmentation_models_pytorch.losses.soft_ce import SoftCrossEntropyLoss

    # Its default smooth_factor of None is refused by the loss itself.
    return SoftCrossEntropyLoss(smooth_factor=label_smoothing, **options)(logits, labels)


implementation = Adapter(
    name="segmentation_models_pytorch",
    call=soft,
    layout="channels",
    offers={"label_smoothing"},
    lacks={"unbatched"},
    built_on="torch",
    requires=["segmentation-models-pytorch==0.6.0"],
    no_deps=True,
)
