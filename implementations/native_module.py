"""``torch.nn.CrossEntropyLoss``, the module: made anew for every call, as the options of a call belong to its constructor."""

import torch

from _torch import NATIVE
from xentcheck.implementation import LOGITS_CAPABILITIES, Implementation


def cross_entropy(input, target, **options):
    return torch.nn.CrossEntropyLoss(**options)(input, target)


implementation = Implementation(
    name="native_module",
    cross_entropy=cross_entropy,
    capabilities=LOGITS_CAPABILITIES - {"normalizer", "ignore_index_list"},
    empty_mean="nan",
    int32_target="refused",
    deviations=NATIVE,
    version=torch.__version__,
)
