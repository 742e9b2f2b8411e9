"""The loss as a function and as a module, and which way to compute it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import check_options, check_range, check_tensors, ignore_values, is_ignored
from .blockwise import Blockwise, sweep
from .composed import composed
from .guarded import guarded, torch_is_right
from .terms import Question, reduced, working_dtype


def masked_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int | Sequence[int] = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy between logits and class indices in which ignored positions count for nothing.

    Agrees with ``torch.nn.functional.cross_entropy`` except that

    - the logits of an ignored position, whatever they hold, reach neither loss nor gradients, and get the gradient 0;
    - the mean over no position (all ignored, or an empty batch) is 0 with a gradient of zeros, instead of NaN;
    - ``ignore_index`` may name several values;
    - float16 and bfloat16 are computed in float32 and rounded once, at the end;
    - a class of weight 0 adds 0 to the loss even where its logit is -inf, instead of NaN.

    As there, a target whose logit is -inf has the loss +inf and a finite gradient; a valid position that holds NaN or
    +inf or nothing but -inf has a NaN loss and gradient; a mean over positions whose weights are all 0 is 0 / 0, NaN.

    Args:
        input: logits, (C), (N, C) or (N, C, d1, ..., dk), with any strides; float64, float32, bfloat16 or float16.
        target: classes from 0 to C - 1 or values to ignore, (), (N) or (N, d1, ..., dk), with any strides; int64, int32
            or uint8.
        weight: a weight per class, (C), in any floating point dtype. It gets no gradient.
        ignore_index: the value or the values that mark ignored positions, inside or outside the range of classes.
        reduction: "none", "mean" or "sum".
        label_smoothing: the share of each target that is spread evenly over all classes, from 0 to 1.

    Returns:
        The loss in the dtype of ``input``: a scalar, or of the target's shape for "none". It can be differentiated any
        number of times; the first gradient takes one buffer of the input's size.

    Raises:
        TypeError: a dtype other than the above; a floating point target, that is class probabilities, is not supported.
        ValueError: shapes or devices that do not match; an unknown reduction; a smoothing outside [0, 1]; a weight that
            requires a gradient.
        IndexError: a target that is neither a class nor ignored. Where values cannot be looked at, that is on devices
            other than the CPU and under torch.func and torch.compile, torch's own check of an index has to do.
    """
    check_options(reduction, label_smoothing)
    values = ignore_values(ignore_index)
    if input.dim() == 1 and target.dim() == 0:
        batch = input.unsqueeze(0), target.unsqueeze(0)
        options: dict[str, Any] = {"weight": weight, "reduction": reduction, "label_smoothing": label_smoothing}
        loss = masked_cross_entropy(*batch, ignore_index=values, **options)
        return loss.squeeze(0) if reduction == "none" else loss
    check_tensors(input, target, weight)
    target = target.long()  # before any comparison: as uint8, -100 would be 156
    weight = None if weight is None else weight.to(working_dtype(input))
    if _values_are_out_of_sight(input):
        question = Question.ask(target, is_ignored(target, values), weight, label_smoothing, reduction)
        return composed(input, question)
    if _is_small(input) and values and torch_is_right(input.shape[1], weight, label_smoothing):
        return guarded(input, target, values, weight, label_smoothing, reduction)
    ignored = is_ignored(target, values)
    question = Question.ask(target, ignored if ignored.any() else None, weight, label_smoothing, reduction)
    check_range(question.target.squeeze(1), input.shape[1], values)
    if _is_small(input):
        return composed(input, question)
    if torch.is_grad_enabled() and input.requires_grad:
        return Blockwise.apply(input, question)
    return reduced(sweep(input, question)[0], question).to(input.dtype)


class MaskedCrossEntropyLoss(nn.Module):
    """``masked_cross_entropy`` as a module: same arguments; ``weight`` is a buffer, as in torch's module."""

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int | Sequence[int] = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_options(reduction, label_smoothing)
        ignore_values(ignore_index)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Loss of logits (C), (N, C) or (N, C, d1, ..., dk) and a target of the same shape without C."""
        return masked_cross_entropy(input, target, weight=self.weight, **self._options())

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._options().items())

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("ignore_index", "reduction", "label_smoothing")}


def _is_small(input: Tensor) -> bool:
    """Where blocks do not save what they cost, which is Python code and operations on positions instead of logits."""
    return input.numel() <= 2**20 or input.shape[1] < 8


def _values_are_out_of_sight(input: Tensor) -> bool:
    """Whether a branch on a value would fail, break a graph or wait for a device."""
    return (
        torch.compiler.is_compiling()
        or not input.is_cpu
        or type(input) not in (Tensor, nn.Parameter)
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )
