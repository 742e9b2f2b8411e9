"""modes/compiled-uint8, native 2.13.0+cpu

Loss and gradient do not depend on whether a graph is recorded, on a second backward pass, on function transforms, on automatic mixed precision or on compilation.
(eager takes uint8 targets, so what is compiled does, too)
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

from torch.nn.functional import cross_entropy

loss_function = cross_entropy

# --- the case

logits = torch.tensor([
    -0.5961310267448425, 0.4041841924190521, 0.13626287877559662, 1.0442230701446533, 0.4211784303188324, 0.5717418193817139, -0.12476910650730133, -1.128677487373352,
    -0.04326298460364342, 1.933445692062378, 1.4064593315124512, -1.6484235525131226, -0.047361698001623154, -0.7658542990684509, 3.048957347869873, 1.3417320251464844,
    1.5788440704345703, -1.3232964277267456, 0.5244781970977783, -0.4018983244895935, -0.23415426909923553, -0.619260847568512, -0.9794172048568726, 0.053613170981407166,
    -0.837679386138916, -0.091142438352108, 0.1492341309785843, 0.06027957797050476, 1.3145350217819214, -1.7833436727523804, -0.36780956387519836, 0.5203100442886353,
    -0.85679030418396, -1.6905205249786377, 0.4597413241863251, -2.2059531211853027, -1.9933013916015625, -0.38815826177597046, -1.0735975503921509, 0.20247159898281097,
    0.44651249051094055, 0.10611432045698166, -2.129638671875, 1.0602751970291138, 0.6997734904289246, -1.0010501146316528, -0.8254190683364868, 0.926242470741272,
    -0.6334066390991211, -0.18347488343715668, 1.2953989505767822, 0.4174169600009918, 0.630096435546875, 0.8221895098686218, 0.2265046089887619, -1.732690453529358,
    -0.25568050146102905, -1.7912441492080688, 0.9145893454551697, 0.04311726614832878, 0.981022298336029, 0.40495622158050537, -0.17381849884986877,
], dtype=torch.float32).reshape((9, 7))
target = torch.tensor([
    255, 6, 4, 255, 5, 4, 6, 2,
    255,
], dtype=torch.uint8).reshape((9,))
options = {"ignore_index": 255, "reduction": 'mean'}
upstream = torch.tensor([1.1052014827728271], dtype=torch.float32).reshape(())

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
    valid = ~np.isin(t, [255])
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


def eager(function, batch):
    require_gradients(batch)
    loss = function(batch.input, batch.target, **batch.options)
    yield loss
    loss.backward(upstream_for(loss, batch))
    yield batch.input.grad


def compiled(function, batch):
    torch.compiler.reset()

    def call(*arguments, **options):  # up to torch 2.6 its own functions compile only inside others
        return function(*arguments, **options)

    return torch.compile(call)


batch = SimpleNamespace(input=logits, target=target, options=options, upstream=upstream, differentiated={"input": logits})
kept = logits.clone()
steps = eager(compiled(loss_function, batch), batch)
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
