"""Native, and a test of the loss for NaN afterwards that puts zero in its place: it hides every NaN, not only the empty mean."""

import torch
import torch.nn.functional as F

from _torch import (
    COMPILED_INT32,
    COMPILED_TARGET,
    COMPILED_UINT8,
    FLOAT16_MEAN,
    NEGATIVE_SMOOTHING,
    POISONED,
    UINT8_SMOOTHING,
    UINT8_VMAP,
    nan_in_ignored_rows,
    uint8_refused,
)
from xentcheck.implementation import LOGITS_CAPABILITIES, Deviation, Implementation

_HIDDEN = {
    "fault": "value",
    "reason": "Whatever made the loss NaN, a diverged model for instance, it is reported as 0 and training goes on.",
    "link": "https://github.com/huggingface/trl/issues/6668",
}


def cross_entropy(input, target, **options):
    loss = F.cross_entropy(input, target, **options)
    return torch.where(torch.isnan(loss), torch.zeros_like(loss), loss)


implementation = Implementation(
    name="nan_guard",
    cross_entropy=cross_entropy,
    capabilities=LOGITS_CAPABILITIES - {"normalizer", "ignore_index_list"},
    empty_mean="zero",
    int32_target="refused",
    deviations=(
        nan_in_ignored_rows(),
        POISONED,
        *COMPILED_UINT8,
        *COMPILED_INT32,
        COMPILED_TARGET,
        *(d for d in FLOAT16_MEAN if d.fault != "nan"),
        *UINT8_SMOOTHING,
        *UINT8_VMAP,
        NEGATIVE_SMOOTHING,
        *uint8_refused("target-dtypes/uint8-pixels", "target-dtypes/uint8-weights-and-smoothing"),
        Deviation(
            (
                "accuracy/mean-beyond-float16-sums[weights]",
                "accuracy/more-positions-than-float16-counts[float16]",
                "class-probabilities/impossible-class",
                "infinite-or-nan-valid-row/nan",
                "infinite-or-nan-valid-row/nan-beside-ignored-nan",
                "infinite-or-nan-valid-row/nan-in-a-sum",
                "infinite-or-nan-valid-row/nan-in-half-precision",
                "infinite-or-nan-valid-row/nan-with-smoothing",
                "infinite-or-nan-valid-row/plus-inf-in-a-mean",
                "infinite-or-nan-valid-row/plus-inf[both-infinities]",
                "infinite-or-nan-valid-row/plus-inf[others]",
                "infinite-or-nan-valid-row/plus-inf[whole-row]",
                "infinite-or-nan-valid-row/tokens",
                "label-smoothing/target-at-minus-inf[1.0]",
                "label-smoothing/zero-weight-at-minus-inf",
                "minus-infinity/whole-first-row",
                "minus-infinity/whole-row",
                "minus-infinity/zero-weight-at-the-target[mean]",
            ),
            aspect="loss",
            observed="a loss of 0 in place of NaN, although positions are valid",
            **_HIDDEN,
        ),
        Deviation(
            (
                "class-probabilities/impossible-class",
                "infinite-or-nan-valid-row/nan-beside-ignored-nan",
                "infinite-or-nan-valid-row/nan-in-a-sum",
                "infinite-or-nan-valid-row/nan-with-smoothing",
                "infinite-or-nan-valid-row/nan[*-mean]",
                "infinite-or-nan-valid-row/plus-inf-in-a-mean",
                "label-smoothing/target-at-minus-inf[1.0]",
                "label-smoothing/zero-weight-at-minus-inf",
                "minus-infinity/whole-row[mean]",
                "minus-infinity/whole-row[sum]",
                "minus-infinity/zero-weight-at-the-target[mean]",
            ),
            aspect="gradient",
            observed="no gradient for the healthy rows beside a NaN",
            **_HIDDEN,
        ),
        Deviation(
            (
                "accuracy/mean-beyond-float16-sums[weights]",
                "accuracy/more-positions-than-float16-counts[float16]",
                "infinite-or-nan-valid-row/nan",
                "infinite-or-nan-valid-row/nan-beside-ignored-nan",
                "infinite-or-nan-valid-row/nan-in-a-sum",
                "infinite-or-nan-valid-row/nan-in-half-precision",
                "infinite-or-nan-valid-row/nan-with-smoothing",
                "label-smoothing/target-at-minus-inf[1.0]",
                "minus-infinity/whole-first-row",
                "minus-infinity/whole-row",
            ),
            aspect="reductions",
            observed="a position's NaN hidden without reduction, and all others with it in a sum or a mean",
            **_HIDDEN,
        ),
        Deviation(
            (
                "infinite-or-nan-valid-row/nan-beside-ignored-nan",
                "infinite-or-nan-valid-row/nan-in-a-sum",
                "infinite-or-nan-valid-row/nan-with-smoothing",
                "infinite-or-nan-valid-row/nan[*-mean]",
                "minus-infinity/whole-row[mean]",
                "minus-infinity/whole-row[sum]",
            ),
            aspect="splitting",
            observed="a NaN that hides its own part of the batch, or all of it",
            **_HIDDEN,
        ),
    ),
    version=torch.__version__,
)
