"""``torch.nn.functional.cross_entropy``, as PyTorch ships it."""

import torch

from _torch import NATIVE
from xentcheck.implementation import LOGITS_CAPABILITIES, Implementation

implementation = Implementation(
    name="native",
    cross_entropy=torch.nn.functional.cross_entropy,
    capabilities=LOGITS_CAPABILITIES - {"normalizer", "ignore_index_list"},
    empty_mean="nan",
    int32_target="refused",
    deviations=NATIVE,
)
