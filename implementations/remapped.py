"""Native behind a remapping of several ignore values to one: the honest recipe for lists of ignore values."""

import torch
import torch.nn.functional as F

from _torch import (
    COMPILED_TARGET,
    DROPPED_IGNORE_VALUE,
    FLOAT16_MEAN,
    IMPOSSIBLE_CLASS,
    NEGATIVE_SMOOTHING,
    POISONED,
    nan_in_ignored_rows,
)
from xentcheck.implementation import LOGITS_CAPABILITIES, Implementation

IGNORED = -100


def cross_entropy(input, target, *, ignore_index=IGNORED, **options):
    values = [ignore_index] if isinstance(ignore_index, int) else list(ignore_index)
    if IGNORED not in values and bool((target == IGNORED).any()):
        raise IndexError(f"Target {IGNORED} is out of bounds.")
    if target.dtype == torch.uint8:  # has no room for -100
        target = target.long()
    ignored = torch.isin(target, torch.tensor(values, dtype=target.dtype))
    return F.cross_entropy(input, target.masked_fill(ignored, IGNORED), ignore_index=IGNORED, **options)


implementation = Implementation(
    name="remapped",
    cross_entropy=cross_entropy,
    capabilities=LOGITS_CAPABILITIES - {"normalizer", "vmap"},  # looks at the values of the targets
    empty_mean="nan",
    deviations=(
        nan_in_ignored_rows("infinite-or-nan-valid-row/nan-beside-ignored-nan"),
        POISONED,
        COMPILED_TARGET,
        *FLOAT16_MEAN,
        IMPOSSIBLE_CLASS,
        DROPPED_IGNORE_VALUE,
        NEGATIVE_SMOOTHING,
    ),
    version=torch.__version__,
)
