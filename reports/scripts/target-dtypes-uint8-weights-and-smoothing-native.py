"""target-dtypes/uint8-weights-and-smoothing, native 2.13.0+cpu

Targets of dtype uint8 give the same as those of int64, with 255 ignored like any other value; int32 is taken or refused by convention, but never misread.
https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
https://github.com/pytorch/pytorch/issues/45540
https://github.com/pytorch/pytorch/issues/89369

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
    0.9764712452888489, -1.0076236724853516, -1.5087401866912842, -0.9336599707603455, 1.06686532497406, 0.20980127155780792, 0.49503225088119507, -0.1519422084093094,
    0.9722288846969604, -1.281243085861206, -0.07603735476732254, -1.5890148878097534, -0.11946884542703629, -0.4171018600463867, 0.711661696434021, -0.421204537153244,
    1.2765871286392212, 0.003466788213700056, 1.0942662954330444, -1.1604485511779785, 1.1744439601898193, -2.282310724258423, -0.13707010447978973, -0.817404568195343,
    -0.2833802103996277, -0.18372663855552673, -1.9383158683776855, 0.6155356168746948, -0.4081648588180542, 0.5861234664916992, -0.15055929124355316, 0.8088849782943726,
    -0.1605163961648941, 1.2229011058807373, -0.5985023975372314, -1.0735392570495605, 1.1734755039215088, 0.2670252323150635, 0.7586511373519897, 0.2809772789478302,
    0.5456368923187256, 1.2847143411636353, 1.1438285112380981, 1.0735797882080078, -1.8107171058654785, -1.2241945266723633, -1.0618058443069458, -1.178511381149292,
    0.05732808634638786, -2.1777851581573486, 0.5453370809555054, -0.030942492187023163, 0.4210699796676636, -0.3642158806324005, 0.5622301697731018, -0.6416798830032349,
    -0.058013174682855606, 0.7134520411491394, -0.28753888607025146, -0.8582315444946289, 0.04864661395549774, 0.23216111958026886, -0.15425297617912292,
], dtype=torch.float32).reshape((9, 7))
target = torch.tensor([
    6, 2, 255, 1, 4, 5, 1, 3,
    255,
], dtype=torch.uint8).reshape((9,))
weight = torch.tensor([0.8946611285209656, 1.687260627746582, 1.4529811143875122, 0.40681612491607666, 1.856712818145752, 0.49637526273727417, 0.9363076090812683], dtype=torch.float32).reshape((7,))
options = {"weight": weight, "ignore_index": 255, "reduction": 'mean', "label_smoothing": 0.1}
upstream = torch.tensor([-1.6885145902633667], dtype=torch.float32).reshape(())

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
    valid = ~np.isin(t, [255])
    t = t[valid]
    wanted = one_hot(t, 7)
    x = numbers(logits)[valid]
    w = numbers(options["weight"])
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
