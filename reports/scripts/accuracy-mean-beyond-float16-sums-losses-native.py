"""accuracy/mean-beyond-float16-sums[losses], native 2.13.0+cpu

Loss and gradient are as accurate as a computation in float32, or float64 for float64, whose result is rounded once, with many positions, with many classes and with confident positions.
(two large losses, or a few large weights: their sum or that of the weights is beyond 65504, their mean is not)
https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
https://epubs.siam.org/doi/10.1137/0914050
https://github.com/pytorch/pytorch/issues/55657
https://github.com/linkedin/Liger-Kernel/pull/1329

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

logits = torch.tensor([60000.0, 0.0, 0.0, 60000.0], dtype=torch.float16).reshape((2, 2))
target = torch.tensor([1, 0], dtype=torch.int64).reshape((2,))
options = {"ignore_index": -100, "reduction": 'mean'}
upstream = torch.tensor([-1.900390625], dtype=torch.float16).reshape(())

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


def denominator(reduction, normalizer, w, t, positions):
    """What the sum of the losses is divided by. t: the target classes, None where probabilities are given."""
    if reduction != "mean":
        return 1.0
    if normalizer is not None:
        return float(normalizer)
    return float(positions) if t is None else w[t].sum()


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
    wanted = one_hot(t, 2)
    x = numbers(logits)[valid]
    w = np.ones(2)
    wq = w * wanted
    A, lse = wq.sum(axis=1, keepdims=True), log_sum_exp(x)
    u = np.broadcast_to(numbers(upstream).reshape(-1), 2)[valid, None]
    D = denominator('mean', None, w, t, 2)
    loss, u = losses(wq, x, lse).sum() / D, u / D
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
