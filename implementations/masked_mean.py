"""A mask multiplied onto the losses of all positions, then ``.mean()``: often written, and its denominator is wrong.

https://github.com/open-mmlab/mmsegmentation/issues/546 is one of many places where the mean counts the ignored positions.
"""

import torch
import torch.nn.functional as F

from xentcheck.implementation import EVERYTHING, Implementation


def cross_entropy(input, target, *, ignore_index=-100, reduction="mean"):
    loss = F.cross_entropy(input, target, ignore_index=ignore_index, reduction="none")
    mask = target != ignore_index
    masked = loss * mask.to(loss.dtype)
    return masked.mean() if reduction == "mean" else masked.sum() if reduction == "sum" else masked


implementation = Implementation(
    name="masked_mean",
    cross_entropy=cross_entropy,
    capabilities=EVERYTHING - {"ignore_index_list", "label_smoothing", "weight"},
    version=torch.__version__,
)
