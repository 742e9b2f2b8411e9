"""``log_softmax`` followed by ``nll_loss``: the two steps that the documentation says cross entropy is made of."""

import torch
import torch.nn.functional as F

from xentcheck.implementation import EVERYTHING, Implementation


def cross_entropy(input, target, *, weight=None, ignore_index=-100, reduction="mean"):
    class_axis = 0 if input.dim() == 1 else 1
    return F.nll_loss(F.log_softmax(input, class_axis), target, weight, ignore_index=ignore_index, reduction=reduction)


implementation = Implementation(
    name="nll",
    cross_entropy=cross_entropy,
    capabilities=EVERYTHING - {"ignore_index_list", "label_smoothing"},
    empty_mean="nan",
    version=torch.__version__,
)
