"""logit-range/scale[hundred-bfloat16], native 2.13.0+cpu

The loss depends on differences of logits only, so large, tiny and equal logits and any offset per position give the same accuracy, neither overflow nor a clamp, in loss and gradient.
https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
https://doi.org/10.1093/imanum/draa038
https://github.com/pytorch/pytorch/issues/11752

With --anomaly autograd names the operation whose backward pass returned NaN.
"""

import sys
from types import SimpleNamespace

import numpy as np
import torch

if "--anomaly" in sys.argv:
    torch.autograd.set_detect_anomaly(True)

# --- the loss

from torch.nn.functional import cross_entropy

loss_function = cross_entropy

# --- the case

logits = torch.tensor([
    -219.0, -26.5, 51.5, 134.0, 27.875, 161.0, -16.0, -55.5,
    7.1875, 30.0, -2.3125, 86.0, -23.25, 78.0, -122.5, 55.75,
    84.0, -102.0, -135.0, -30.875, 92.0, 8.3125, 43.0, -136.0,
    59.0, 61.75, -211.0, 148.0, -62.5, 40.25, -34.75, -130.0,
    -223.0, 39.0, -15.625, 14.375, -65.5, -103.5, -115.0, -73.0,
    147.0, 4.90625, -65.0, -98.0, -73.0, -134.0, -61.75, -95.5,
    58.75, -12.75, 76.0, -181.0, 176.0, -184.0, 19.25, 14.6875,
    -29.0, 151.0, 115.0, 174.0, -11.125, 125.0, 117.5,
], dtype=torch.bfloat16).reshape((9, 7))
target = torch.tensor([
    6, -100, 6, 5, 3, -100, 0, 1,
    5,
], dtype=torch.int64).reshape((9,))
options = {"ignore_index": -100, "reduction": 'none'}
upstream = torch.tensor([
    1.6796875, -0.8984375, 1.765625, 1.734375, 1.328125, 1.859375, -0.93359375, 0.69140625,
    -0.9140625,
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


def numbers(tensor):
    return tensor.detach().double().numpy()


@np.errstate(all="ignore")
def expected():
    """Loss and gradient, with the ignored positions deleted."""
    t = target.numpy().reshape(-1).astype(np.int64)
    valid = ~np.isin(t, [-100])
    t = t[valid]
    wanted = one_hot(t, 7)
    x = numbers(logits)[valid]
    w = np.ones(7)
    wq = w * wanted
    A, lse = wq.sum(axis=1, keepdims=True), log_sum_exp(x)
    u = np.broadcast_to(numbers(upstream).reshape(-1), 9)[valid, None]
    loss = scatter(losses(wq, x, lse), valid).reshape((9,))
    d = u * gradient(A, softmax(x, lse), wq)
    return loss, {"input": scatter(d, valid)}


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


batch = SimpleNamespace(input=logits, target=target, options=options, upstream=upstream, differentiated={"input": logits})
kept = logits.clone()
steps = eager(loss_function, batch)
loss = next(steps)
found = next(steps)
gradients = {"input": found}

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

if not torch.equal(kept.nan_to_num(), logits.detach().nan_to_num()):
    print("the logits were overwritten")
