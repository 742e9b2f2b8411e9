"""A mask multiplied onto the losses of all positions, then ``.mean()``: often written, and its denominator is wrong.

https://github.com/open-mmlab/mmsegmentation/issues/546 is one of many places where the mean counts the ignored positions.
"""

import torch
import torch.nn.functional as F

from xentcheck.implementation import EVERYTHING, Implementation


def cross_entropy(input, target, *, ignore_index=-100):
    loss = F.cross_entropy(input, target, ignore_index=ignore_index, reduction="none")
    mask = target != ignore_index
    return (loss * mask.to(loss.dtype)).mean()


implementation = Implementation(
    name="masked_mean",
    cross_entropy=cross_entropy,
    capabilities=EVERYTHING
    - {"ignore_index_list", "label_smoothing", "weight", "reduction_sum", "reduction_none", "k_dim", "unbatched", "uint8_target"},
    version=torch.__version__,
)
