"""Correct losses that compute kept rows only, or hand the work to torch's own cross entropy."""

import torch
from _checks import as_rows, compute_dtype, kept_mask, mixed, reduced, uniform_losses, weights


def rows_selected(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """Kept rows are copied out, and their losses put back."""
    keep = kept_mask(input, target, ignore_index, reduction, weight, label_smoothing)
    rows, classes, keep = as_rows(input, target, keep)
    places = keep.nonzero().squeeze(1)
    rows, classes = rows.index_select(0, places), classes[places]
    w = weights(weight, rows)
    hard = -w[classes] * torch.log_softmax(rows, 1).gather(1, classes.unsqueeze(1)).squeeze(1)
    losses = mixed(hard, uniform_losses(rows, w), label_smoothing)
    if reduction == "none":
        losses = rows.new_zeros(len(keep)).index_add(0, places, losses)
    return reduced(losses, w[classes].sum(), reduction, target, input.dtype, normalizer)


def native_on_selected_rows(input, target, *, weight=None, ignore_index=-100, reduction="mean"):
    """torch's function sees kept rows only, in float32. No smoothing, one ignore value."""
    keep = kept_mask(input, target, ignore_index, reduction, weight, lists=False)
    rows, classes, keep = as_rows(input, target, keep)
    result = torch.nn.functional.cross_entropy(
        rows[keep],
        classes[keep],
        weight=None if weight is None else weight.to(rows.dtype),
        reduction=reduction,
    )
    if reduction == "none":
        result = rows.new_zeros(len(keep)).masked_scatter(keep, result).reshape(target.shape)
    return result.to(input.dtype)


def module_on_zeroed_rows(input, target, *, weight=None, ignore_index=-100, reduction="mean"):
    """torch's module sees zeros for ignored logits, and one ignore value for all. No smoothing."""
    keep = kept_mask(input, target, ignore_index, reduction, weight)
    logits = input.to(compute_dtype(input))
    logits = logits.masked_fill(~keep.unsqueeze(min(1, keep.dim())), 0)
    module = torch.nn.CrossEntropyLoss(
        weight=None if weight is None else weight.to(logits.dtype),
        ignore_index=-100,
        reduction=reduction,
    )
    return module(logits, torch.where(keep, target.long(), -100)).to(input.dtype)
