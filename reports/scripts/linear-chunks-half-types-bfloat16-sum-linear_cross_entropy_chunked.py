"""linear-chunks/half-types[bfloat16-sum], linear_cross_entropy_chunked 2.13.0+cpu

However many positions a fused linear loss works on at a time, and whichever of them are ignored, loss and gradients are those of the whole batch.
(gradients of a matrix that are added up in a half type lose a little with every chunk)
https://github.com/linkedin/Liger-Kernel/pull/330
https://github.com/linkedin/Liger-Kernel/issues/512
https://docs.pytorch.org/docs/stable/generated/torch.nn.LinearCrossEntropyOptions.html

With --anomaly autograd names the operation whose backward pass returned NaN.
"""

import base64
import sys
import zlib
from types import SimpleNamespace

import numpy as np
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
    return fused(input, options.pop("linear_weight"), target, **options)

# --- the case

hidden = torch.tensor([
    -0.232421875, -2.484375, -2.5, -0.71484375, 0.443359375, -0.07373046875, -0.44140625, -0.10595703125,
    -0.546875, 0.59765625, 0.40625, 2.4375, -0.859375, 0.75390625, 1.484375, -0.2421875,
    -0.85546875, -0.384765625, 1.8828125, -1.8671875, -1.015625, -0.51171875, -0.337890625, -0.376953125,
    0.322265625, -0.12353515625, 0.072265625, -0.21875, -0.45703125, -0.62890625, 0.83984375, 1.1796875,
    -2.359375, 0.94921875, 0.6640625, 0.80078125, -1.1484375, -1.7578125, 0.2197265625, -0.44921875,
    -2.5, -2.171875, -1.015625, 0.32421875, 1.5, 0.58984375, -1.34375, 0.9140625,
    -0.31640625, 0.93359375, -1.4921875, 0.2158203125, 0.0927734375, 1.0625, 0.99609375, 1.8125,
    -0.67578125, 0.84375, 0.12890625, -0.88671875, -0.765625, -0.345703125, -0.765625, -0.66015625,
    -0.060302734375, 1.859375, -2.0, 0.390625, -1.375, 1.140625, -0.55859375, -0.404296875,
    -0.3671875, -0.5, -1.9296875, 0.1787109375, -2.15625, -0.2451171875, -0.75390625, 0.1884765625,
    -2.53125, -0.1103515625, 0.083984375, -0.032470703125, -1.6796875, 0.251953125, 2.0625, 1.1875,
    0.11181640625, 1.765625, 0.984375, -1.53125, 0.2265625, -1.109375, 0.0089111328125, -0.01025390625,
    -1.2890625, -0.052734375, -0.68359375, -0.1123046875, 0.1376953125, -0.62890625, 0.271484375, -0.2177734375,
    1.140625, -0.5546875, -1.0859375, 0.357421875, -1.0390625, -0.056640625, -0.6328125, -0.90234375,
    0.283203125, 2.140625, -0.2333984375, 0.77734375, 0.08642578125, 0.65234375, -0.74609375, -1.28125,
    1.4453125, 0.2001953125, 1.40625, 0.5625, 0.201171875, -2.125, -0.12890625, -1.46875,
    -0.76953125, -0.259765625, 0.9765625, 0.024658203125, -1.65625, -0.39453125, 1.296875, 0.419921875,
    0.040283203125, -0.75, -0.2099609375, 1.6328125, 0.78125, -1.2109375, 1.7890625, 1.109375,
    0.46484375, -0.1123046875, -1.3046875, -1.203125, -0.333984375, -0.37109375, -1.859375, 0.7421875,
    -0.62890625, 0.640625, -1.4375, -0.2216796875, -0.69140625, 0.06298828125, 0.0224609375, 0.66015625,
    0.61328125, 1.453125, 0.400390625, 1.2265625, 1.0390625, -0.98828125, -1.7109375, -2.453125,
    -1.2421875, 0.0771484375, -0.021728515625, -1.0859375, -0.421875, -0.294921875, 0.83203125, 0.3203125,
    1.265625, -0.318359375, 1.75, -0.9453125, -0.34765625, -1.203125, -2.03125, -0.66796875,
    -2.234375, -1.1875, -1.40625, -1.671875, -0.326171875, -0.58984375, -0.875, -1.09375,
    -1.71875, -0.890625, -0.341796875, -1.4453125, -0.333984375, 0.373046875, 0.0206298828125, -1.859375,
    -0.0537109375, 0.5859375, 0.1591796875, -0.0771484375, 2.53125, 0.35546875, 0.9140625, -0.193359375,
    -1.0859375, 0.427734375, 1.078125, 0.251953125, -0.63671875, 0.80859375, -1.390625, 1.203125,
    1.8046875, 0.9453125, 0.240234375, -0.45703125, 0.86328125, -0.67578125, -0.34375, -0.07958984375,
    0.158203125, 0.3515625, -0.01318359375, -0.796875, -0.9140625, 0.59375, 0.40625, -0.27734375,
    -1.7734375, 0.7109375, -0.96875, -1.09375, 0.423828125, -0.1015625, -1.1328125, -0.625,
    0.353515625, 0.2099609375, -0.07861328125, 0.37109375, -1.4296875, 2.59375, -0.66796875, 0.4296875,
    -0.9609375, 0.63671875, 0.10498046875, 1.375, -2.015625, -0.60546875, 0.2060546875, -0.61328125,
    -0.40234375, 1.0703125, -0.3203125, -0.6640625, 2.0625, -2.078125, -0.890625, -0.04052734375,
    -1.0078125, -0.3125, 1.6328125, -1.0078125, 0.82421875, -0.66015625, -0.27734375, 1.40625,
    -0.91015625, -0.1416015625, -0.1845703125, -0.267578125, -0.80078125, 0.134765625, 1.171875, 0.337890625,
], dtype=torch.bfloat16).reshape((70, 4))
target = torch.tensor([
    -100, 299, -100, -100, 138, 139, -100, -100,
    -100, -100, -100, 3, 114, 186, 92, 19,
    23, 116, -100, -100, -100, -100, 123, 211,
    71, -100, 98, 162, 269, -100, 283, 128,
    246, 85, 92, 28, 21, -100, -100, 264,
    83, 106, 168, 143, 63, 206, 160, -100,
    -100, 15, 254, -100, 39, 189, 36, 183,
    -100, 257, 204, 42, 224, 193, 207, 243,
    65, 274, 94, 27, 221, -100,
], dtype=torch.int64).reshape((70,))
linear_weight = torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(
    "eNoNVnl4TXcaFlVrKrFEWzu1pqYYjUnHPd970VJjGzOoGVVaUrRa2zSoFpFE7JXEI0lDiCZKaksIldzf9x4taqeC0BaxjfEwtEq1Y+l8f9xzn3"
    "vuc373+971HpWt2K/P8TUccOFMkcZoG+zEFD3O4fqNDuEC9gRZFdms6u/DS3xRBiKSxyTIKsGFWI4LPKInWckfounynZ7S57mdq90cPtYCRHk1"
    "0Z0hHLan+6AGurG2W8J4bJNuPCpV/ICewHeSITf1fzpQSjjYTWQXROOSnMcevalp+pU24mMclqvq2zNVsUP/gDsyl+NRynE6BK0R6V/VLH1DFr"
    "NCJ4ESFTynZe5s4BPc5fcMw1isDx2UZSxkJHfpUW7QGN6wz704EXPwk5TIcNzHOkzgRzZrM4lFGWMlBcIWqCbbMAAptt0m5HAfF7tdOh8dkcl7"
    "mILhDEiG7pdFXIA1zOAlbS1V/W90F5ugFTNQ30+R3/SUnMUMqe5fkVgOlijcklL5L58MTtVbWoFC/YtOQSrWoKXGufc5i7sRxV9Ck+nrGDRnMu"
    "P5i0RwDJbhtMyXqfZLcwE+0uquJRdhoZumnQ2R6ngBMezClvyYM9jQphmPv2E1V6E9c1zINdWtMp1b6PlxzCH0Y9bXWnyEg6xhu0ejBm8xl0nM"
    "RVooRxdoNjYiWqqBuFaiXIdNqECs/wipfCjJ0gkxkisfipMGNt8+zudeXLONR/Mi/4H97CiR/kvIlxRNw0a3ltNYx0Xzjrb0d+o9JnnxukXe4j"
    "U01CykIYhBuKPHcT/kdIOWoR9LS2uL7wYGlmCkVguVS6Hs0lIp5j1N1FV8B/EskeeZhWimyQWsN5T28xKLZQk3SZhhm47K2in4LBr4MZyuy1mL"
    "17UNO+EBs7lfthuaHTmMCUiWuujgpcrv+kedzarBi3ZCdWTrCf7OviiR9hiDHRyAP0sliQy+rkEkyIvSnuFcJH3RhG9zgE3xhY7EY32HYbwgG3"
    "gCcxnN4Sh0K9lKf5RqvGJoLnF5WhWDZYWM5F46aY6u2gVHdDSLvJn6GopwHUmuL57kD7rN9cF0nYcxMhZnUcCjHIXTTEJnP8KYqozF0gj1mKCt"
    "6OMp7a6ZqImdjDUVnUMux3K5G62lnIDP5Ac3Cs0R0oPsiKXG71Q7NUHD3QAMMKVkuKOS7FLdK2zMBRKPOVyDu16cfZcf2msqT9W/mgeijcFcnj"
    "N3hgXXSlceQy3/gXE9ELX9LtgpT+N9JGGeRATrSkTotgtgO8I1Tnoa1ndkKb7C99iibbHKkqSveW4YVzAGt01F89GY40NTkdntngzDz1Jsbi9h"
    "GSdxPR7iLppKERbxQekNnNZ0vuZqwMNyc8URpnkNMU5TcEDCgi/rRY3nVNdbh+p+LZa57i4fuqHsZ9wUIJyvumXMkSbmisFaBQFT5y0pV48d+R"
    "4qMdl2nC8rUNk7ZMg28T/HPtdK3mCqFOo4aaVf8J8sRIRO5B3OQ21piPekn5Sxjf4i9bAXY7SH98DrbLqokDCc0lWWXBHsVtI/cNA14HlslAxM"
    "x1Cm409M18uShkTLukPM5CfIRK6KqSsDJzjLK5ZOuhhPYJ+c1LDgMa8dyjVbPsBTwd262fS0R2dIa52lv3njMNMlwJkrRstTqHBb0ESbmU7Ocz"
    "ba4R02t73vSSay5GfpYe+Z0oLLdYsXHipmDrZZWn3NVsFDWqZdGesSvRJs1Zr+IozSG1LfO8deLgMB/ojuOsfYv63d2FRbBh0OyTHE6bvowH46"
    "wTbqg0Z8Fi/jPCvrdJlnJ19DXX+lqShPW2hfRkoWdxrju7nCdPcfrOWTOgKb2Ag3eYxZXMwidnBbXIIbarPelZvGU4HWlF8DHd0Bm7k635NwfM"
    "Q3uYF5Os3dwAlJQG/LpVw+42eZ59KNp0S+jsN8wVqrFlOwlz1w0DxdriO5RyZbHi2210q8zpnWc3l42+Z5l5WC7VxrXeNiLMV7S21DeDS7aG0/"
    "H0U8pD15CbddyBqhQsexMk/pt/JTIAkJ+NL008+a4KQk4lcmolNwj/mhPxOZrV9bbkwJ9MAZtGUUt7qH3puG1EiNxTN+Mishz7Lqiu1YAdiUE6"
    "W93wf/lhtazkFYId/IZenBCNaTEq2wNO2i4N+xmQXeOoT5P6OZH4PNstCbwyOuSfAxtrOcr3q7A5l2VphfhCcs8xOxyTstggh/ifZHVxbwpM1e"
    "plWCIV3I6ZhmGvFkhBZaa+biFZS7t7xZgZWczXXSzM9GulQ37XyJH9AZxZZQCagiSea4NMnncU5yjYIjpKnUDPZiB8QjVcqsHaMtjc+4yahlGp"
    "yL2Xadh29ZaCmcJ//iQH6KdXqMJfjAeq9WsKbecjM4UKfwc8vyVV4ybqGrO8CGUgf5hsunXKpN/TCvDm7IElTBCY3T+8ZfsWTJ89YUy+UMI7w2"
    "XIiHXn/2wiCXZcl01tquNeYbBjtYop9JAVqgDiLlrO6D8jov69PeAy1gvhx17Yy/YeyHL0Nl3G3nNEaB3A+la5zd2wH4ee47zdAauKSJWI2cwB"
    "n5VfMCm6SP9LF8XGTN9hx3BDz753BVOxsOh3GWw61xojA+lMMJ3IkP8cgSOypUFNqtBzSf/wfrSqkI"
))), dtype=torch.bfloat16).reshape((300, 4))
linear_bias = torch.tensor([
    -1.15625, 0.75, 0.240234375, 1.234375, -0.2294921875, 1.6796875, -0.330078125, -1.0234375,
    -1.09375, -0.2578125, 0.8125, 1.1640625, -0.5625, -1.03125, -0.80078125, -0.232421875,
    -0.193359375, -0.400390625, 0.703125, 0.451171875, -1.8828125, -0.72265625, 1.109375, 0.38671875,
    -1.2109375, 2.296875, 1.171875, 0.458984375, 1.828125, 0.7734375, -0.396484375, -1.6796875,
    1.4296875, -0.2021484375, -0.76953125, -0.1953125, -0.77734375, -0.384765625, -0.380859375, -0.1943359375,
    1.2578125, -1.2421875, -0.9296875, -1.5625, -0.408203125, -0.3359375, -2.078125, 0.259765625,
    0.1884765625, 0.73046875, -0.5234375, 0.416015625, 1.1640625, -1.3671875, 0.466796875, -0.205078125,
    0.25, 1.1484375, -1.4453125, -0.75, 0.65234375, -0.9296875, -0.85546875, 0.609375,
    1.2578125, -1.078125, -0.384765625, 1.328125, 2.625, 1.1484375, 0.05224609375, 1.1796875,
    0.388671875, 0.21875, -0.48828125, 1.8359375, 0.16796875, -1.2578125, 2.09375, -0.5703125,
    0.609375, -1.6796875, 1.265625, 0.99609375, -0.80078125, 1.3203125, -0.376953125, -0.5546875,
    -1.8828125, 0.455078125, 0.0869140625, -0.70703125, 0.12890625, 0.26171875, -0.48828125, -0.96484375,
    -0.006744384765625, -0.84765625, 0.765625, 0.78515625, 0.6953125, -1.3125, -0.5078125, -1.90625,
    1.109375, 2.984375, 0.76953125, -0.91015625, 0.09130859375, -1.328125, 0.027587890625, 0.05908203125,
    -1.1015625, 1.1328125, 1.5, 1.453125, -0.83984375, -1.59375, 0.037109375, 1.40625,
    -0.66015625, 0.56640625, 0.5703125, 0.1474609375, -0.8671875, 0.74609375, 0.8515625, -1.1484375,
    1.3671875, -0.984375, -0.287109375, 1.71875, -1.3046875, -0.0849609375, 0.57421875, 0.2890625,
    2.734375, -0.55859375, 0.88671875, -2.125, 0.46875, 0.828125, -0.2109375, -1.21875,
    0.7421875, 1.015625, -0.60546875, -0.86328125, -1.046875, 0.035400390625, 0.71875, 0.57421875,
    -1.5703125, 0.59765625, -1.0859375, 1.1328125, -1.421875, -0.6015625, -0.1689453125, -0.171875,
    0.375, 1.53125, 0.296875, -0.92578125, 0.470703125, -1.3359375, -0.55078125, 1.3046875,
    -0.1826171875, -1.0234375, 0.392578125, 0.259765625, -1.7265625, -1.0234375, -1.2734375, -1.125,
    -1.8125, -0.248046875, -0.2099609375, 0.4140625, 0.77734375, -2.265625, -1.78125, -0.390625,
    -0.3203125, 0.75, 0.55078125, 0.19140625, 1.59375, 0.57421875, -0.423828125, -0.330078125,
    -0.5, -0.06982421875, 0.80078125, 0.1455078125, -0.8984375, -0.8359375, 0.78125, -0.26171875,
    -1.8984375, 0.1884765625, 0.0162353515625, 2.46875, -0.1845703125, 0.314453125, 0.046875, 0.012451171875,
    0.5625, 1.328125, -1.6796875, 0.76171875, -0.953125, 0.828125, -0.96484375, -0.8125,
    -0.75390625, 0.5546875, -0.7421875, -0.1474609375, -0.56640625, -1.9765625, -0.310546875, -1.5390625,
    -1.015625, -1.9140625, 0.259765625, -1.5859375, 0.494140625, -1.71875, -0.73828125, 0.1005859375,
    -0.11767578125, -0.31640625, -1.3828125, -0.8359375, -0.6015625, 1.1953125, -0.5625, 1.5859375,
    -0.361328125, -0.3359375, 1.328125, 0.78125, 0.10205078125, 0.2734375, -0.85546875, -0.263671875,
    -0.57421875, 0.9921875, 1.2734375, 1.6015625, -1.734375, -0.4296875, -1.4921875, -0.439453125,
    -0.4375, -0.2578125, -0.546875, 0.9296875, -1.0078125, 0.271484375, 0.8203125, 0.197265625,
    -1.2421875, 1.1953125, -1.46875, 0.578125, 1.0234375, 1.609375, -0.0791015625, -0.361328125,
    0.419921875, 1.4375, -0.94921875, 0.79296875, -0.6015625, 0.1220703125, -0.046142578125, -0.12890625,
    0.65625, -1.7109375, 0.443359375, -0.296875, 0.259765625, -0.640625, -1.265625, 1.9375,
    1.453125, -1.59375, -1.3984375, 0.126953125, 0.4375, -0.66796875, -0.048095703125, -0.57421875,
    -1.5234375, -1.328125, -1.3828125, 1.296875,
], dtype=torch.bfloat16).reshape((300,))
options = {"ignore_index": -100, "reduction": 'sum', "linear_weight": linear_weight, "linear_bias": linear_bias}
upstream = None

