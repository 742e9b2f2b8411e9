"""modes/per-sample-uint8, native 2.13.0+cpu

Loss and gradient do not depend on whether a graph is recorded, on a second backward pass, on function transforms, on automatic mixed precision or on compilation.
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
    -0.4422799348831177, -0.2056463062763214, -1.412966012954712, 1.0026941299438477, -0.5807356238365173, 0.05876851826906204, 0.6686151623725891, 0.9645606875419617,
    -0.8461133241653442, 0.773849606513977, -0.3418373167514801, -2.399381399154663, 0.6987627148628235, 0.4128260016441345, 0.6504375338554382, -1.1239100694656372,
    -0.6750850677490234, -1.2345408201217651, -0.9494500756263733, 0.019673293456435204, -0.7184396982192993, 0.10625904053449631, 1.8422049283981323, -1.6175481081008911,
    -0.4034249782562256, 0.34137991070747375, 0.012282541953027248, -0.3060242235660553, 2.3349006175994873, 0.7299153804779053, 0.014837722294032574, 0.48576632142066956,
    1.3468351364135742, 0.6305192112922668, -1.0502166748046875, 0.9540051817893982, 1.0657682418823242, -0.7984908819198608, -0.14142708480358124, -0.002496692119166255,
    -0.36857733130455017, 1.475367784500122, -0.4912417531013489, -1.2079066038131714, 1.1026275157928467, 0.08191703259944916, 1.5639801025390625, -0.3938998878002167,
    -0.40241169929504395, -1.0306915044784546, -0.20245617628097534, 0.2703835964202881, 1.6565114259719849, -0.947785496711731, 0.717183530330658, -0.29243743419647217,
    -0.24077816307544708, 1.1502933502197266, -1.402438998222351, -1.0290594100952148, -0.6401644349098206, -0.31083911657333374, -0.816257119178772,
], dtype=torch.float32).reshape((9, 7))
target = torch.tensor([
    255, 6, 3, 255, 6, 6, 0, 5,
    255,
], dtype=torch.uint8).reshape((9,))
options = {"ignore_index": 255, "reduction": 'none'}
upstream = torch.tensor([
    1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0,
    1.0,
], dtype=torch.float32).reshape((9,))

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
    valid = ~np.isin(t, [255])
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

def vmap(function, batch):
    """The loss once per position, each call with a batch of one, all at once."""

    def one(x, target):
        loss = function(x.unsqueeze(0), target.unsqueeze(0), **batch.options)
        return loss.sum(), loss.squeeze(0)

    gradient, loss = torch.func.vmap(torch.func.grad(one, has_aux=True))(batch.input, batch.target)
    yield loss
    yield gradient


batch = SimpleNamespace(input=logits, target=target, options=options)
kept = logits.clone()
steps = vmap(loss_function, batch)
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
