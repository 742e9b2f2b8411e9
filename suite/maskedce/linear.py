"""Cross-entropy of a linear layer's output that never holds the logits, as a function of hidden states and weight matrix."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import as_torch_takes_it, check_options, expected, ignore_values, is_ignored
from .blockwise import is_graph_kept
from .cross_entropy import masked_cross_entropy
from .linear_compiled import linear_loss_of_many_logits
from .linear_sweep import (
    Options,
    Positions,
    can_be_scaled,
    gradients_anew,
    loss_and_gradients,
    positions_of,
    wanted_gradients,
)
from .terms import dtype_of_loss, working_dtype

_FEW_LOGITS = 2**21  # all of them are held under torch.compile, and a matrix as large in float32


def linear_masked_cross_entropy(
    hidden: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int | Sequence[int] = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    normalizer: int | float | Tensor | None = None,
) -> Tensor:
    """``masked_cross_entropy(linear(hidden, linear_weight, linear_bias), target, ...)`` in a fraction of its memory.

    The hidden state of an ignored position, whatever it holds, reaches neither the loss nor the gradient of anything, and gets
    the gradient 0. Logits are sums in float32 (float64 for float64), also where the operands are of a half type, and are not
    rounded to it. The gradients of hidden states, matrix and bias are computed along with the loss, but for "none" and, in half
    types, for an upstream gradient other than 1: then the logits are computed again in the backward pass.

    What is held at a time are the logits of a sixth of the valid positions, or their hidden states where these are wider; more
    where that is fewer than eight million numbers, and no more than those of 512 positions, or sixteen million.

    Args:
        hidden: hidden states, (H) or (N, ..., H): classes of the output stand last, not second; float64, float32, bfloat16 or
            float16.
        linear_weight: the matrix, (C, H), in the dtype of ``hidden`` (in any dtype under ``torch.autocast``).
        target: classes from 0 to C - 1 or values to ignore, of the shape of ``hidden`` without its last dimension; int64, int32
            or uint8.
        linear_bias: (C), in the dtype of ``linear_weight``.
        weight: a weight per class, (C), in any floating point dtype. It gets no gradient.
        ignore_index: the value or the values that mark ignored positions, inside or outside the range of classes.
        reduction: "none", "mean" or "sum".
        label_smoothing: the share of each target that is spread evenly over all classes, from 0 to 1.
        normalizer: what the mean divides the sum of the losses by, in place of the sum of the weights of the valid positions: a
            number or a tensor of shape (), for instance the count of valid positions over several batches. It gets no gradient.

    Returns:
        The loss in the dtype of ``hidden``, under autocast in float32 if that is a half type: a scalar, or of the target's shape
        for "none". It can be differentiated any number of times, under torch.compile once; from the second derivative on, under
        torch.func and for tensor subclasses, all logits are held, and under torch.compile up to two million of them.

    Raises:
        TypeError: a dtype other than the above.
        ValueError: shapes, dtypes or devices that do not match; an unknown reduction; a smoothing outside [0, 1]; a weight or
            normalizer that requires a gradient; a normalizer for another reduction than "mean".
        IndexError: a target that is neither a class nor ignored.
    """
    check_options(reduction, label_smoothing, normalizer)
    values = ignore_values(ignore_index)
    if hidden.device.type != "meta" and torch.is_autocast_enabled(hidden.device.type):
        linear_weight = linear_weight.to(hidden.dtype)
        linear_bias = None if linear_bias is None else linear_bias.to(hidden.dtype)
    _check_tensors(hidden, linear_weight, target, linear_bias, weight)
    normalizer = as_torch_takes_it(normalizer)
    if isinstance(normalizer, Tensor):
        normalizer = normalizer.detach().clone()  # a running count may go on before the backward pass
    options = Options(values, reduction, float(label_smoothing), normalizer, dtype_of_loss(hidden))
    rows, flat = hidden.reshape(target.numel(), hidden.shape[-1]), target.reshape(-1).long()
    with _as_given(hidden):
        compiles = torch.compiler.is_compiling()
        few = len(rows) * len(linear_weight) < _FEW_LOGITS and not _is_widened_at_length(linear_weight)
        if (compiles and few) or _needs_plain_operations(hidden, linear_weight, linear_bias, weight):
            loss = _composed(rows, linear_weight, linear_bias, flat, weight, options)
        elif compiles:
            loss = linear_loss_of_many_logits(rows, linear_weight, linear_bias, flat, weight, options)
        else:
            positions = positions_of(flat, linear_weight.shape[0], weight, options, working_dtype(hidden))
            wanted = wanted_gradients(rows, linear_weight, linear_bias)
            loss = _Chunked.apply(rows, linear_weight, linear_bias, flat, weight, positions, options, wanted)
    return loss.reshape(target.shape) if reduction == "none" else loss


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        matrix: Tensor,
        bias: Tensor | None,
        target: Tensor,
        weight: Tensor | None,
        positions: Positions,
        options: Options,
        wanted: Sequence[bool],
    ) -> Tensor:
        loss, gradients = loss_and_gradients(hidden, matrix, bias, positions, options, wanted)
        ctx.save_for_backward(hidden, matrix, bias, target, weight, *gradients)
        ctx.positions, ctx.options = positions, options
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, matrix, bias, target, weight, *gradients = ctx.saved_tensors
        positions, options, wanted = ctx.positions, ctx.options, ctx.needs_input_grad[:3]
        nothing = (None,) * 5
        with _as_given(hidden):
            if torch.is_grad_enabled() or not torch._C._has_storage(upstream):  # create_graph; a wrapper of vmap
                with torch.enable_grad():
                    # Views, for the hidden states may be made of the matrix: what reaches it by them is not for here.
                    hidden, matrix, bias = (None if t is None else t.view_as(t) for t in (hidden, matrix, bias))
                    loss = _composed(hidden, matrix, bias, target, weight, options)
                    inputs = [t for t, w in zip((hidden, matrix, bias), wanted, strict=True) if w]
                    found = iter(torch.autograd.grad(loss, inputs, upstream, create_graph=True))
                return *(next(found) if w else None for w in wanted), *nothing
            unit = options.reduction != "none" and upstream == 1
            # An infinite one by 0 would be NaN at ignored states.
            if unit or (can_be_scaled(hidden, options.reduction) and upstream.isfinite()):
                may_change = not is_graph_kept()
                done = [
                    None
                    if g is None
                    else (g if may_change else g.clone())
                    if unit
                    else g.mul_(upstream)
                    if may_change
                    else g * upstream
                    for g in gradients
                ]
                return *done, *nothing
            return *gradients_anew(upstream, hidden, matrix, bias, positions, wanted), *nothing


def _composed(
    hidden: Tensor, matrix: Tensor, bias: Tensor | None, target: Tensor, weight: Tensor | None, options: Options
) -> Tensor:
    """The loss by way of all logits, in operations that can be differentiated any number of times, traced and mapped."""
    dtype = working_dtype(hidden)
    ignored = is_ignored(target, options.ignored)
    kept = hidden.masked_fill(ignored.unsqueeze(1), 0).to(dtype)
    x = nn.functional.linear(kept, matrix.to(dtype), None if bias is None else bias.to(dtype))
    loss = masked_cross_entropy(
        x,
        target,
        weight=weight,
        ignore_index=options.ignored,
        reduction=options.reduction,
        label_smoothing=options.smoothing,
        normalizer=options.normalizer,
    )
    return loss.to(options.dtype)


def _as_given(x: Tensor) -> AbstractContextManager[Any]:
    """Dtypes are what is said here, not what autocast makes of them, if the device has it."""
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)


def _is_widened_at_length(matrix: Tensor) -> bool:
    """Whether ``_composed`` would make a large copy of the matrix, and keep it for the backward pass."""
    return matrix.dtype != working_dtype(matrix) and matrix.numel() >= _FEW_LOGITS


def _needs_plain_operations(*tensors: Tensor | None) -> bool:
    """Whether a branch on a value would fail or break a graph."""
    return (
        any(type(t) not in (Tensor, nn.Parameter) or t.device.type == "meta" for t in tensors if t is not None)
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


def _check_tensors(hidden: Tensor, matrix: Tensor, target: Tensor, bias: Tensor | None, weight: Tensor | None) -> None:
    if hidden.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise TypeError(expected("dtype of hidden", "float64, float32, bfloat16 or float16", hidden.dtype))
    if target.dtype not in (torch.int64, torch.int32, torch.uint8):
        hint = " (class probabilities are not supported)" if target.is_floating_point() else ""
        raise TypeError(expected("dtype of target", "class indices in int64, int32 or uint8", f"{target.dtype}{hint}"))
    if not hidden.dim():
        raise ValueError(expected("shape of hidden", "(H) or (N, ..., H)", "()"))
    if matrix.dim() != 2 or not len(matrix) or matrix.shape[1] != hidden.shape[-1]:
        wanted = f"(C, {hidden.shape[-1]}) with C > 0 for hidden states of shape {tuple(hidden.shape)}"
        raise ValueError(expected("shape of linear_weight", wanted, tuple(matrix.shape)))
    if target.shape != hidden.shape[:-1]:
        wanted = f"{tuple(hidden.shape[:-1])} for hidden states of shape {tuple(hidden.shape)}"
        raise ValueError(expected("shape of target", wanted, tuple(target.shape)))
    for name, tensor in (("linear_bias", bias), ("weight", weight)):
        if tensor is not None and tensor.shape != matrix.shape[:1]:
            raise ValueError(
                expected(f"shape of {name}", f"({len(matrix)},), one number per class", tuple(tensor.shape))
            )
    for name, tensor in (("linear_weight", matrix), ("linear_bias", bias)):
        if tensor is not None and tensor.dtype != hidden.dtype:
            raise ValueError(expected(f"dtype of {name}", f"{hidden.dtype} as of hidden", tensor.dtype))
    named = (("linear_weight", matrix), ("target", target), ("linear_bias", bias), ("weight", weight))
    for name, tensor in named:
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(expected(f"device of {name}", f"{hidden.device} as of hidden", tensor.device))
    if weight is not None and not weight.is_floating_point():
        raise TypeError(expected("dtype of weight", "floating point", weight.dtype))
    if weight is not None and weight.requires_grad and torch.is_grad_enabled():
        raise ValueError(expected("requires_grad of weight", "False, for it gets no gradient (detach it)", "True"))
