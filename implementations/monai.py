"""MONAI's FocalLoss with softmax at gamma 0, where it is a cross entropy."""

from xentcheck.implementation import Adapter


def focal(logits, labels, *, reduction="mean", ignore_index=-100, **options):
    from monai.losses import FocalLoss

    loss = FocalLoss(
        gamma=0.0, use_softmax=True, to_onehot_y=True, reduction=reduction, ignore_index=ignore_index, **options
    )
    if logits.ndim == 2:  # it takes (N, C, L) and more dimensions
        logits, labels = logits.unsqueeze(-1), labels.unsqueeze(-1)
        return (
            loss(logits, labels.unsqueeze(1)).sum(1).squeeze(-1)
            if reduction == "none"
            else loss(logits, labels.unsqueeze(1))
        )
    found = loss(logits, labels.unsqueeze(1))
    return found.sum(1) if reduction == "none" else found


implementation = Adapter(
    name="monai",
    call=focal,
    layout="channels",
    offers={"weight"},
    lacks={"unbatched"},
    by_hand={"adds up the classes where the reduction is none"},
    requires=["monai==1.6.1"],
    no_deps=True,
)
