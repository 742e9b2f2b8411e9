"""The terms of the formula. What belongs to a position keeps a class dimension of size 1: (N, 1, d1, ..., dk)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import thresholds
from .arguments import is_ignored


class Objective(NamedTuple):
    """All that a loss depends on beside the logits, in the shapes and dtypes that the routes compute with."""

    target: Tensor  # classes, int64, (N, 1, d1, ..., dk), 0 where ignored; or class probabilities, (N, C, d1, ..., dk)
    ignored: Tensor | None  # None where it is known that nothing is
    weight: Tensor | None  # (C), in the working dtype
    denominator: Tensor | float  # what the sum of the losses is divided by: 1 unless it is a mean
    smoothing: float
    reduction: str
    dtype: torch.dtype  # of the loss
    has_class_indices: bool  # not about class probabilities

    @staticmethod
    def of(
        input: Tensor,
        target: Tensor,
        values: tuple[int, ...],
        weight: Tensor | None,
        smoothing: float,
        reduction: str,
        normalizer: Tensor | float | None,
        values_readable: bool,
    ) -> Objective:
        """values: those to ignore, where the target holds classes. values_readable: whether to branch on values of tensors."""
        dtype, ignored = working_dtype(input), None
        if not target.is_floating_point():
            target = target.long()  # before any comparison: as uint8, -100 would be 156
            ignored = is_ignored(target, values).unsqueeze(1)
            target = target.unsqueeze(1)
            if values_readable and not ignored.any():
                ignored = None
        if ignored is not None:
            target = target.masked_fill(ignored, 0)
        weight = None if weight is None else weight.to(dtype)
        denominator: Tensor | float = 1.0
        if reduction == "mean" and target.numel():
            denominator = _denominator(target, ignored, weight, normalizer, dtype, values_readable)
        has_class_indices = not target.is_floating_point()
        return Objective(
            target, ignored, weight, denominator, smoothing, reduction, dtype_of_loss(input), has_class_indices
        )


class Shares(NamedTuple):
    """The parts of w q for classes; of shape () where they are the same for all positions or classes."""

    target: Tensor  # w_t (1 - s) of each position
    classes: Tensor | None  # w_c s / C of each class, (C, 1, ...); None without smoothing
    total: Tensor  # A of each position


def shares_of(x: Tensor, target: Tensor, objective: Objective) -> Shares:
    weight, s = objective.weight, objective.smoothing
    if weight is None:
        one = torch.ones((), dtype=working_dtype(x), device=x.device)
        of_target = one * (1 - s) if s < 1 else one.new_zeros(target.shape)  # a 0 has to be seen by weighed
        return Shares(of_target, one * (s / x.shape[1]) if s else None, one)
    of_target = weight[target] * (1 - s)
    of_classes = weight.view(-1, *[1] * (x.dim() - 2)) * (s / x.shape[1]) if s else None
    return Shares(of_target, of_classes, of_target + (weight.mean() * s if s else 0))


def smoothed(probabilities: Tensor, objective: Objective, dtype: torch.dtype) -> Tensor:
    """w q' of every position and class, for class probabilities (N, C, ...); the very tensor where that is all."""
    weight, s = objective.weight, objective.smoothing
    share = probabilities.to(dtype)
    if s:
        share = share * (1 - s) + s / share.shape[1]
    return share if weight is None else share * weight.view(-1, *[1] * (share.dim() - 2))


