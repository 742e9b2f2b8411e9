"""Correct losses of class indices and class probabilities alike: both are shares of the classes. Each takes a normalizer."""

from dataclasses import replace

import torch
from _checks import compute_dtype, distributed, reduced
from torch.autograd.function import once_differentiable

from xentcheck.implementation import from_callable


def _safe(rows, keep):
    return torch.where(keep.reshape(-1, 1), rows, 0)


def _kept(losses, keep):
    return torch.where(keep.reshape(-1), losses, 0)


def _spread(shares, surprise):
    """What each class costs, times its share; a class without a share costs nothing, even if it is impossible."""
    return torch.where(shares != 0, shares * surprise, 0).sum(1)


def shares_times_surprise(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """Everything is a distribution, and the loss its product with the negative log-softmax."""
    rows, shares, keep, total = distributed(input, target, ignore_index, reduction, weight, label_smoothing)
    rows = _safe(rows, keep)
    losses = _kept(_spread(shares, torch.logsumexp(rows, 1, keepdim=True) - rows), keep)
    return reduced(losses, total, reduction, keep, input.dtype, normalizer)


class _Log1p(torch.autograd.Function):
    """Log-sum-exp of rows (P, C) as (P, 1). Its gradient is the softmax of them all: as one minus the others, the largest would lose
    its digits wherever it is small itself."""

    @staticmethod
    def forward(ctx, rows):
        top, where = rows.max(1, keepdim=True)
        rest = torch.exp(rows - top).scatter(1, where, 0).sum(1, keepdim=True)
        lse = top + torch.log1p(rest)
        ctx.save_for_backward(rows, lse)
        return lse

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        rows, lse = ctx.saved_tensors
        return upstream * (rows - lse).exp()


def log1p_beyond_the_largest(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """The log-sum-exp as the largest logit and log1p of the others' exponentials."""
    rows, shares, keep, total = distributed(input, target, ignore_index, reduction, weight, label_smoothing)
    rows = _safe(rows, keep)
    losses = _kept(_spread(shares, _Log1p.apply(rows) - rows), keep)
    return reduced(losses, total, reduction, keep, input.dtype, normalizer)


def sorted_classes(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """The classes of each position in the order of their logits, so that the exponentials are added up from the smallest."""
    rows, shares, keep, total = distributed(input, target, ignore_index, reduction, weight, label_smoothing)
    rows, order = _safe(rows, keep).sort(dim=1)
    shares = shares.gather(1, order)
    top = rows[:, -1:].detach()
    lse = top + (rows - top).exp().sum(1, keepdim=True).log()
    return reduced(_kept(_spread(shares, lse - rows), keep), total, reduction, keep, input.dtype, normalizer)


def online_softmax_of_shares(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """Tile after tile of the classes: a running maximum, sum, and products of the shares with the logits."""
    rows, shares, keep, total = distributed(input, target, ignore_index, reduction, weight, label_smoothing)
    rows = _safe(rows, keep)
    top = rows.new_full((len(rows),), float("-inf"))
    running, mass, products = (rows.new_zeros(len(rows)) for _ in range(3))
    size = max(3, rows.shape[1] // 7)
    for tile, part in zip(rows.split(size, 1), shares.split(size, 1), strict=True):
        new_top = torch.maximum(top, tile.detach().amax(1))
        base = new_top.masked_fill(new_top == float("-inf"), 0)  # a tile of -inf only
        running = running * (top - base).exp() + (tile - base.unsqueeze(1)).exp().sum(1)
        mass, products = mass + part.sum(1), products + torch.where(part != 0, part * tile, 0).sum(1)
        top = new_top
    losses = mass * (top + running.log()) - products
    return reduced(_kept(losses, keep), total, reduction, keep, input.dtype, normalizer)


class _Dense(torch.autograd.Function):
    """Loss and gradient of (P, C) logits and shares, both in the forward pass and in float64."""

    @staticmethod
    def forward(ctx, rows, shares, keep):
        x, q = rows.double(), shares.double()
        lse = torch.logsumexp(x, 1, keepdim=True)
        gradients = ((x - lse).exp() * q.sum(1, keepdim=True) - q).to(rows.dtype)
        ctx.save_for_backward(gradients, keep)
        return torch.where(keep, _spread(q, lse - x), 0)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        gradients, keep = ctx.saved_tensors
        scaled = upstream.unsqueeze(1).to(gradients.dtype) * gradients
        return torch.where(keep.unsqueeze(1), scaled, 0), None, None


def dense_gradient_in_the_forward_pass(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """A function of its own that works out the gradient with the loss, in float64."""
    rows, shares, keep, total = distributed(input, target, ignore_index, reduction, weight, label_smoothing)
    losses = _Dense.apply(rows, shares, keep.reshape(-1))
    return reduced(losses, total, reduction, keep, input.dtype, normalizer)


def compacted_rows_of_shares(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """Ignored positions are left out by a boolean index, and no longer exist."""
    rows, shares, keep, total = distributed(
        input, target, ignore_index, reduction, weight, label_smoothing, lists=False
    )
    valid = keep.reshape(-1)
    few, shares = rows[valid], shares[valid]
    losses = _spread(shares, torch.logsumexp(few, 1, keepdim=True) - few)
    if reduction == "none":
        losses = torch.zeros_like(rows[:, 0]).masked_scatter(valid, losses)
    return reduced(losses, total, reduction, keep, input.dtype, normalizer)


def difference_of_products(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """The mass of the shares times the log-sum-exp, less the product of shares and logits, by a batched matrix product."""
    rows, shares, keep, total = distributed(input, target, ignore_index, reduction, weight, label_smoothing)
    rows = _safe(rows, keep)
    wanted = torch.where(shares != 0, rows, 0)
    with torch.autocast(input.device.type, enabled=False):  # which would round the factors to bfloat16
        products = torch.bmm(shares.unsqueeze(1), wanted.unsqueeze(2)).reshape(-1)
    losses = shares.sum(1) * torch.logsumexp(rows, 1) - products
    return reduced(_kept(losses, keep), total, reduction, keep, input.dtype, normalizer)


def _transformable(function):
    """It is differentiated twice, compiled and mapped as well, and says so."""
    bare = from_callable(function, function.__name__)
    more = {"double_backward", "compile", "func_grad", "vmap"}
    function.implementation = replace(
        bare,
        capabilities=(bare.capabilities | more) - {"class_probabilities"},
        tentative=frozenset(),
        int32_target="refused",
        empty_mean="nan",
    )
    return function


@_transformable
def transformable(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """Nothing depends on a value, so it can be compiled and mapped: what is out of range is refused by the gather."""
    if reduction not in ("none", "mean", "sum") or not 0 <= label_smoothing <= 1:
        raise ValueError("unknown reduction, or a label_smoothing that is not between 0 and 1")
    if not input.is_floating_point() or input.dim() == 0 or target.dtype not in (torch.int64, torch.uint8):
        raise TypeError("logits must be floating point, with a dimension for the classes, targets int64 or uint8")
    if target.shape != (input.shape[:1] + input.shape[2:] if input.dim() > 1 else ()):
        raise ValueError("targets must fit the logits")
    batch = input if input.dim() > 1 else input.unsqueeze(0)
    count = batch.shape[1]
    if weight is not None and (weight.shape != (count,) or not weight.is_floating_point()):
        raise ValueError(f"weight must be {count} floating point numbers")
    values = ignore_index if isinstance(ignore_index, (list, tuple)) else [ignore_index]
    if any(type(value) is not int for value in values):
        raise TypeError("ignore_index must be an int or ints")
    classes = target.reshape(-1).long()
    keep = torch.ones_like(classes, dtype=torch.bool)
    for value in values:
        keep = keep & (classes != value)
    classes = torch.where(keep, classes, 0).unsqueeze(1)
    rows = batch.movedim(1, -1).reshape(-1, count).to(compute_dtype(input))
    rows = torch.where(keep.unsqueeze(1), rows, 0)
    surprise = torch.logsumexp(rows, 1, keepdim=True) - rows
    w = torch.ones_like(rows[:1]) if weight is None else weight.to(rows.dtype).unsqueeze(0)
    chosen = w.expand(rows.shape).gather(1, classes).squeeze(1)
    losses = 0.0
    if label_smoothing < 1:
        losses = (1 - label_smoothing) * chosen * surprise.gather(1, classes).squeeze(1)
    if label_smoothing > 0:
        losses = losses + label_smoothing * (w * surprise).mean(1)
    losses = torch.where(keep, losses, 0.0)
    total = torch.where(keep, chosen, 0.0).sum()
    return reduced(losses, total, reduction, target, input.dtype, normalizer)
