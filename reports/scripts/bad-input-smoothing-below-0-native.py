"""bad-input/smoothing[below-0], native 2.13.0+cpu

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

from torch.nn.functional import cross_entropy

loss_function = cross_entropy

# --- the case

logits = torch.tensor([
    1.322657585144043, 0.14879471063613892, 0.3554087281227112, -0.23106835782527924, -0.24301405251026154, 1.2793906927108765, 2.980160713195801, -0.2124411016702652,
    -0.8991091847419739, 0.15589144825935364, -1.4662445783615112, -0.6819889545440674, 0.4661194682121277, -1.5345524549484253, 0.9339926838874817, 0.8276070952415466,
    -0.7023047804832458, -1.7921682596206665, 0.44989973306655884, 0.6453514099121094, -1.0748693943023682, 2.039151191711426, -1.665865182876587, -1.740108609199524,
    1.3645234107971191, -0.5189217925071716, 0.03962661698460579, 0.7853162288665771, -1.0391247272491455, -1.0421746969223022, -0.6698623299598694, -0.43232008814811707,
    -0.7282469868659973, 0.11734551936388016, -0.3204677402973175,
], dtype=torch.float32).reshape((7, 5))
target = torch.tensor([4, 3, 3, 1, 2, 3, 4], dtype=torch.int64).reshape((7,))
options = {"label_smoothing": -0.1}
upstream = None

try:
    print("expected an error; found", loss_function(logits, target, **options))
except Exception as error:
    print("an error, as expected:", type(error).__name__, error)