def parted(p: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """p_t, which is 0 afterwards in p, and the sum of the others: torch's softmax adds up carelessly, and p not quite to 1.

    Where p_t is near 1, small numbers added to it would be lost again.
    """
    p_target = p.gather(1, target)
    return p_target, p.scatter_(1, target, 0).sum(1, keepdim=True)


def nll_of(
    p: Tensor,
    p_target: Tensor,
    p_others: Tensor,
    logits: Callable[[], Tensor],
    target: Tensor,
    ignored: Tensor | None = None,
) -> Tensor:
    """log(1 + the others / p_t), for what ``parted`` gives; from the logits that p is the softmax of, where p_t has underflowed."""
    nll = (p_others / p_target).log1p_()
    has_underflowed = p_target < torch.finfo(p.dtype).tiny * 2**14
    if ignored is not None:
        has_underflowed.masked_fill_(ignored, False)
    if not has_underflowed.any():
        return nll
    x = logits().to(p.dtype)
    largest = p.amax(1, keepdim=True) / (p_target + p_others)
    return torch.where(has_underflowed, x.amax(1, keepdim=True) - x.gather(1, target) - largest.log_(), nll)


def losses_of(log_p: Tensor, target: Tensor, shares: Shares) -> Tensor:
    """-sum_c w_c q_c log p_c of each position."""
    if shares.classes is None:
        return weighed(-log_p.gather(1, target), shares.target)
    if shares.classes.dim():
        smooth = weighed(-log_p, shares.classes).sum(1, keepdim=True)
    else:
        smooth = -log_p.sum(1, keepdim=True) * shares.classes
    return smooth + weighed(-log_p.gather(1, target), shares.target)


def weighed(nll: Tensor, share: Tensor) -> Tensor:
    """nll * share, where inf * 0 is 0."""
    if share.dim() == 0:  # the same for all, and not 0
        return nll * share
    return nll.masked_fill((share == 0) & nll.isposinf(), 0) * share


def as_tensor(number: Tensor | float, device: torch.device) -> Tensor:
    """The number in float64. For torch.full, torch.compile would compile anew with every number."""
    return number if isinstance(number, Tensor) else torch.ones((), dtype=torch.float64, device=device) * number


def reduced(losses: Tensor, objective: Objective) -> Tensor:
    if objective.reduction == "none":
        return losses.squeeze(1)
    return losses.sum() / objective.denominator


def scale_of(upstream: Tensor, objective: Objective, dtype: torch.dtype) -> Tensor:
    """What the gradients of the positions' losses are multiplied with; of shape () where it is the same for all."""
    upstream = upstream.unsqueeze(1) if upstream.dim() else upstream
    return upstream.to(dtype) / objective.denominator


def working_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def rows_are_short(input: Tensor) -> bool:
    """Whether a row of classes does not fill a vector register, which is where torch's softmax over the last dimension is slow.

    With AVX-512 it takes ten times as long for a logit in float32 with 15 classes as with 16. Over another dimension it takes as
    many positions together as a register holds.
    """
    return input.shape[1] * working_dtype(input).itemsize < thresholds.SHORT_ROW_BYTES


def dtype_of_loss(input: Tensor) -> torch.dtype:
    """The input's; under autocast that of the computation, as of torch's loss."""
    is_under_autocast = input.device.type != "meta" and torch.is_autocast_enabled(input.device.type)
    return working_dtype(input) if is_under_autocast else input.dtype


def _denominator(
    target: Tensor,
    ignored: Tensor | None,
    weight: Tensor | None,
    normalizer: Tensor | float | None,
    dtype: torch.dtype,
    values_readable: bool,
) -> Tensor | float:
    """The sum of w_t over the valid positions, or the number of rows of probabilities, or the normaliser instead.

    1 where there is no valid position: the sum of the losses is 0, and so is the mean.
    """
    nothing_is_left = False if ignored is None else ignored.all()
    if values_readable and nothing_is_left:
        return 1.0
    counted: Tensor | float
    if normalizer is not None:
        counted = normalizer
    elif target.is_floating_point():
        counted = target.numel() // target.shape[1]
    elif weight is not None:
        counted = (weight[target] if ignored is None else weight[target].masked_fill(ignored, 0)).sum()
    else:
        counted = target.numel() if ignored is None else target.numel() - ignored.count_nonzero()
    if values_readable:
        return float(counted)
    counted = as_tensor(counted, target.device)
    return (
        torch.where(nothing_is_left, 1, counted.to(target.device, dtype))
        if ignored is not None
        else counted.to(target.device, dtype, copy=True)  # a normaliser may go on counting before the backward pass
    )
