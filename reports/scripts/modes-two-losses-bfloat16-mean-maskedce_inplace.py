"""modes/two-losses[bfloat16-mean], maskedce_inplace 2026.11

Loss and gradient do not depend on whether a graph is recorded, on a second backward pass, on function transforms, on automatic mixed precision or on compilation.
(the second loss on the same logits must find them untouched; https://github.com/unslothai/unsloth/issues/5002, https://github.com/NVIDIA/Megatron-LM/pull/1594)
https://docs.pytorch.org/docs/stable/autograd.html
https://docs.pytorch.org/docs/stable/func.html
https://docs.pytorch.org/docs/stable/amp.html
https://github.com/linkedin/Liger-Kernel/pull/1338

With --anomaly autograd names the operation whose backward pass returned NaN.
"""

import sys
from types import SimpleNamespace

import numpy as np
import torch

if "--anomaly" in sys.argv:
    torch.autograd.set_detect_anomaly(True)

# --- the loss

# --- maskedce_inplace.py
"""maskedce with ``inplace=True``: the gradient takes no memory, because it overwrites the logits, as a fused kernel's does."""


from maskedce import masked_cross_entropy


def cross_entropy(input, target, **options):
    """A batch of the suite is a leaf, which the loss refuses to overwrite; a view of it is not."""
    return masked_cross_entropy(input.view_as(input), target, inplace=True, **options)
# ---

loss_function = cross_entropy

# --- the case

logits = torch.tensor([
    0.76171875, 0.69921875, -0.6484375, -0.310546875, 0.734375, -0.291015625, -1.140625, 0.30859375,
    0.99609375, -0.171875, 0.77734375, -1.1796875, 0.5625, -0.2060546875, 1.7265625, -0.150390625,
    -0.326171875, -0.349609375, 1.609375, -0.5390625, -0.388671875, 0.451171875, 1.84375, 0.056640625,
    -0.10791015625, -0.130859375, -1.6875, -1.46875, 0.6640625, -0.031982421875, 1.65625, 1.0234375,
    0.349609375, -1.046875, -0.32421875, 0.7578125, -1.6015625, -0.7109375, -0.1416015625, -0.95703125,
    0.67578125, -1.5703125, 0.4921875, -0.8828125, -1.78125, -0.484375, -0.80078125, -0.330078125,
    -1.78125, -1.09375, 0.076171875, -0.7734375, 0.66015625, -0.25, -0.251953125, -0.038330078125,
    0.796875, 1.6953125, -0.2412109375, 1.359375, -1.5625, -0.263671875, 1.40625,
], dtype=torch.bfloat16).reshape((9, 7))
target = torch.tensor([
    -100, 6, 3, -100, 5, 3, 1, 6,
    -100,
], dtype=torch.int64).reshape((9,))
options = {"ignore_index": -100, "reduction": 'mean'}
upstream = torch.tensor([-1.6484375], dtype=torch.bfloat16).reshape(())

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
    wanted = one_hot(t, 7)
    x = numbers(logits)[valid]
    w = np.ones(7)
    wq = w * wanted
    A, lse = wq.sum(axis=1, keepdims=True), log_sum_exp(x)
    u = np.broadcast_to(numbers(upstream).reshape(-1), 9)[valid, None]
    D = denominator('mean', None, w, t, 9)
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


def two_losses(function, batch):
    """Two calls, then both backward passes. Their gradients are equal, and halving the sum is exact."""
    require_gradients(batch)
    other = function(batch.input, batch.target, **batch.options)
    loss = function(batch.input, batch.target, **batch.options)
    yield loss
    other.backward(upstream_for(loss, batch))
    loss.backward(upstream_for(loss, batch))
    yield None if batch.input.grad is None else batch.input.grad / 2


batch = SimpleNamespace(input=logits, target=target, options=options, upstream=upstream, differentiated={"input": logits})
kept = logits.clone()
steps = two_losses(loss_function, batch)
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
