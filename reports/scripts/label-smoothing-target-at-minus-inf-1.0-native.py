"""label-smoothing/target-at-minus-inf[1.0], native 2.13.0+cpu

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
    0.41660112142562866, -0.25276780128479004, -0.7741981148719788, 0.5372155904769897, -0.3535347580909729, 0.7956225275993347, 1.964583158493042, 0.7408376932144165,
    0.056395210325717926, -1.3434679508209229, -0.4142554998397827, 0.8700157999992371, -0.529272198677063, -1.310031771659851, -0.4114990830421448, 0.6831069588661194,
    0.474290668964386, -0.7363526821136475, 1.923040509223938, 0.22547505795955658, -0.8722947835922241, 0.48333504796028137, float("-inf"), -0.8104926347732544,
    -1.096921682357788, 0.782120943069458, -0.3723689019680023, 0.17477582395076752, 0.38458946347236633, -0.10908545553684235, -0.09454037994146347, 0.7019408941268921,
    2.4817166328430176, -0.6175136566162109, -1.2878257036209106, 0.6581586599349976, -1.975777506828308, -2.016906261444092, 0.9217026233673096, 0.013703061267733574,
    0.16084374487400055, 0.2929629683494568, -0.11517325043678284, -0.9764193892478943, -2.2073569297790527, -1.073966383934021, 0.333448201417923, 0.9100377559661865,
    -2.054067850112915, -0.8538061380386353, -1.3787944316864014, 0.11562071740627289, 0.6861238479614258, 1.4089500904083252, 0.0013512015575543046, -1.5773411989212036,
    -0.5292136073112488, -2.068870782852173, -1.4835668802261353, 0.2536175549030304, -0.397601455450058, 1.4056419134140015, -0.3320338726043701,
], dtype=torch.float32).reshape((9, 7))
target = torch.tensor([
    6, 0, 2, 1, 2, 0, 5, 0,
    5,
], dtype=torch.int64).reshape((9,))
options = {"reduction": 'none', "label_smoothing": 1.0}
upstream = torch.tensor([
    1.1048429012298584, -1.8540232181549072, 0.9676406383514404, -0.6597285270690918, -1.3412799835205078, -1.2216336727142334, 1.4109150171279907, 0.5130524635314941,
    -1.7475353479385376,
], dtype=torch.float32).reshape((9,))

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
    wq = w * smoothed(wanted, 1.0)
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
