"""Batches for the linear loss, and its definition in float64 to check them against."""

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from maskedce import linear_masked_cross_entropy

N, C, H = 13, 11, 7


OPTIONS = [
    {},
    {"reduction": "sum"},
    {"reduction": "none"},
    {"label_smoothing": 0.1},
    {"label_smoothing": 1.0, "reduction": "none"},
    {"normalizer": 5},
    {"normalizer": torch.tensor(2.5), "label_smoothing": 0.3},
    {"ignore_index": [3, -1]},
]


def batch(dtype=torch.float64, bias=True, ignore=(0, 5, 6, 12), value=-100, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    target = torch.randint(C, (N,), generator=generator)
    target[list(ignore)] = value
    weight = torch.rand(C, generator=generator, dtype=torch.float64).to(dtype) + 0.5
    return [draw(N, H), draw(C, H), draw(C) if bias else None], target, weight


def definition(
    tensors, target, upstream, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """Loss and gradients in float64: the ignored positions deleted, then matrix product and log-sum-exp as they are written."""
    values = [ignore_index] if isinstance(ignore_index, int) else ignore_index
    valid = ~torch.isin(target, torch.tensor(values))
    hidden, matrix, bias = (None if t is None else t.detach().double() for t in tensors)
    w = torch.ones(len(matrix), dtype=torch.float64) if weight is None else weight.double()
    h, t = hidden[valid], target[valid]
    x = h @ matrix.T + (0 if bias is None else bias)
    lse = x.logsumexp(1, keepdim=True)
    wq = w * (F.one_hot(t, len(matrix)).double() * (1 - label_smoothing) + label_smoothing / len(matrix))
    losses = torch.zeros(len(target), dtype=torch.float64)
    losses[valid] = (wq * (lse - x)).sum(1)
    divisor = 1 if reduction != "mean" else w[t].sum() if normalizer is None else normalizer
    above = torch.as_tensor(upstream, dtype=torch.float64).expand(len(target))[valid, None] / divisor
    d = above * (wq.sum(1, keepdim=True) * (x - lse).exp() - wq)
    of_hidden = torch.zeros_like(hidden)
    of_hidden[valid] = d @ matrix
    loss = losses if reduction == "none" else losses.sum() / divisor
    return loss, [of_hidden, d.T @ h, None if bias is None else d.sum(0)]


def check(tensors, target, upstream=1.0, tolerance=1e-12, **options):
    loss = linear_masked_cross_entropy(tensors[0], tensors[1], target, linear_bias=tensors[2], **options)
    given = [t for t in tensors if t is not None]
    gradients = torch.autograd.grad(loss, given, torch.as_tensor(upstream, dtype=loss.dtype).expand(loss.shape))
    expected, truths = definition(tensors, target, upstream, **options)
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=tolerance)
    for found, truth, given_as in zip(gradients, [t for t in truths if t is not None], given, strict=True):
        assert (found.dtype, found.shape) == (given_as.dtype, given_as.shape)
        torch.testing.assert_close(found.double(), truth, rtol=tolerance, atol=tolerance * float(truth.abs().max()))
    return loss, gradients


class Largest(TorchDispatchMode):
    """The most elements that a tensor made by any operation has."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                self.count = max(self.count, value.untyped_storage().nbytes() // value.element_size())
        return result
