"""bad-input/ignore-value-beside-probabilities[zero], remapped 2.13.0+cpu

A target that is neither a class nor ignored, shapes that do not belong together, targets that are no class indices and options outside their range are refused with an error in the call.
(no position of class probabilities has a value to be ignored by; dropped in silence, it stays in the loss; https://github.com/apache/mxnet/issues/6202)
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

# --- remapped.py
"""Native behind a remapping of several ignore values to one: the honest recipe for lists of ignore values."""


import torch
import torch.nn.functional as F


IGNORED = -100


def cross_entropy(input, target, *, ignore_index=IGNORED, **options):
    values = [ignore_index] if isinstance(ignore_index, int) else list(ignore_index)
    if IGNORED not in values and bool((target == IGNORED).any()):
        raise IndexError(f"Target {IGNORED} is out of bounds.")
    if target.dtype == torch.uint8:  # has no room for -100
        target = target.long()
    ignored = torch.isin(target, torch.tensor(values, dtype=target.dtype))
    return F.cross_entropy(input, target.masked_fill(ignored, IGNORED), ignore_index=IGNORED, **options)
# ---

loss_function = cross_entropy

# --- the case

logits = torch.tensor([
    -0.08771225064992905, -0.5208856463432312, -0.08449924737215042, 0.9281596541404724, -1.6404285430908203, 2.0609872341156006, 0.8111541867256165, 2.030578374862671,
    -0.7479507327079773, -0.6183443665504456, 2.0611095428466797, -1.9744676351547241, 0.08521479368209839, -1.633672833442688, -0.01908099837601185, 1.0319312810897827,
    -0.6385228633880615, -0.05694407969713211, 0.5655481815338135, 2.1265199184417725, -0.0538971982896328, -0.879026472568512, 0.654375433921814, -0.6545844078063965,
    -0.302691251039505, 1.8945657014846802, 0.6391133666038513, -0.16900669038295746, -0.8234748840332031, 0.2537863254547119, -0.13304653763771057, -1.1749050617218018,
    -0.19085334241390228, -0.6708045601844788, 0.6229379177093506,
], dtype=torch.float32).reshape((7, 5))
target = torch.tensor([
    0.10132496058940887, 0.06760630011558533, 0.17336788773536682, 0.004164210986346006, 0.6535366177558899, 0.01364240050315857, 0.2865934669971466, 0.34972095489501953,
    0.020362108945846558, 0.3296810984611511, 0.028822556138038635, 0.09323769807815552, 0.5273047089576721, 0.03919059783220291, 0.3114444613456726, 0.19258610904216766,
    0.44225168228149414, 0.11908761411905289, 0.2261865884065628, 0.0198880136013031, 0.026606781408190727, 0.1898869127035141, 0.7697077989578247, 0.004632214084267616,
    0.009166297502815723, 0.10205797106027603, 0.5306878685951233, 0.003726135939359665, 0.35967129468917847, 0.0038567385636270046, 0.0529436394572258, 0.38305917382240295,
    0.000494634557981044, 0.38803529739379883, 0.17546725273132324,
], dtype=torch.float32).reshape((7, 5))
options = {"ignore_index": 0}
upstream = None

try:
    print("expected an error; found", loss_function(logits, target, **options))
except Exception as error:
    print("an error, as expected:", type(error).__name__, error)
