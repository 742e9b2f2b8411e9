"""``torch.nn.functional.linear_cross_entropy`` as it comes: linear, then cross_entropy, with all logits in memory."""

import torch
import torch.nn.functional as F

from _torch import (
    COMPILED_UINT8,
    FLOAT16_MEAN,
    LINEAR,
    NEGATIVE_SMOOTHING,
    UINT8_SMOOTHING,
    UINT8_VMAP,
    uint8_refused,
)
from xentcheck.implementation import LINEAR_CAPABILITIES, Implementation

MISSING = (
    "" if hasattr(F, "linear_cross_entropy") else f"torch {torch.__version__} has no linear_cross_entropy; 2.13 does"
)


def linear_cross_entropy(hidden, linear_weight, target, **options):
    return F.linear_cross_entropy(hidden, linear_weight, target, **options)


implementation = Implementation(
    name="linear_cross_entropy",
    linear_cross_entropy=linear_cross_entropy,
    # Under autocast the product is rounded to bfloat16, and so are the logits: what it does to linear layers, no matter of the loss.
    capabilities=LINEAR_CAPABILITIES - {"ignore_index_list", "normalizer", "autocast"},
    empty_mean="nan",
    deviations=(
        *COMPILED_UINT8,
        *UINT8_SMOOTHING,
        *UINT8_VMAP,
        *FLOAT16_MEAN,
        NEGATIVE_SMOOTHING,
        *uint8_refused("target-dtypes/uint8-weights-and-smoothing"),
        *LINEAR,
    ),
    unavailable=MISSING,
    version=torch.__version__,
)