# --- the right answer, by the definition

def one_hot(t, classes):
    """(P, C): 1 at each position's target class t, 0 elsewhere."""
    return (np.arange(classes) == t[:, None]).astype(np.float64)


def log_sum_exp(x, exp=np.exp, log=np.log):
    top = x.max(axis=1, keepdims=True, initial=-np.inf)
    return np.where(top == np.inf, top, top + log(exp(x - top).sum(axis=1, keepdims=True)))


def softmax(x, lse, exp=np.exp):
    return exp(x - lse)


def losses(wq, x, lse):
    """The loss of each position. A class of weight 0 contributes nothing, even where its logit is infinite."""
    return np.where(wq != 0, wq * (lse - x), 0).sum(axis=1)


def gradient(A, p, wq):
    """The gradient of each position's loss with respect to its logits."""
    return A * p - wq


def scatter(values, valid):
    """The values of the valid positions among zeros for the others."""
    full = np.zeros((len(valid), *values.shape[1:]), dtype=values.dtype)
    full[valid] = values
    return full


def linear(hidden, matrix, bias):
    """The logits (P, C) of a linear layer from hidden states (P, H), with a matrix (C, H) and perhaps a bias (C,)."""
    product = hidden @ matrix.T
    return product if bias is None else product + bias


def linear_gradients(d, hidden, matrix):
    """The chain rule: from d, the gradient of the logits, that of each argument of ``linear``, as two factors to be multiplied."""
    ones = np.ones((len(d), 1), dtype=d.dtype)
    return {"input": (d, matrix), "linear_weight": (d.T, hidden), "linear_bias": (d.T, ones)}


