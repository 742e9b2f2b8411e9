"""What every loss that ends in torch's log_softmax and nll_loss is known to do otherwise than its clause says (CPU)."""

from xentcheck.implementation import Deviation

NAN_IN_IGNORED_ROWS = (
    "ignored-nonfinite/all-ignored",
    "ignored-nonfinite/differentiated-twice",
    "ignored-nonfinite/dtype",
    "ignored-nonfinite/ignored-class",
    "ignored-nonfinite/mixed",
    "ignored-nonfinite/one-class-of-a-row[nan]",
    "ignored-nonfinite/one-class-of-a-row[plus-inf]",
    "ignored-nonfinite/seed-002-row-of-minus-inf",
    "ignored-nonfinite/seed-002-vocabulary-mask",
    "ignored-nonfinite/segmentation",
    "ignored-nonfinite/several-ignore-values",
    "ignored-nonfinite/smoothing",
    "ignored-nonfinite/tokens",
    "ignored-nonfinite/upstream-is-not-one",
    "ignored-nonfinite/weights",
    "ignored-nonfinite/weights-and-smoothing",
    "ignored-nonfinite/whole-rows[*-inf-*]",
    "ignored-nonfinite/whole-rows[nan-*]",
    "lm-constrained",
)


def nan_in_ignored_rows(*more):
    return Deviation(
        (*NAN_IN_IGNORED_ROWS, *more),
        aspect="gradient",
        fault="nan",
        observed="NaN gradients in ignored rows that hold an infinity or NaN",
        reason="The backward pass of log_softmax multiplies the zero gradient of an ignored row with its softmax, and 0 * NaN is NaN.",
        link="https://github.com/pytorch/pytorch/issues/11551",
    )


_ROUNDED = {
    "fault": "value",
    "reason": (
        "log_softmax stores its result in the half type, and all that follows starts from the rounded numbers: where the target is likely, "
        "its log-probability is rounded on the grid of the logits, often to 0."
    ),
    "link": "https://github.com/Modalities/modalities/pull/464",
}
HALF_LOSS = (
    Deviation(
        (
            "accuracy/confident-mean[bfloat16]",
            "accuracy/confident[at-0.9-*]",
            "accuracy/confident[at-0.99-*]",
            "accuracy/confident[*-bfloat16]",
            "accuracy/many-positions[bfloat16-none]",
            "logit-range/scale[hundred-bfloat16]",
        ),
        aspect="loss",
        observed="half-precision losses of likely targets that are rounded twice",
        max_units=120,
        **_ROUNDED,
    ),
    Deviation(
        "lm/bfloat16",
        aspect="loss",
        observed="the bfloat16 mean over 8192 positions that is rounded more than once",
        max_units=2,
        certain=False,
        **_ROUNDED,
    ),
    Deviation(
        (
            "accuracy/confident[at-0.999-float16]",
            "accuracy/many-positions[float16-none]",
            "class-weights/classification[float16-none]",
            "plain-values/token-classification[bfloat16-mean]",
        ),
        aspect="loss",
        observed="half-precision losses a little beyond one rounding",
        max_units=2,
        certain=False,
        **_ROUNDED,
    ),
)
HALF_GRADIENT = (
    Deviation(
        (
            "accuracy/confident-mean",
            "accuracy/confident[at-0.99-*]",
            "accuracy/confident[at-0.999-*]",
            "accuracy/confident[next-to-1-bfloat16]",
            "accuracy/many-positions[bfloat16-sum]",
            "accuracy/more-positions-than-float16-counts",
            "logit-range/scale[hundred-bfloat16]",
        ),
        aspect="gradient",
        observed="half-precision gradients computed from rounded log-probabilities",
        max_units=200,
        **_ROUNDED,
    ),
    Deviation(
        (
            "accuracy/confident[at-0.9-*]",
            "accuracy/many-positions[bfloat16-mean]",
            "accuracy/many-positions[bfloat16-none]",
            "accuracy/many-positions[float16-sum]",
            "label-smoothing/classification[bfloat16-mean]",
        ),
        aspect="gradient",
        observed="half-precision gradients a little beyond one rounding",
        max_units=3,
        certain=False,
        **_ROUNDED,
    ),
)
FLOAT16_MEAN = Deviation(
    "accuracy/more-positions-than-float16-counts[float16]",
    aspect="loss",
    fault="nan",
    observed="a float16 mean over 70,001 positions that is NaN, although the losses and their mean are small",
    reason="The sum of the losses and the count of positions both overflow float16 before they are divided.",
    link="https://github.com/pytorch/pytorch/issues/29429",
)
FULL_SMOOTHING = Deviation(
    "label-smoothing/target-at-minus-inf[1.0]",
    aspect="loss",
    fault="nan",
    observed="NaN instead of +inf with label_smoothing=1 and a target at -inf",
    reason="The target's own term, which has no weight left, is still computed as 0 * inf and added.",
    link="https://github.com/facebookresearch/pytext/pull/1698",
)
NEGATIVE_SMOOTHING = Deviation(
    "bad-input/smoothing[below-0]",
    aspect="rejection",
    fault="accepted",
    observed="a negative label_smoothing is taken for 0 in silence",
    reason="Only values above 0 reach the code that checks the range: F.cross_entropy(x, t, label_smoothing=-1.0) equals F.cross_entropy(x, t).",
    link="https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.cross_entropy.html",
)


def uint8_refused(*cases):
    return tuple(
        Deviation(
            cases,
            aspect=aspect,
            fault="raised",
            observed="uint8 targets are taken for (N, C) inputs, but refused for images and under label smoothing",
            reason="Only the kernel for (N, C) inputs has a branch for uint8.",
            link="https://github.com/pytorch/pytorch/issues/45540",
        )
        for aspect in ("loss", "gradient", "shape")
    )


NATIVE = (
    nan_in_ignored_rows("infinite-or-nan-valid-row/nan-beside-ignored-nan"),
    *HALF_LOSS,
    *HALF_GRADIENT,
    FLOAT16_MEAN,
    FULL_SMOOTHING,
    NEGATIVE_SMOOTHING,
    *uint8_refused("target-dtypes/uint8-pixels", "target-dtypes/uint8-weights-and-smoothing"),
)
