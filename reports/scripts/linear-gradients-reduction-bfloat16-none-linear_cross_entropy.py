"""linear-gradients/reduction[bfloat16-none], linear_cross_entropy 2.13.0+cpu

The loss of hidden states times a matrix, plus a bias, is that of the logits which these give, and hidden states, matrix and bias get its gradients by the chain rule.
https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.linear_cross_entropy.html
https://github.com/apple/ml-cross-entropy/issues/52
https://arxiv.org/abs/2411.09009
https://arxiv.org/abs/2410.10989

With --anomaly autograd names the operation whose backward pass returned NaN.
"""

import sys
from types import SimpleNamespace

import numpy as np
import torch

if "--anomaly" in sys.argv:
    torch.autograd.set_detect_anomaly(True)

# --- the loss

# --- linear_cross_entropy.py
"""``torch.nn.functional.linear_cross_entropy`` as it comes: linear, then cross_entropy, with all logits in memory."""


import torch
import torch.nn.functional as F


MISSING = (
    "" if hasattr(F, "linear_cross_entropy") else f"torch {torch.__version__} has no linear_cross_entropy; 2.13 does"
)


def linear_cross_entropy(hidden, linear_weight, target, **options):
    return F.linear_cross_entropy(hidden, linear_weight, target, **options)
# ---

fused = linear_cross_entropy


def loss_function(input, target, **options):
    return fused(input, options.pop("linear_weight"), target, **options)

# --- the case

hidden = torch.tensor([
    -0.267578125, -2.109375, 1.078125, 1.5234375, -0.75390625, 0.5546875, 0.435546875, 0.828125,
    0.671875, -2.5, 0.19140625, 0.26171875, 0.10986328125, -0.49609375, 1.9921875, 0.1171875,
    -0.482421875, -1.6640625, -0.154296875, -0.08154296875, 0.275390625, 1.0703125, 0.78515625, 0.042724609375,
    -0.6328125, -0.5625, -0.64453125, 0.48046875, 0.84375, 2.46875, 0.1787109375, 0.84765625,
    -0.404296875, 1.453125, -0.10009765625, -0.169921875, 0.8515625, -0.392578125, -0.52734375, -0.248046875,
    -1.359375, -0.7890625, -0.1259765625, -1.0234375, -0.2373046875, -1.7578125, -0.314453125, 1.046875,
    0.11376953125, -0.390625, 0.453125, -0.45703125, 0.431640625, -2.15625,
], dtype=torch.bfloat16).reshape((9, 6))
target = torch.tensor([
    11, -100, 7, 7, 11, 4, -100, 9,
    8,
], dtype=torch.int64).reshape((9,))
linear_weight = torch.tensor([
    -0.81640625, -1.4921875, 0.002685546875, 0.703125, -1.0, -0.3828125, -1.9765625, 0.4375,
    1.8828125, -0.58984375, -1.0859375, -2.0625, -1.4921875, 0.1318359375, -1.828125, -2.203125,
    -1.2734375, -0.32421875, 1.2734375, -0.640625, -1.234375, 0.5234375, 1.5859375, 0.44921875,
    2.734375, -1.671875, -1.4765625, -1.234375, 0.94921875, -0.703125, 1.2734375, -2.21875,
    -0.87890625, -1.4609375, 2.46875, 0.09765625, -1.4375, -0.63671875, -1.3203125, -0.2158203125,
    -1.4765625, -1.328125, -2.4375, -1.8828125, -2.296875, 0.1455078125, -2.203125, -2.125,
    0.51171875, -0.2890625, -0.60546875, 0.380859375, 0.515625, -1.953125, 0.5078125, -2.34375,
    0.7265625, -1.8984375, 0.921875, 0.220703125, -1.078125, -0.2431640625, 1.625, 1.5703125,
    -1.109375, -0.74609375, -0.08642578125, -0.52734375, 1.078125, -0.96484375, -0.08349609375, 0.07470703125,
], dtype=torch.bfloat16).reshape((12, 6))
options = {"ignore_index": -100, "reduction": 'none', "linear_weight": linear_weight}
upstream = torch.tensor([
    1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0,
    1.0,
], dtype=torch.bfloat16).reshape((9,))

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
    wanted = one_hot(t, 12)
    h, matrix = numbers(hidden)[valid], numbers(options["linear_weight"])
    x = linear(h, matrix, None)
    w = np.ones(12)
    wq = w * wanted
    A, lse = wq.sum(axis=1, keepdims=True), log_sum_exp(x)
    u = np.broadcast_to(numbers(upstream).reshape(-1), 9)[valid, None]
    loss = scatter(losses(wq, x, lse), valid).reshape((9,))
    d = u * gradient(A, softmax(x, lse), wq)
    gradients = {name: a @ b for name, (a, b) in linear_gradients(d, h, matrix).items()}
    gradients["input"] = scatter(gradients["input"], valid)
    gradients["linear_bias"] = gradients["linear_bias"][:, 0]
    return loss, {name: gradients[name] for name in ['input', 'linear_weight']}


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


batch = SimpleNamespace(input=hidden, target=target, options=options, upstream=upstream, differentiated={"input": hidden, "linear_weight": linear_weight})
kept = hidden.clone()
steps = eager(loss_function, batch)
loss = next(steps)
found = next(steps)
gradients = {"input": found, "linear_weight": linear_weight.grad}

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
