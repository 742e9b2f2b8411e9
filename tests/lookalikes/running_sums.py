"""Correct losses that add up one after the other, in float32 (float64 for float64): the plain grade of accuracy."""

import numpy
import torch
from _checks import as_rows, kept_mask, weights


class _RunningSum(torch.autograd.Function):
    """Over the last dimension, in so many sums as a vector register has lanes, and then over these."""

    @staticmethod
    def forward(ctx, terms, lanes):
        ctx.shape = terms.shape
        values = terms.detach().numpy()
        sums = [numpy.cumsum(values[..., n::lanes], axis=-1)[..., -1:] for n in range(min(lanes, values.shape[-1]))]
        if not sums:
            return terms.sum(-1)
        return torch.from_numpy(numpy.cumsum(numpy.concatenate(sums, -1), axis=-1)[..., -1:]).squeeze(-1)

    @staticmethod
    def backward(ctx, upstream):
        return upstream.unsqueeze(-1).expand(ctx.shape), None


def _loss(input, target, weight, ignore_index, reduction, normalizer, lanes):
    keep = kept_mask(input, target, ignore_index, reduction, weight)
    rows, classes, keep = as_rows(input, target, keep)
    w = weights(weight, rows)
    rows = torch.where(keep.unsqueeze(1), rows, 0)
    top = rows.detach().amax(1, keepdim=True) if rows.numel() else rows.new_zeros(len(rows), 1)
    top = torch.where(top.isfinite(), top, 0)
    total = _RunningSum.apply((rows - top).exp(), lanes)
    picked = rows.gather(1, classes.unsqueeze(1)).squeeze(1)
    losses = torch.where(keep, w[classes] * (top.squeeze(1) + total.log() - picked), 0)
    if reduction == "none":
        return losses.reshape(target.shape).to(input.dtype)
    total = _RunningSum.apply(losses, 1)
    denominator = _RunningSum.apply(w[classes] * keep, 1) if normalizer is None else normalizer
    return (total / denominator if reduction == "mean" else total).to(input.dtype)


def running_sums(input, target, *, weight=None, ignore_index=-100, reduction="mean", normalizer=None):
    """Exponentials, losses and weights in one running sum each. No smoothing."""
    return _loss(input, target, weight, ignore_index, reduction, normalizer, 1)


def running_sums_in_lanes(input, target, *, weight=None, ignore_index=-100, reduction="mean", normalizer=None):
    """The same, with the exponentials in 16 sums, those of a vector register."""
    return _loss(input, target, weight, ignore_index, reduction, normalizer, 16)
