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


POISONED = Deviation(
    "*",
    aspect="poisoning",
    fault="nan",
    observed="NaN gradients of ignored positions as soon as these hold an infinity or NaN",
    reason="The backward pass of log_softmax multiplies the zero gradient of an ignored row with its softmax, and 0 * NaN is NaN.",
    link="https://github.com/pytorch/pytorch/issues/11551",
)
IMPOSSIBLE_CLASS = Deviation(
    "class-probabilities/impossible-class",
    aspect="loss",
    fault="nan",
    observed="NaN instead of a finite loss where a class at -inf has the probability 0",
    reason="The probability 0 is multiplied by the log-probability -inf of its class.",
    link="https://github.com/OpenBMB/ModelCenter/issues/14",
)
DROPPED_IGNORE_VALUE = Deviation(
    "bad-input/ignore-value-beside-probabilities",
    aspect="rejection",
    fault="accepted",
    observed="an ignore value beside class probabilities is dropped in silence",
    reason="It is compared with the probabilities before torch is called, which would refuse it, and torch is called without it.",
    link="https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.cross_entropy.html",
)
_MANY, _FEW = "accuracy/more-positions-than-float16-counts[float16]", "accuracy/mean-beyond-float16-sums"
FLOAT16_MEAN = tuple(
    Deviation(
        cases,
        aspect=aspect,
        fault=fault,
        observed="a float16 mean that is NaN, infinite or zero, although the losses and their mean are small",
        reason="The sum of the losses, the sum of the weights or the count of positions overflows float16 before they are divided.",
        link="https://github.com/pytorch/pytorch/issues/29429",
    )
    for aspect, fault, cases in (
        ("loss", "nan", (_MANY, f"{_FEW}[weights]")),
        ("loss", "inf", (f"{_FEW}[losses]", f"{_FEW}[weighted-losses]")),
        ("gradient", "value", (_MANY, f"{_FEW}[weights]")),
        ("splitting", "inf", (_MANY,)),
        ("splitting", "value", (f"{_FEW}[losses]", f"{_FEW}[weights]")),
        ("reductions", "nan", (_MANY, f"{_FEW}[weights]")),
        ("reductions", "inf", (f"{_FEW}[losses]",)),
    )
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


UINT8_SMOOTHING = tuple(
    Deviation(
        "target-dtypes/uint8-and-smoothing",
        aspect=aspect,
        fault="value",
        observed="beside uint8 targets, a class that equals the ignore value modulo 256 loses its share of the smoothing in silence",
        reason="The smoothed part compares the targets with the ignore value after that was put into a byte.",
        link="https://github.com/pytorch/pytorch/issues/45540",
    )
    for aspect in ("loss", "gradient", "class_permutation", "reductions")
)
UINT8_VMAP = tuple(
    Deviation(
        "modes/per-sample-uint8",
        aspect=aspect,
        fault="raised",
        observed="torch.func.vmap refuses uint8 targets, which the loss itself takes",
        reason="The batched form gathers by the target, and gather takes int32 and int64 only.",
        link="https://github.com/pytorch/pytorch/issues/45540",
    )
    for aspect in ("loss", "gradient", "shape")
)
COMPILED_UINT8 = tuple(
    Deviation(
        "modes/compiled-uint8",
        aspect=aspect,
        fault="raised",
        observed="torch.compile refuses uint8 targets, which eager mode takes",
        reason="The compiler's decomposition gathers by the target, and gather takes int64 only.",
        link="https://github.com/pytorch/pytorch/issues/45540",
    )
    for aspect in ("loss", "gradient", "shape")
)
# Seen on 2.13, not on 2.6, not looked for between the two.
COMPILED_INT32 = tuple(
    Deviation(
        "modes/compiled-int32",
        aspect="loss",
        fault="accepted",
        observed="torch.compile takes int32 targets, which eager mode refuses",
        reason="The check of the target's dtype is part of the eager kernel only.",
        link="https://github.com/pytorch/pytorch/issues/45540",
        torch=versions,
        certain=certain,
    )
    for versions, certain in ((">=2.13", True), (">2.6,<2.13", False))
)
COMPILED_TARGET = Deviation(
    "bad-input/compiled-target[minus-1]",
    aspect="rejection",
    fault="accepted",
    observed="torch.compile takes a target of -1 for the last class",
    reason="Compiled, a negative index counted from the end. torch 2.6 does so, 2.13 does not.",
    link="https://github.com/pytorch/pytorch/issues/135546",
    torch="<2.13",
    certain=False,
)
NATIVE = (
    nan_in_ignored_rows("infinite-or-nan-valid-row/nan-beside-ignored-nan"),
    POISONED,
    IMPOSSIBLE_CLASS,
    *COMPILED_UINT8,
    *COMPILED_INT32,
    COMPILED_TARGET,
    *UINT8_SMOOTHING,
    *UINT8_VMAP,
    *FLOAT16_MEAN,
    NEGATIVE_SMOOTHING,
    *uint8_refused("target-dtypes/uint8-pixels", "target-dtypes/uint8-weights-and-smoothing"),
)


LINEAR = (
    Deviation(
        (
            "linear-chunks/nan-in-an-ignored-chunk",
            "linear-ignored/all-ignored[nan-*]",
            "linear-ignored/dtype",
            "linear-ignored/ignored-class",
            "linear-ignored/one-feature-of-a-state",
            "linear-ignored/smoothing-and-weights",
            "linear-ignored/whole-states[*-inf-*]",
            "linear-ignored/whole-states[nan-*]",
        ),
        aspect="gradient",
        fault="nan",
        observed="NaN in the gradients where the hidden state of an ignored position holds an infinity or NaN",
        reason="Its logits are NaN, and so is what log_softmax makes of their zero gradient; the product for the matrix's gradient spreads it.",
        link="https://github.com/pytorch/pytorch/issues/11551",
    ),
)
