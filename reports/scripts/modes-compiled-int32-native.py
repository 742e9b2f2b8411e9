"""modes/compiled-int32, native 2.13.0+cpu

Loss and gradient do not depend on whether a graph is recorded, on a second backward pass, on function transforms, on automatic mixed precision or on compilation.
(what eager refuses, the compiled loss refuses; what it takes, the compiled loss takes)
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
    1.2165324687957764, 2.100334644317627, 1.3481988906860352, -0.3503122627735138, -0.9942545294761658, -0.4488782286643982, 0.34537556767463684, -1.9531021118164062,
    -0.2529362738132477, 0.17214679718017578, 0.13447439670562744, -0.7293928265571594, -0.1293434351682663, 0.30952003598213196, 1.1301554441452026, 0.5664998888969421,
    -2.420517921447754, -0.13722075521945953, 0.4668540954589844, 1.844854474067688, -0.09846999496221542, 0.47274690866470337, 0.1976625919342041, 0.12805424630641937,
    0.15968403220176697, -0.46181508898735046, 1.0135866403579712, -0.2183438241481781, 1.1408257484436035, -0.23899386823177338, -0.4758293330669403, 1.861317753791809,
    -0.4783726930618286, 0.6721026301383972, 1.3054585456848145, 0.1379922330379486, 0.07209429889917374, 1.3362326622009277, -0.9353019595146179, 1.0341299772262573,
    1.465207576751709, 1.332777976989746, -1.2560842037200928, -0.09700494259595871, -0.35305124521255493, 0.7846019864082336, -0.5478509068489075, 1.2742854356765747,
    -0.3748168349266052, -1.3595291376113892, 1.0042723417282104, 0.038524024188518524, -1.225023865699768, -0.6608538031578064, 1.0025161504745483, 0.35896244645118713,
    0.35769253969192505, 0.3023800551891327, 1.7199510335922241, 1.092264175415039, 0.31983280181884766, 0.10680587589740753, -0.6417771577835083,
], dtype=torch.float32).reshape((9, 7))
target = torch.tensor([
    -100, 6, 3, -100, 6, 6, 0, 3,
    -100,
], dtype=torch.int32).reshape((9,))
options = {"ignore_index": -100, "reduction": 'mean'}
upstream = torch.tensor([-1.545627236366272], dtype=torch.float32).reshape(())

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
