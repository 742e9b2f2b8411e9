"""all-ignored/one-position, linear_cross_entropy_chunked 2.13.0+cpu

Without a position that counts, the sum is 0, every single loss is 0, the mean is NaN or 0 by convention, and in each case there is a gradient and it is exactly zero.
https://github.com/pytorch/pytorch/issues/70348
https://github.com/pytorch/pytorch/pull/64572
https://github.com/pytorch/xla/pull/3144
https://github.com/huggingface/trl/pull/5826

With --anomaly autograd names the operation whose backward pass returned NaN.
"""

import sys
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
    return fused((input.movedim(1, -1) if input.dim() > 2 else input), torch.eye(input.shape[min(1, input.dim() - 1)], dtype=input.dtype), target, **options)

# --- the case

logits = torch.tensor([0.2441169023513794, -2.2223618030548096, -0.8133219480514526], dtype=torch.float32).reshape((1, 3))
target = torch.tensor([-100], dtype=torch.int64).reshape((1,))
options = {"ignore_index": -100}
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
    wanted = one_hot(t, 3)
    x = numbers(logits)[valid]
    w = np.ones(3)
    wq = w * wanted
    A, lse = wq.sum(axis=1, keepdims=True), log_sum_exp(x)
    u = np.broadcast_to(np.ones(1), 1)[valid, None]
    D = denominator('mean', None, w, t, 1)
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
