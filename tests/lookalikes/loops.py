"""Correct losses by loops."""

import math

import torch
from _checks import (
    as_rows,
    compute_dtype,
    kept_mask,
    mixed,
    reduced,
    uniform_losses,
    weights,
)
from torch.autograd.function import once_differentiable


def online_softmax_over_tiles(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """One pass over tiles of classes, with a running maximum and a running sum."""
    keep = kept_mask(input, target, ignore_index, reduction, weight, label_smoothing)
    rows, classes, keep = as_rows(input, target, keep)
    rows = torch.where(keep.unsqueeze(1), rows, 0)
    w = weights(weight, rows)
    count = rows.shape[1]
    top = rows.new_full((len(rows),), float("-inf"))
    total, target_logit, weighted_logits = (rows.new_zeros(len(rows)) for _ in range(3))
    size = max(4, count // 8)
    for start in range(0, count, size):
        tile = rows[:, start : start + size]
        new_top = torch.maximum(top, tile.detach().amax(1))
        finite_top = new_top.masked_fill(new_top == float("-inf"), 0)  # a tile of -inf only
        total = total * (top - finite_top).exp() + (tile - finite_top.unsqueeze(1)).exp().sum(1)
        top = new_top
        inside = (classes >= start) & (classes < start + tile.shape[1])
        here = (classes - start).clamp(0, tile.shape[1] - 1)
        target_logit = torch.where(inside, tile.gather(1, here.unsqueeze(1)).squeeze(1), target_logit)
        weighted_logits = weighted_logits + (w[start : start + size] * tile).sum(1)
    lse = top + total.log()
    hard = w[classes] * (lse - target_logit)
    uniform = (w.sum() * lse - weighted_logits) / count
    losses = torch.where(keep, mixed(hard, uniform, label_smoothing), 0)
    return reduced(losses, torch.where(keep, w[classes], 0).sum(), reduction, target, input.dtype, normalizer)


def blocks_of_rows(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """A block of positions at a time, added up at the end."""
    keep = kept_mask(input, target, ignore_index, reduction, weight, label_smoothing)
    rows, classes, keep = as_rows(input, target, keep)
    w = weights(weight, rows)
    size = max(3, len(rows) // 16)
    blocks = []
    for some, chosen, valid in zip(rows.split(size), classes.split(size), keep.split(size), strict=True):
        safe = torch.where(valid.unsqueeze(1), some, 0)
        hard = -w[chosen] * torch.log_softmax(safe, 1).gather(1, chosen.unsqueeze(1)).squeeze(1)
        losses = mixed(hard, uniform_losses(safe, w), label_smoothing)
        blocks.append(torch.where(valid, losses, 0))
    if reduction == "none":
        return torch.cat(blocks).reshape(target.shape).to(input.dtype)
    result = torch.stack([block.sum() for block in blocks]).sum()
    if reduction == "mean":
        result = result / torch.where(keep, w[classes], 0).sum()
    return result.to(input.dtype)


class _PythonLosses(torch.autograd.Function):
    """Losses of rows, and their gradients, in plain Python, one kept row after the other."""

    @staticmethod
    def forward(ctx, rows, classes, keep, weight, smoothing):
        losses, gradients = [], []
        count, w = rows.shape[1], weight.tolist()
        for row, chosen, valid in zip(rows.tolist(), classes.tolist(), keep.tolist(), strict=True):
            losses.append(0.0)
            gradients.append([0.0] * count)
            if not valid:
                continue
            top = math.nan if any(map(math.isnan, row)) else max(row)
            exponentials = [math.exp(x - top) for x in row]
            total = math.fsum(exponentials)
            lse = top + math.log(total)
            shares = [smoothing / count * w[c] for c in range(count)]
            shares[chosen] += (1 - smoothing) * w[chosen]
            mass = math.fsum(shares)
            parts = [q * (lse - x) for q, x in zip(shares, row, strict=True) if q != 0]
            finite = all(map(math.isfinite, parts))
            losses[-1] = math.fsum(parts) if finite else sum(parts)
            gradients[-1] = [mass * e / total - q for e, q in zip(exponentials, shares, strict=True)]
        ctx.save_for_backward(keep, rows.new_tensor(gradients).reshape(rows.shape))
        return rows.new_tensor(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        keep, gradients = ctx.saved_tensors
        scaled = upstream.unsqueeze(1) * gradients
        return torch.where(keep.unsqueeze(1), scaled, 0), None, None, None, None


def loop_over_positions(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """Python floats and the math module."""
    keep = kept_mask(input, target, ignore_index, reduction, weight, label_smoothing)
    rows, classes, keep = as_rows(input, target, keep)
    w = weights(weight, rows)
    losses = _PythonLosses.apply(rows, classes, keep, w, label_smoothing)
    return reduced(losses, torch.where(keep, w[classes], 0).sum(), reduction, target, input.dtype, normalizer)


def loop_over_the_dimensions(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The last dimension is taken apart until logits are (N, C), and losses are stacked again."""
    keep = kept_mask(input, target, ignore_index, reduction, weight, label_smoothing)
    w = None if weight is None else weight.to(compute_dtype(input))

    def losses(logits, classes, keep):
        if logits.dim() > 2 and logits.shape[-1] > 0:
            parts = zip(logits.unbind(-1), classes.unbind(-1), keep.unbind(-1), strict=True)
            return torch.stack([losses(*part) for part in parts], dim=-1)
        if logits.numel() == 0:
            return logits.sum(1)
        log_p = torch.log_softmax(torch.where(keep.unsqueeze(1), logits, 0), 1)
        log_p = log_p if w is None else log_p * w
        hard = log_p.gather(1, classes.unsqueeze(1)).squeeze(1)
        return torch.where(keep, -mixed(hard, log_p.mean(1), label_smoothing), 0)

    logits = input.to(compute_dtype(input))
    classes = torch.where(keep, target.long(), 0)
    if input.dim() == 1:
        result = losses(logits.unsqueeze(0), classes.unsqueeze(0), keep.unsqueeze(0)).squeeze(0)
    else:
        result = losses(logits, classes, keep)
    total = keep.sum() if w is None else w[classes[keep]].sum()
    return reduced(result, total, reduction, target, input.dtype)


def loop_over_target_classes(input, target, *, weight=None, ignore_index=-100, reduction="mean"):
    """All positions with the same target at once; weights need no look-up then. No smoothing."""
    keep = kept_mask(input, target, ignore_index, reduction, weight)
    rows, classes, keep = as_rows(input, target, keep)
    w = weights(weight, rows)
    losses = rows[:0].sum() + rows.new_zeros(len(rows))
    for chosen in classes[keep].unique().tolist():
        here = (keep & (classes == chosen)).nonzero().squeeze(1)
        same = rows[here]
        part = w[chosen] * (torch.logsumexp(same, 1) - same[:, chosen])
        losses = losses.index_add(0, here, part)
    total = (torch.bincount(classes[keep], minlength=len(w)) * w).sum()
    return reduced(losses, total, reduction, target, input.dtype)


def vmap_over_rows(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The loss of one position, mapped over all of them. One ignore value."""
    keep = kept_mask(input, target, ignore_index, reduction, weight, label_smoothing, lists=False)
    rows, classes, keep = as_rows(input, target, keep)
    w = weights(weight, rows)

    def loss(row, chosen, valid):
        row = torch.where(valid, row, 0)
        log_p = row - torch.logsumexp(row, 0)
        hard = -(w * log_p).gather(0, chosen.unsqueeze(0)).squeeze(0)
        return torch.where(valid, mixed(hard, -(w * log_p).mean(), label_smoothing), 0)

    losses = torch.vmap(loss)(rows, classes, keep) if len(rows) else rows.sum(1)
    return reduced(losses, torch.where(keep, w[classes], 0).sum(), reduction, target, input.dtype)
