"""bad-input/empty-logits, linear_cross_entropy_chunked 2.13.0+cpu

A target that is neither a class nor ignored, shapes that do not belong together, targets that are no class indices and options outside their range are refused with an error in the call.
https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
https://github.com/pytorch/pytorch/issues/12670
https://github.com/axolotl-ai-cloud/axolotl/pull/3767
https://github.com/PaddlePaddle/Paddle/issues/10945

With --anomaly autograd names the operation whose backward pass returned NaN.
"""

import sys

import torch

if "--anomaly" in sys.argv:
    torch.autograd.set_detect_anomaly(True)

# --- the loss

# --- linear_cross_entropy_chunked.py
"""``torch.nn.functional.linear_cross_entropy`` some positions at a time, never with all logits in memory."""


import warnings
import torch
import torch.nn.functional as F


MISSING = (
    "" if hasattr(F, "linear_cross_entropy") else f"torch {torch.__version__} has no linear_cross_entropy; 2.13 does"
)


SOURCE = "https://github.com/pytorch/pytorch/blob/v2.13.0/torch/nn/modules/linear_cross_entropy.py"


def linear_cross_entropy(hidden, linear_weight, target, *, label_smoothing=0.0, **options):
    if label_smoothing:
        raise ValueError("label smoothing is not computed in chunks")
    settings = torch.nn.LinearCrossEntropyOptions(allow_retain_graph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that the settings are ignored is told by a warning
        return F.linear_cross_entropy(hidden, linear_weight, target, options=settings, **options)
# ---

fused = linear_cross_entropy


def loss_function(input, target, **options):
    return fused((input.movedim(1, -1) if input.dim() > 2 else input), torch.eye(input.shape[min(1, input.dim() - 1)], dtype=input.dtype), target, **options)

# --- the case

logits = torch.tensor([], dtype=torch.float32).reshape((0, 5))
target = torch.tensor([1, 2, 3], dtype=torch.int64).reshape((3,))
options = {}
upstream = None

try:
    print("expected an error; found", loss_function(logits, target, **options))
except Exception as error:
    print("an error, as expected:", type(error).__name__, error)
