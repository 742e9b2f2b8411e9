"""``log_softmax`` followed by ``nll_loss``: the two steps that the documentation says cross entropy is made of."""

import torch
import torch.nn.functional as F

from _torch import (
    COMPILED_INT32,
    COMPILED_TARGET,
    COMPILED_UINT8,
    FLOAT16_MEAN,
    POISONED,
    UINT8_VMAP,
    nan_in_ignored_rows,
    uint8_refused,
)
from xentcheck.implementation import LOGITS_CAPABILITIES, Deviation, Implementation


def cross_entropy(input, target, *, weight=None, ignore_index=-100, reduction="mean"):
    class_axis = 0 if input.dim() == 1 else 1
    return F.nll_loss(F.log_softmax(input, class_axis), target, weight, ignore_index=ignore_index, reduction=reduction)


implementation = Implementation(
    name="nll",
    cross_entropy=cross_entropy,
    capabilities=LOGITS_CAPABILITIES - {"class_probabilities", "normalizer", "ignore_index_list", "label_smoothing"},
    empty_mean="nan",
    int32_target="refused",
    deviations=(
        nan_in_ignored_rows("infinite-or-nan-valid-row/nan-beside-ignored-nan"),
        POISONED,
        *COMPILED_UINT8,
        *UINT8_VMAP,
        *COMPILED_INT32,
        COMPILED_TARGET,
        *FLOAT16_MEAN,
        *uint8_refused("target-dtypes/uint8-pixels"),
        Deviation(
            "bad-input/shape-of-unbatched",
            aspect="rejection",
            fault="accepted",
            observed="for logits of shape (C,), a target of C elements is taken, and all but its first are dropped",
            reason="torch 2.6 compares the length of the target with the number of classes there; 2.13 asks for one element.",
            link="https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.nll_loss.html",
            torch="<2.13",
            certain=False,
        ),
    ),
    version=torch.__version__,
)