def numbers(tensor):
    return tensor.detach().double().numpy()


@np.errstate(all="ignore")
def expected():
    """Loss and gradient, with the ignored positions deleted."""
    t = target.numpy().reshape(-1).astype(np.int64)
    valid = ~np.isin(t, [-100])
    t = t[valid]
    wanted = one_hot(t, 300)
    h, matrix = numbers(hidden)[valid], numbers(options["linear_weight"])
    x = linear(h, matrix, numbers(options["linear_bias"]))
    w = np.ones(300)
    wq = w * wanted
    A, lse = wq.sum(axis=1, keepdims=True), log_sum_exp(x)
    u = np.broadcast_to(np.ones(1), 70)[valid, None]
    loss = losses(wq, x, lse).sum()
    d = u * gradient(A, softmax(x, lse), wq)
    gradients = {name: a @ b for name, (a, b) in linear_gradients(d, h, matrix).items()}
    gradients["input"] = scatter(gradients["input"], valid)
    gradients["linear_bias"] = gradients["linear_bias"][:, 0]
    return loss, {name: gradients[name] for name in ['input', 'linear_weight', 'linear_bias']}


expected_loss, expected_gradients = expected()

# --- the call

def require_gradients(batch):
    for tensor in batch.differentiated.values():
        tensor.requires_grad_(tensor.is_floating_point())


