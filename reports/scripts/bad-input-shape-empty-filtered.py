"""bad-input/shape[empty], filtered 2.13.0+cpu

A target that is neither a class nor ignored, shapes that do not belong together, targets that are no class indices and options outside their range are refused with an error in the call.
(shapes that broadcasting, flattening or a cut would make fit)
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
    0.7060510516166687, 0.8832054734230042, 0.2469557374715805, 0.4850935637950897, 0.6908761858940125, 1.7741358280181885, -0.40830281376838684, -1.500711441040039,
    0.8674201965332031, 0.9682984352111816, -0.6633244752883911, -1.1168129444122314, -0.15399205684661865, -1.1052677631378174, 0.6337671279907227, -1.3485232591629028,
    -0.8945268988609314, -0.49450525641441345, 0.6613337993621826, 0.7187010645866394, -2.0202224254608154, -0.2064792960882187, 1.0716931819915771, 0.3370603621006012,
    0.5226612687110901, -0.6123563647270203, 0.5329384207725525, 1.7479077577590942, 0.48293718695640564, 0.6760652661323547, 0.676339328289032, -1.1069533824920654,
    0.1586163192987442, -0.59004145860672, -0.2560392916202545,
], dtype=torch.float32).reshape((7, 5))
target = torch.tensor([], dtype=torch.int64).reshape((0,))
options = {}
upstream = None

try:
    print("expected an error; found", loss_function(logits, target, **options))
except Exception as error:
    print("an error, as expected:", type(error).__name__, error)
