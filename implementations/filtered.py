"""Positions filtered out with Python lists, several padding values at once, then native on what is left."""

import torch
import torch.nn.functional as F

from xentcheck.implementation import EVERYTHING, Implementation


def cross_entropy(input, target, *, ignore_index=-100, reduction="mean"):
    ignored = [ignore_index] if isinstance(ignore_index, int) else list(ignore_index)
    if reduction == "none":
        raise ValueError("the filtered positions are gone, so there is no loss for each position")
    kept = [i for i, value in enumerate(target.tolist()) if value not in ignored]
    return F.cross_entropy(input[kept], target[kept], reduction=reduction)


implementation = Implementation(
    name="filtered",
    cross_entropy=cross_entropy,
    capabilities=EVERYTHING - {"reduction_none", "weight", "label_smoothing", "k_dim", "unbatched", "vmap", "compile"},
    empty_mean="nan",
    version=torch.__version__,
)
