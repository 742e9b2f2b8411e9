"""Native, and a test of the loss for NaN afterwards that puts zero in its place: it hides every NaN, not only the empty mean."""

import torch
import torch.nn.functional as F

from xentcheck.implementation import EVERYTHING, Implementation


def cross_entropy(input, target, **options):
    loss = F.cross_entropy(input, target, **options)
    return torch.where(torch.isnan(loss), torch.zeros_like(loss), loss)


implementation = Implementation(
    name="nan_guard",
    cross_entropy=cross_entropy,
    capabilities=EVERYTHING - {"ignore_index_list"},
    empty_mean="zero",
    version=torch.__version__,
)
