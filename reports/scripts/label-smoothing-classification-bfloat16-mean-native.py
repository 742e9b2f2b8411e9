"""label-smoothing/classification[bfloat16-mean], native 2.13.0+cpu

With smoothing s the target distribution is (1 - s) one-hot plus s / C for every class, at the positions that count and nowhere else; s = 0 is the plain loss, and s = 1 ignores what the target is.
https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
https://arxiv.org/abs/1512.00567
https://github.com/pytorch/pytorch/issues/73205
https://github.com/pytorch/pytorch/issues/69339

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
    -1.4375, 0.0111083984375, 1.78125, 0.13671875, 0.1533203125, 0.7265625, -0.095703125, -0.004730224609375,
    0.3984375, 0.07275390625, -0.61328125, -1.0625, -0.55078125, 0.1259765625, -0.58984375, -1.140625,
    0.10498046875, -1.4765625, 0.828125, -0.51953125, 0.2451171875, 1.359375, 0.734375, 0.64453125,
    -0.9375, -0.9375, 0.1318359375, -1.5625, -1.3828125, 0.71484375, 0.77734375, -1.328125,
    -0.9453125, -0.21484375, -0.2060546875, -0.7734375, -0.2451171875, 0.045166015625, 0.494140625, -1.4140625,
    0.890625, 1.1484375, -0.66015625, 0.470703125, 0.314453125, 1.3671875, -0.6640625, 0.3828125,
    -0.59375, -0.94921875, 0.0211181640625, -0.39453125, 3.0, -0.6484375, -1.03125, 0.79296875,
    -0.00927734375, -1.6796875, -0.68359375, 0.1796875, -1.65625, 1.4921875, 0.40234375,
], dtype=torch.bfloat16).reshape((9, 7))
target = torch.tensor([
    6, 0, 0, 1, 3, 0, 1, 3,
    0,
], dtype=torch.int64).reshape((9,))
options = {"reduction": 'mean', "label_smoothing": 0.1}
upstream = torch.tensor([-1.3828125], dtype=torch.bfloat16).reshape(())

# --- the right answer, by the definition

def one_hot(t, classes):
    """(P, C): 1 at each position's target class t, 0 elsewhere."""
    return (np.arange(classes) == t[:, None]).astype(np.float64)


def smoothed(wanted, s):
    """The target distribution q: the wanted one, with a share s spread evenly over the classes."""
    return s / max(wanted.shape[1], 1) + wanted * (1 - s)


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
    wq = w * smoothed(wanted, 0.1)
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
