"""The loss of few logits on the CPU: torch's own, kept from what it gets wrong."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .arguments import check_range, is_ignored
from .terms import working_dtype

_nll_loss = torch.ops.aten.nll_loss_forward.default
_REDUCTIONS = ("none", "mean", "sum")  # torch's numbers for them


def plainly(input: Tensor, target: Tensor, ignore_index: int, reduction: str) -> Tensor | None:
    """torch's loss of logits (N, C, ...) and classes in int64, if two numbers show that it is right and it raised nothing.

    Only a mean over nothing needs more care; and, for the gradient, ignored positions whose softmax is NaN, which it is in
    all classes or in none: the backward pass multiplies it with 0.
    """
    try:
        if not (input.requires_grad and torch.is_grad_enabled()):
            loss = nn.functional.cross_entropy(input, target, ignore_index=ignore_index, reduction=reduction)
            return loss if reduction == "none" or math.isfinite(loss.item()) else None
        log_p = torch.log_softmax(input, 1)
        if input.dim() == 2 and reduction != "none":  # nll_loss by its operator, which says how many positions counted
            loss, counted = _nll_loss(log_p, target, None, _REDUCTIONS.index(reduction), ignore_index)
            if math.isfinite(loss.item()) and counted.item() == target.numel():
                return loss
        else:
            loss = nn.functional.nll_loss(log_p, target, ignore_index=ignore_index, reduction=reduction)
    except (RuntimeError, ValueError, IndexError):  # to be said in our own words
        return None
    is_right = reduction == "none" or math.isfinite(loss.item())
    return loss if is_right and not math.isnan(log_p.detach().select(1, 0).sum().item()) else None


def torch_is_right(input: Tensor, target: Tensor, weight: Tensor | None, smoothing: float) -> bool:
    """Whether 0 * inf cannot occur, nor a careless sum over many classes (smoothing; log_softmax's backward pass)."""
    if target.is_floating_point():
        return smoothing < 1 and input.shape[1] <= 256 and math.isfinite(input.detach().sum().item())
    return (not smoothing or (smoothing < 1 and input.shape[1] <= 256)) and (weight is None or bool(weight.all()))


def guarded(
    input: Tensor,
    target: Tensor,
    values: tuple[int, ...],
    weight: Tensor | None,
    smoothing: float,
    reduction: str,
    normalizer: Tensor | float | None,
) -> Tensor:
    """torch's own loss, in the working dtype, with what it cannot cope with put out of its way."""
    x = input if input.dtype == working_dtype(input) else input.float()
    ignored = None
    if target.is_floating_point():
        target = target.to(x.dtype)
    else:
        target = target.long()
        ignored = is_ignored(target, values)
    is_empty = not target.numel()
    if ignored is not None and ignored.any():
        if not math.isfinite(x.detach().sum().item()):
            x = x.masked_fill(ignored.unsqueeze(1), 0)
        if len(values) > 1:
            target = target.masked_fill(ignored, values[0])
        is_empty = bool(ignored.all())
    sums = reduction == "mean" and (is_empty or normalizer is not None)
    options = {} if ignored is None else {"ignore_index": values[0]}
    weight = None if weight is None else weight.to(x.dtype)
    try:
        loss = nn.functional.cross_entropy(
            x, target, weight, reduction="sum" if sums else reduction, label_smoothing=smoothing, **options
        )
    except IndexError:
        check_range(target.masked_fill(ignored, 0), input.shape[1], values)
        raise
    if normalizer is not None and not is_empty:
        loss = loss / normalizer
    return loss
