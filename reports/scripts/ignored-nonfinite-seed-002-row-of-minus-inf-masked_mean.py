"""ignored-nonfinite/seed-002-row-of-minus-inf, masked_mean 2.13.0+cpu

The logits of an ignored position reach neither the loss nor any gradient, even where they are infinite, NaN or huge.
(seed 002: the loss is right, but the printed gradient of the last row is NaN; the answer is 0)
https://github.com/pytorch/pytorch/issues/11551
https://jkschin.com/blog/2023/cross-entropy-loss-ignore-index/
https://github.com/sooftware/kospeech/issues/37

With --anomaly autograd names the operation whose backward pass returned NaN.
"""

import sys
from types import SimpleNamespace

import numpy as np
import torch

if "--anomaly" in sys.argv:
    torch.autograd.set_detect_anomaly(True)

# --- the loss

# --- masked_mean.py
"""A mask multiplied onto the losses of all positions, then ``.mean()``: often written, and its denominator is wrong.

https://github.com/open-mmlab/mmsegmentation/issues/546 is one of many places where the mean counts the ignored positions.
"""


import torch.nn.functional as F


def cross_entropy(input, target, *, ignore_index=-100, reduction="mean"):
    if reduction != "mean":
        raise ValueError("only the mean is on offer")
    loss = F.cross_entropy(input, target, ignore_index=ignore_index, reduction="none")
    mask = target != ignore_index
    return (loss * mask.to(loss.dtype)).mean()


_SOME_IGNORED = (
    "accuracy/many-positions",
    "ignored-nonfinite/seed-002-row-of-minus-inf",
    "ignored-nonfinite/seed-002-vocabulary-mask",
    "ignored-nonfinite/seed-002-vocabulary-mask-by-the-advice",
    "ignored-positions/default-value",
    "ignored-positions/dtype",
    "ignored-positions/ignored-class-stays-in-the-softmax",
    "ignored-positions/ignored-in-a-later-block",
    "ignored-positions/many-classes-tail",
    "ignored-positions/one-kept-of-three",
    "ignored-positions/place",
    "ignored-positions/seed-000-token-classification-flattened",
    "ignored-positions/seed-001-padding-inside-the-class-range",
    "ignored-positions/seed-001-unlabelled",
    "ignored-positions/seed-002-three-rows-of-ones",
    "ignored-positions/seed-003-padded-targets",
    "ignored-positions/three-kept-of-five",
    "ignored-positions/unequal-halves",
    "ignored-positions/value",
    "layouts/dtype",
    "layouts/large",
    "layouts/logits",
    "lm-constrained",
    "lm-first-step",
    "logit-range",
    "micro-batches",
    "minus-infinity/column-with-ignored-positions",
    "modes",
    "tails/among-ignored",
    "unclaimed-options",
)


_DENOMINATOR = {
    "fault": "value",
    "reason": "The mean divides by all positions, the ignored ones included; it is too small by the share that is kept. Divide by mask.sum().",
    "link": "https://github.com/open-mmlab/mmsegmentation/issues/546",
}
# ---

loss_function = cross_entropy

# --- the case

logits = torch.tensor([
    1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0,
    1.0, 1.0, float("-inf"), float("-inf"), float("-inf"), float("-inf"), float("-inf"),
], dtype=torch.float32).reshape((3, 5))
target = torch.tensor([1, 2, -1], dtype=torch.int64).reshape((3,))
options = {"ignore_index": -1}
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
    valid = ~np.isin(t, [-1])
    t = t[valid]
    wanted = one_hot(t, 5)
    x = numbers(logits)[valid]
    w = np.ones(5)
    wq = w * wanted
    A, lse = wq.sum(axis=1, keepdims=True), log_sum_exp(x)
    u = np.broadcast_to(np.ones(1), 3)[valid, None]
    D = denominator('mean', None, w, t, 3)
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