def upstream_for(loss, batch):
    return None if batch.upstream is None else batch.upstream.to(loss.dtype)


def eager(function, batch):
    require_gradients(batch)
    loss = function(batch.input, batch.target, **batch.options)
    yield loss
    loss.backward(upstream_for(loss, batch))
    yield batch.input.grad


batch = SimpleNamespace(input=hidden, target=target, options=options, upstream=upstream, differentiated={"input": hidden, "linear_weight": linear_weight, "linear_bias": linear_bias})
kept = hidden.clone()
steps = eager(loss_function, batch)
loss = next(steps)
found = next(steps)
gradients = {"input": found, "linear_weight": linear_weight.grad, "linear_bias": linear_bias.grad}

print("expected loss", *expected_loss.reshape(-1).tolist()[:20])
print("found loss", *loss.detach().reshape(-1).tolist()[:20])
difference = (loss.detach().double() - torch.as_tensor(expected_loss)).abs()
print("largest difference of the loss", difference.max().item() if loss.numel() else "none, it is empty")

for name, expected_gradient in expected_gradients.items():
    quantity = "gradient" if name == "input" else f"gradient of {name}"
    if gradients[name] is None:
        print("found no", quantity)
        continue
    found_gradient, expected_gradient = gradients[name].detach().double(), torch.as_tensor(expected_gradient)
    difference = (found_gradient - expected_gradient).abs().nan_to_num(torch.inf)
    for i in difference.reshape(-1).topk(min(5, difference.numel())).indices:
        where = tuple(n.item() for n in torch.unravel_index(i, difference.shape))
        print(quantity, "at", list(where), "expected", expected_gradient[where].item(), "found", found_gradient[where].item())

if not torch.equal(kept.nan_to_num(), hidden.detach().nan_to_num()):
    print("the hidden states were overwritten")
