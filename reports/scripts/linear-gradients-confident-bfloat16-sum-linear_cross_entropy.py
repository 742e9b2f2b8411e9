"""linear-gradients/confident[bfloat16-sum], linear_cross_entropy 2.13.0+cpu

The loss of hidden states times a matrix, plus a bias, is that of the logits which these give, and hidden states, matrix and bias get its gradients by the chain rule.
(a target that stands out by far leaves a small loss, in which logits rounded to a half type show)
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
    -1.2421875, 0.79296875, 0.2314453125, -0.7265625, -1.09375, -1.75, 0.53515625, 0.03515625,
    1.3828125, 0.56640625, -0.70703125, -0.5703125, 1.3125, 0.70703125, -0.1123046875, 0.51953125,
    1.484375, 1.0234375, 1.5078125, -0.69921875, 0.431640625, -0.265625, 0.87109375, 0.392578125,
    1.0, -0.30859375, -1.96875, -0.5078125, -1.0, -0.84375, 0.5546875, -1.1640625,
    0.1572265625, -0.1748046875, -1.7578125, 0.54296875, -2.609375, -1.546875, 1.015625, -0.890625,
    0.76171875, 1.6484375, -1.8828125, 1.328125, -0.73828125, -0.671875, 0.57421875, 0.140625,
    -1.3125, -1.5859375, 0.52734375, -0.111328125, -2.546875, 0.71484375,
], dtype=torch.bfloat16).reshape((9, 6))
target = torch.tensor([
    11, -100, 4, 2, 8, 9, -100, 1,
    3,
], dtype=torch.int64).reshape((9,))
linear_weight = torch.tensor([
    -10.0, -5.0, 1.9609375, 4.21875, -0.09521484375, -2.453125, -7.59375, -4.09375,
    5.90625, -8.4375, 0.546875, -8.875, -1.5546875, -5.71875, -0.171875, -4.40625,
    2.25, 4.21875, 6.46875, -1.15625, 1.9453125, -4.125, 4.03125, -7.125,
    -4.6875, -2.703125, 2.84375, -4.75, 12.6875, 4.9375, -9.3125, 0.1416015625,
    -7.65625, -0.87109375, -3.671875, -9.4375, 6.125, -5.75, -5.28125, -5.125,
    -9.9375, 7.25, -2.96875, 1.4140625, -1.0390625, -4.875, -3.234375, 8.1875,
    0.56640625, 3.421875, 4.375, -11.75, 1.578125, 3.828125, 5.09375, -4.5,
    7.125, 4.59375, 4.96875, 1.8203125, 5.21875, -0.73046875, -3.453125, 7.90625,
    -4.0, -5.15625, -3.859375, -2.140625, -10.0625, -2.109375, -8.5625, -10.0,
], dtype=torch.bfloat16).reshape((12, 6))
options = {"ignore_index": -100, "reduction": 'sum', "linear_weight": linear_weight}
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
    wanted = one_hot(t, 12)
    h, matrix = numbers(hidden)[valid], numbers(options["linear_weight"])
    x = linear(h, matrix, None)
    w = np.ones(12)
    wq = w * wanted
    A, lse = wq.sum(axis=1, keepdims=True), log_sum_exp(x)
    u = np.broadcast_to(np.ones(1), 9)[valid, None]
    loss = losses(wq, x, lse).sum()
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
