"""linear-ignored/dtype[bfloat16-none], linear_cross_entropy 2.13.0+cpu

The hidden state of an ignored position, even where it is infinite, NaN or huge, reaches neither the loss nor the gradient of the matrix or of the bias, and its own gradient is exactly zero.
https://github.com/pytorch/pytorch/pull/176338
https://github.com/pytorch/pytorch/issues/11551
https://github.com/NVIDIA-NeMo/Automodel/issues/3907

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
    float("nan"), float("nan"), float("nan"), float("nan"), float("nan"), 0.1162109375, -0.30859375, 0.75,
    1.7421875, -1.75, 0.91015625, -2.09375, -0.38671875, -0.419921875, -0.16796875, float("nan"),
    float("nan"), float("nan"), float("nan"), float("nan"), float("nan"), float("nan"), float("nan"), float("nan"),
    float("nan"), 0.1982421875, -2.609375, 0.392578125, -0.96875, 1.203125, -1.3515625, -0.037353515625,
    -0.296875, 0.349609375, -0.2236328125, -0.70703125, -0.64453125, 2.0, 0.003753662109375, -0.90234375,
], dtype=torch.bfloat16).reshape((8, 5))
target = torch.tensor([-100, 9, 5, -100, -100, 1, 3, 7], dtype=torch.int64).reshape((8,))
linear_weight = torch.tensor([
    -0.0118408203125, -0.609375, 0.6484375, 1.5546875, 0.9921875, -0.3359375, -0.318359375, -0.55078125,
    -0.1875, -0.46875, -0.82421875, -0.091796875, -1.0859375, -2.1875, 0.490234375, 0.1845703125,
    0.1591796875, -0.072265625, 1.09375, 0.208984375, 1.5859375, -2.234375, -2.265625, 0.99609375,
    0.27734375, -0.1474609375, 1.4296875, -0.453125, 0.1259765625, 1.6484375, -1.28125, -0.92578125,
    -0.3828125, 0.1201171875, -0.65234375, 0.87890625, 1.53125, 0.625, -0.3984375, 0.9375,
    0.138671875, -0.10205078125, -0.061279296875, 0.33203125, 0.5546875, 1.0390625, -1.2109375, -0.60546875,
    0.66015625, 0.90625,
], dtype=torch.bfloat16).reshape((10, 5))
linear_bias = torch.tensor([
    -0.56640625, -0.2333984375, 0.484375, 0.92578125, -0.419921875, 1.8515625, -0.48046875, 0.66796875,
    -2.40625, 0.478515625,
], dtype=torch.bfloat16).reshape((10,))
options = {"ignore_index": -100, "reduction": 'none', "linear_weight": linear_weight, "linear_bias": linear_bias}
upstream = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.bfloat16).reshape((8,))

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
    wanted = one_hot(t, 10)
    h, matrix = numbers(hidden)[valid], numbers(options["linear_weight"])
    x = linear(h, matrix, numbers(options["linear_bias"]))
    w = np.ones(10)
    wq = w * wanted
    A, lse = wq.sum(axis=1, keepdims=True), log_sum_exp(x)
    u = np.broadcast_to(numbers(upstream).reshape(-1), 8)[valid, None]
    loss = scatter(losses(wq, x, lse), valid).reshape((8,))
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
