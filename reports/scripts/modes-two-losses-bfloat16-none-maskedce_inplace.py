"""modes/two-losses[bfloat16-none], maskedce_inplace 2026.11

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
    2.421875, -0.875, 2.125, -0.6640625, 1.15625, -0.0004520416259765625, 0.1220703125, 0.31640625,
    -1.15625, -2.328125, 0.10546875, -0.294921875, 0.6640625, -1.1328125, 0.90234375, 0.54296875,
    -0.1337890625, -1.5390625, 1.4765625, -0.5703125, -0.671875, -0.8359375, -2.046875, -0.6328125,
    0.107421875, -0.09130859375, 0.057861328125, -0.6640625, -2.0, -0.97265625, -0.51953125, 1.5,
    1.125, -0.76953125, -0.375, 0.255859375, 1.6328125, 1.2421875, 0.91796875, -1.0703125,
    -0.5390625, 1.0859375, -0.275390625, 1.46875, 0.9921875, 0.3203125, -0.392578125, 1.0390625,
    -2.8125, -0.349609375, 0.92578125, 1.0, 0.1865234375, 0.859375, -0.1376953125, 0.390625,
    -0.341796875, 0.75390625, 0.263671875, 0.27734375, 1.2734375, -0.98046875, -0.380859375,
], dtype=torch.bfloat16).reshape((9, 7))
target = torch.tensor([
    -100, 6, 2, -100, 6, 2, 1, 5,
    -100,
], dtype=torch.int64).reshape((9,))
options = {"ignore_index": -100, "reduction": 'none'}
upstream = torch.tensor([
    -1.125, 1.53125, -0.890625, -1.8515625, 0.76171875, 1.625, 1.796875, -0.59375,
    -1.5234375,
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
