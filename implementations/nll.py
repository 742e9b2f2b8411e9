"""``log_softmax`` followed by ``nll_loss``: the two steps that the documentation says cross entropy is made of."""

import torch
import torch.nn.functional as F

from _torch import (
    COMPILED_INT32,
    COMPILED_UINT8,
    FLOAT16_MEAN,
    HALF_GRADIENT,
    HALF_LOSS,
    HALF_RELATIONS,
    POISONED,
    nan_in_ignored_rows,
    uint8_refused,
)
from xentcheck.implementation import EVERYTHING, Implementation


def cross_entropy(input, target, *, weight=None, ignore_index=-100, reduction="mean"):
    class_axis = 0 if input.dim() == 1 else 1
    return F.nll_loss(F.log_softmax(input, class_axis), target, weight, ignore_index=ignore_index, reduction=reduction)


implementation = Implementation(
    name="nll",
    cross_entropy=cross_entropy,
    capabilities=EVERYTHING - {"class_probabilities", "normalizer", "ignore_index_list", "label_smoothing"},
    empty_mean="nan",
    int32_target="refused",
    deviations=(
        nan_in_ignored_rows("infinite-or-nan-valid-row/nan-beside-ignored-nan"),
        POISONED,
        *COMPILED_UINT8,
        COMPILED_INT32,
        *HALF_LOSS,
        *HALF_GRADIENT,
        *HALF_RELATIONS,
        *FLOAT16_MEAN,
        *uint8_refused("target-dtypes/uint8-pixels"),
    ),
    version=torch.__version__,
)
