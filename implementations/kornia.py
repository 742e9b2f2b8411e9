"""kornia's focal_loss at gamma 0, where it is a cross entropy. Its mean is over positions times classes, the ignored ones included."""

from xentcheck.implementation import Adapter


def focal(logits, labels, *, reduction, **options):
    from kornia.losses import focal_loss

    loss = focal_loss(logits, labels, alpha=None, gamma=0.0, reduction=reduction, **options)
    return loss.sum(1) if reduction == "none" else loss


implementation = Adapter(
    name="kornia",
    call=focal,
    layout="channels",
    reductions={"sum", "none"},
    offers={"weight"},
    lacks={"unbatched"},
    by_hand={"adds up the classes where the reduction is none"},
    requires=["kornia==0.9.0", "kornia-rs==0.2.0"],
    no_deps=True,
)
