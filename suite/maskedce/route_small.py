"""Route of few logits on the CPU: torch's own loss, kept from what it gets wrong and from rows it is slow with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from . import thresholds
from .arguments import check_range, is_ignored
from .formula import dtype_of_loss, rows_are_short, working_dtype

if TYPE_CHECKING:
    from .call import Call

_WORKING_DTYPES = (torch.float32, torch.float64)
_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}  # torch's numbers for them
_cross_entropy = torch._C._nn.cross_entropy_loss  # what torch.nn.functional.cross_entropy calls
_functorch_is_active = torch._C._are_functorch_transforms_active


def is_small(input: Tensor) -> bool:
    """Whether blocks would not save what they cost, which is Python code and operations on positions instead of logits.

    They save memory that is new to the process and the backward pass, and in half types the copy in float32.
    """
    if input.dim() == 2 and rows_are_short(input):
        return input.numel() < thresholds.SMALL_LOGITS
    if not softmax_adds_up_few(input):
        return False
    # rows cost more for each position than planes
    few = thresholds.FEW_CLASSES_IN_ROWS if input.dim() == 2 else thresholds.FEW_CLASSES_IN_PLANES
    has_few_classes = input.shape[1] < few
    is_half = input.dtype not in _WORKING_DTYPES
    if is_half and not has_few_classes:
        return input.numel() <= thresholds.SMALL_LOGITS
    wants_gradient = torch.is_grad_enabled() and input.requires_grad
    factor = thresholds.SMALL_FACTOR if (has_few_classes and not is_half) or not wants_gradient else 1
    return input.numel() * working_dtype(input).itemsize < factor * thresholds.SMALL_BYTES


def softmax_adds_up_few(input: Tensor) -> bool:
    """Whether torch's softmax, or its compiler's, may be left to add up a position's classes: one after another, or, where they are
    the last dimension, by as many sums as a vector register holds."""
    sums = thresholds.REGISTER_BYTES // working_dtype(input).itemsize if input.dim() == 2 else 1
    return input.shape[1] <= thresholds.SUMMED_CLASSES * sums


def values_are_readable(input: Tensor) -> bool:
    """Whether a branch on a value neither fails nor waits for a device. Under torch.compile, which is not asked here, it breaks the graph."""
    return (
        (type(input) is Tensor or type(input) is nn.Parameter)
        and input.is_cpu
        and forward_ad._current_level < 0
        and not _functorch_is_active()
    )


def torch_loss_if_right(input: Tensor, target: Tensor, ignore_index: int, reduction: str) -> Tensor | None:
    """torch's loss of few logits (N, C, ...) in a working dtype and classes in int64, without options, if it raises nothing and a look at
    its result says that it is right; else None. Every check in here is a part of what this loss costs more than torch's on small inputs.

    Only a mean over nothing needs more care; and, for the gradient, ignored positions whose softmax is NaN, which it is in
    all classes or in none: the backward pass multiplies it with 0.
    """
    if not (
        (type(input) is Tensor or type(input) is nn.Parameter)
        and input.is_cpu
        and input.dtype in _WORKING_DTYPES
        and target.dtype is torch.int64
        and (dimensions := input.dim()) > 1
        and (((size := input.nbytes) <= thresholds.SUMMED_ROW_BYTES and dimensions == 2) or softmax_adds_up_few(input))
        and (0 < size < thresholds.SMALL_BYTES or (size and is_small(input)))
        and (
            size < thresholds.TRANSPOSED_BYTES
            or input.shape[1] >= thresholds.NEVER_SHORT_CLASSES
            or not _pays_to_transpose(input)
        )
    ):
        return None
    try:
        # Then torch's loss is right wherever it is called. Under torch.func, a target that is mapped over cannot be looked at.
        if _nothing_is_ignored(input, target, ignore_index):
            return _cross_entropy(input, target, None, _REDUCTIONS[reduction], ignore_index)
        if not values_are_readable(input):
            return None
        if not (input.requires_grad and torch.is_grad_enabled()):
            loss = _cross_entropy(input, target, None, _REDUCTIONS[reduction], ignore_index)
            return loss if reduction == "none" or math.isfinite(loss.item()) else None
        log_p = torch.log_softmax(input, 1)
        loss = nn.functional.nll_loss(log_p, target, ignore_index=ignore_index, reduction=reduction)
    except (RuntimeError, ValueError, LookupError, TypeError, OverflowError):  # for messages of our own
        return None
    is_right = reduction == "none" or math.isfinite(loss.item())
    return loss if is_right and not math.isnan(log_p.detach().select(1, 0).sum().item()) else None


def _nothing_is_ignored(input: Tensor, target: Tensor, ignore_index: int) -> bool:
    """Whether a look at the target says so, where that takes less than what it saves."""
    if target.numel() <= thresholds.LISTED_TARGETS and target.dim() == 1:
        return ignore_index not in target.tolist()
    return input.requires_grad and ignore_index < 0 <= target.min().item()  # negative is ignored, or an error


def torch_is_right(input: Tensor, target: Tensor, weight: Tensor | None, smoothing: float) -> bool:
    """Whether 0 * inf cannot occur, nor a careless sum over many classes (smoothing; log_softmax's backward pass)."""
    most = thresholds.SMOOTHED_CLASSES_IN_ROWS if input.dim() == 2 else thresholds.SMOOTHED_CLASSES_IN_PLANES
    adds_well = input.shape[1] <= most
    if target.is_floating_point():
        return smoothing < 1 and adds_well and math.isfinite(input.detach().sum().item())
    if smoothing:
        return smoothing < 1 and adds_well and (weight is None or bool(weight.all() and weight.isfinite().all()))
    return weight is None or bool(weight.all())


def loss(call: Call) -> Tensor:
    """torch's own loss, in the working dtype, with what it cannot cope with put out of its way."""
    input, target, ignored_values, weight, smoothing, reduction, normalizer, *_ = call
    x = input if input.dtype == working_dtype(input) else input.float()
    ignored = None
    if target.is_floating_point():
        target = target.to(x.dtype)
    else:
        target = target.long()
        ignored = is_ignored(target, ignored_values)
    transposes = _pays_to_transpose(x)
    is_empty = not target.numel()
    if ignored is not None and ignored.any():
        if not math.isfinite(x.detach().sum().item()):
            x = x.masked_fill(ignored.unsqueeze(1), 0)
        if len(ignored_values) > 1:
            target = target.masked_fill(ignored, ignored_values[0])
        is_empty = bool(ignored.all())
    sums = reduction == "mean" and (is_empty or normalizer is not None)
    options = {} if ignored is None else {"ignore_index": ignored_values[0]}
    weight = None if weight is None else weight.to(x.dtype)
    arguments = (_classes_first(x), _classes_first(target)) if transposes else (x, target)
    try:
        value = nn.functional.cross_entropy(
            *arguments, weight, reduction="sum" if sums else reduction, label_smoothing=smoothing, **options
        )
    except IndexError:
        check_range(target.masked_fill(ignored, 0), input.shape[1], ignored_values)
        raise
    if normalizer is not None and not is_empty:
        value = value / float(normalizer)  # which may go on counting before the backward pass
    return (value.squeeze(0) if transposes else value).to(dtype_of_loss(input))


def _pays_to_transpose(x: Tensor) -> bool:
    """Whether it pays to lay out logits in short rows anew, with the classes first."""
    return x.dim() == 2 and rows_are_short(x) and x.nbytes >= thresholds.TRANSPOSED_BYTES * torch.get_num_threads()


def _classes_first(value: Tensor) -> Tensor:
    """(N) as (1, N), (N, C) as (1, C, N)."""
    return value.unsqueeze(0) if value.dim() == 1 else _ClassesFirst.apply(value)


class _ClassesFirst(torch.autograd.Function):
    """With a gradient that is contiguous again, which that of a transposition would not be."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return torch.stack(input.unbind(1)).unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.squeeze(0).t().contiguous()
