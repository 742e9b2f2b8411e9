"""Correct losses that differ in what is left open, or in the precision of sums."""

from dataclasses import replace

import torch
from _checks import as_rows, kept_mask, mixed, reduced, uniform_losses, weights

from xentcheck.implementation import from_callable


def _losses(rows, classes, keep, w, smoothing):
    rows = torch.where(keep.unsqueeze(1), rows, 0)
    hard = -w[classes] * torch.log_softmax(rows, 1).gather(1, classes.unsqueeze(1)).squeeze(1)
    return torch.where(keep, mixed(hard, uniform_losses(rows, w), smoothing), 0)


def _stating(**conventions):
    """Says which answer a loss gives, so that it is held to it."""

    def state(function):
        bare = from_callable(function, function.__name__)
        function.implementation = replace(bare, **conventions)
        return function

    return state


@_stating(empty_mean="zero")
def empty_mean_is_zero(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The mean over no position is 0."""
    keep = kept_mask(input, target, ignore_index, reduction, weight, label_smoothing)
    rows, classes, keep = as_rows(input, target, keep)
    w = weights(weight, rows)
    losses = _losses(rows, classes, keep, w, label_smoothing)
    total = torch.where(keep, w[classes], 0).sum() if keep.any() else torch.ones(())
    return reduced(losses, total, reduction, target, input.dtype)


@_stating(empty_mean="nan", half_loss_dtype="input")
def empty_mean_is_nan(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The mean over no position is NaN. One ignore value."""
    keep = kept_mask(input, target, ignore_index, reduction, weight, label_smoothing, lists=False)
    rows, classes, keep = as_rows(input, target, keep)
    w = weights(weight, rows)
    losses = _losses(rows, classes, keep, w, label_smoothing)
    return reduced(losses, torch.where(keep, w[classes], 0).sum(), reduction, target, input.dtype)


@_stating(half_loss_dtype="float32")
def half_loss_in_float32(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The loss of bfloat16 and float16 logits stays in the float32 that it is computed in."""
    keep = kept_mask(input, target, ignore_index, reduction, weight, label_smoothing)
    rows, classes, keep = as_rows(input, target, keep)
    w = weights(weight, rows)
    losses = _losses(rows, classes, keep, w, label_smoothing)
    return reduced(losses, torch.where(keep, w[classes], 0).sum(), reduction, target, rows.dtype)


def float64_inside(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """All is computed in float64, and rounded once at the end."""
    keep = kept_mask(input, target, ignore_index, reduction, weight, label_smoothing)
    rows, classes, keep = as_rows(input.double(), target, keep)
    w = weights(weight, rows)
    losses = _losses(rows, classes, keep, w, label_smoothing)
    return reduced(losses, torch.where(keep, w[classes], 0).sum(), reduction, target, input.dtype, normalizer)


def sums_in_float64(input, target, *, weight=None, ignore_index=-100, reduction="mean"):
    """Losses in float32, their sum in float64. No smoothing."""
    keep = kept_mask(input, target, ignore_index, reduction, weight)
    rows, classes, keep = as_rows(input, target, keep)
    w = weights(weight, rows)
    losses = _losses(rows, classes, keep, w, 0.0)
    if reduction == "none":
        return losses.reshape(target.shape).to(input.dtype)
    total = w[classes[keep]].sum(dtype=torch.float64) if reduction == "mean" else 1
    return (losses.sum(dtype=torch.float64) / total).to(input.dtype)


def scaled_before_summing(input, target, *, ignore_index=-100, reduction="mean"):
    """The mean as a sum of losses that are divided already; 0 over no position. No weights, no
    smoothing."""
    keep = kept_mask(input, target, ignore_index, reduction)
    rows, classes, keep = as_rows(input, target, keep)
    losses = _losses(rows, classes, keep, weights(None, rows), 0.0)
    if reduction == "mean":
        losses = losses / max(int(keep.sum()), 1)
    return reduced(losses, 1, reduction, target, input.dtype)
