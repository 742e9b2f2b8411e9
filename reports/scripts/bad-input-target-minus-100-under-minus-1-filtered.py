"""bad-input/target[minus-100-under-minus-1], filtered 2.13.0+cpu

A target that is neither a class nor ignored, shapes that do not belong together, targets that are no class indices and options outside their range are refused with an error in the call.
(such a target was read out of bounds or taken for ignored; https://github.com/pytorch/pytorch/issues/12670)
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

# --- filtered.py
"""Positions filtered out with Python lists, several padding values at once, then native on what is left."""


import torch.nn.functional as F


def cross_entropy(input, target, *, ignore_index=-100, reduction="mean"):
    ignored = [ignore_index] if isinstance(ignore_index, int) else list(ignore_index)
    if reduction == "none":
        raise ValueError("the filtered positions are gone, so there is no loss for each position")
    kept = [i for i, value in enumerate(target.tolist()) if value not in ignored]
    return F.cross_entropy(input[kept], target[kept], reduction=reduction)
# ---

loss_function = cross_entropy

# --- the case

logits = torch.tensor([
    -0.3108406960964203, -1.0618964433670044, 0.42207419872283936, -0.8684342503547668, 0.5770727396011353, 0.009109485894441605, 1.3972175121307373, 3.404130220413208,
    -1.3944488763809204, -0.6193613409996033, -0.5952599048614502, -0.06443627923727036, -0.8839854598045349, -0.5693889856338501, 1.3518707752227783, -0.57573401927948,
    1.213547706604004, 1.292264699935913, 1.2798312902450562, -0.20244935154914856, 0.9815046191215515, 0.531223714351654, 1.0608032941818237, 0.35374516248703003,
    0.5194355845451355, -0.24711069464683533, 0.17491987347602844, -0.9877516627311707, -1.0017350912094116, 0.2119404822587967, -0.6130133271217346, 2.960944890975952,
    -0.9011327624320984, 1.6413642168045044, 0.41846928000450134,
], dtype=torch.float32).reshape((7, 5))
target = torch.tensor([0, 1, 3, -100, 3, -1, 0], dtype=torch.int64).reshape((7,))
options = {"ignore_index": -1}
upstream = None

try:
    print("expected an error; found", loss_function(logits, target, **options))
except Exception as error:
    print("an error, as expected:", type(error).__name__, error)
