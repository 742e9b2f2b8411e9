"""MONAI's FocalLoss with softmax at gamma 0, where it is a cross entropy."""

from xentcheck.implementation import Adapter, Deviation

GRADIENT = (
    "ignored-nonfinite/dtype",
    "ignored-nonfinite/ignored-class",
    "ignored-nonfinite/mixed",
    "ignored-nonfinite/one-class-of-a-row",
    "ignored-nonfinite/seed-002-row-of-minus-inf",
    "ignored-nonfinite/seed-002-vocabulary-mask",
    "ignored-nonfinite/segmentation",
    "ignored-nonfinite/tokens",
    "ignored-nonfinite/upstream-is-not-one",
    "ignored-nonfinite/weights",
    "ignored-nonfinite/whole-rows[minus-inf-*]",
    "ignored-nonfinite/whole-rows[nan-*]",
    "ignored-nonfinite/whole-rows[plus-inf-*]",
)
IGNORED_NONFINITE = (*GRADIENT, "ignored-nonfinite/seed-002-vocabulary-mask-by-the-advice")


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
    computes_in="float32",
    call=focal,
    layout="channels",
    offers={"weight"},
    lacks={"unbatched"},
    by_hand={"adds up the classes where the reduction is none"},
    requires=["monai==1.6.1"],
    no_deps=True,
    deviations=(
        *(
            Deviation(
                cases,
                aspect=aspect,
                fault="nan",
                observed="NaN where an ignored position holds an infinity or NaN",
                reason="mask_loss_inputs multiplies the logits of ignored positions by 0, and 0 * NaN is NaN.",
            )
            for cases, aspect in (
                (IGNORED_NONFINITE, "loss"),
                (
                    ("ignored-nonfinite/all-ignored", *GRADIENT, "minus-infinity/column-with-ignored-positions"),
                    "gradient",
                ),
                ("*", "poisoning"),
            )
        ),
        Deviation(
            (
                "class-weights/by-hand",
                "label-smoothing/class-at-minus-inf-and-no-smoothing",
                "minus-infinity/all-other-classes",
                "minus-infinity/at-the-target-by-hand",
                "minus-infinity/column",
                "minus-infinity/column-of-tokens",
                "minus-infinity/column-with-ignored-positions",
                "minus-infinity/leading-block",
                "minus-infinity/leading-block-of-a-few-rows",
                "minus-infinity/leading-block-of-a-large-vocabulary",
                "minus-infinity/one-finite-class",
                "minus-infinity/one-other-class",
                "minus-infinity/upper-triangle",
            ),
            aspect="loss",
            fault="nan",
            observed="NaN where a class other than the target is at -inf",
            reason="softmax_focal_loss multiplies the log-probability -inf of the class by its 0 in the one-hot target.",
        ),
    ),
)
