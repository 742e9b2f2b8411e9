"""class-weights/classification[float16-none], native 2.13.0+cpu

Each position's loss is scaled by the weight of its target, and the mean divides by the sum of the weights of the targets that count, whatever that sum is unless it is zero.
https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
https://github.com/pytorch/pytorch/issues/25571
https://github.com/ROCm/AMDMIGraphX/pull/3008

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
    -1.5068359375, -0.69970703125, -1.173828125, -0.556640625, 1.8017578125, -0.53955078125, -0.273193359375, -1.8662109375,
    0.29443359375, 0.86279296875, -0.36572265625, -0.2257080078125, 0.1810302734375, -1.13671875, 0.318115234375, -0.394775390625,
    -1.3056640625, 0.6611328125, -1.689453125, -0.60986328125, -1.3037109375, 0.291015625, 0.50146484375, -1.07421875,
    -1.13671875, -1.814453125, 0.426025390625, -0.65185546875, 1.560546875, -0.2154541015625, 0.7646484375, -0.1484375,
    1.271484375, -0.15771484375, 0.66845703125, -0.64111328125, -0.6181640625, -0.931640625, -0.91015625, -0.3447265625,
    0.27685546875, -0.0968017578125, 1.8125, -0.99072265625, -0.5947265625, 0.347412109375, -1.9990234375, 0.4189453125,
    1.2373046875, -2.24609375, -0.7177734375, -1.8623046875, -0.71875, -1.595703125, 1.3173828125,
], dtype=torch.float16).reshape((11, 5))
target = torch.tensor([
    4, 3, 0, 4, 4, 1, 4, 4,
    1, 2, 1,
], dtype=torch.int64).reshape((11,))
weight = torch.tensor([0.82666015625, 1.4345703125, 0.728515625, 1.8828125, 1.958984375], dtype=torch.float16).reshape((5,))
options = {"weight": weight, "reduction": 'none'}
upstream = torch.tensor([
    0.90087890625, 2.0, -1.2158203125, 1.1181640625, -1.4794921875, 1.4990234375, -0.9052734375, 0.53173828125,
    1.83203125, -0.63232421875, -1.9130859375,
], dtype=torch.float16).reshape((11,))

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
    wanted = one_hot(t, 5)
    x = numbers(logits)[valid]
    w = numbers(options["weight"])
    wq = w * wanted
    A, lse = wq.sum(axis=1, keepdims=True), log_sum_exp(x)
    u = np.broadcast_to(numbers(upstream).reshape(-1), 11)[valid, None]
    loss = scatter(losses(wq, x, lse), valid).reshape((11,))
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
