"""Cross-entropy of a linear layer's output that never holds the logits: hidden states and weight matrix to loss and gradients.

With hidden states h (M, H), matrix V (C, H) and bias b (C), the logits are x = h V^T + b, the loss is that of ``losses``, and

    gradient of h = d V,    of V = d^T h,    of b = the sum of d over the positions,    d = u / D (A p - w q)

The logits of a few valid positions at a time become their d in place; ignored positions are left out before anything is
computed. How much room a few positions take is in ``_positions_at_once``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .arguments import check_options, expected, ignore_values, is_ignored
from .blockwise import is_graph_kept
from .cross_entropy import masked_cross_entropy
from .products import product_for
from .terms import weighed, working_dtype

_SMALLEST_CHUNK, _LARGEST_CHUNK = 2**21, 2**24  # logits
_CACHED = 2**21  # logits worked on together; fewer are nearer in the cache, but each operation wakes all threads


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
        The loss in the dtype of ``hidden``: a scalar, or of the target's shape for "none". It can be differentiated any number of
        times; from the second derivative on, and under torch.func, torch.compile and for tensor subclasses, all logits are held.

    Raises:
        TypeError: a dtype other than the above.
        ValueError: shapes, dtypes or devices that do not match; an unknown reduction; a smoothing outside [0, 1]; a weight or
            normalizer that requires a gradient; a normalizer for another reduction than "mean".
        IndexError: a target that is neither a class nor ignored.
    """
    check_options(reduction, label_smoothing, normalizer)
    values = ignore_values(ignore_index)
    if torch.is_autocast_enabled(hidden.device.type):
        linear_weight = linear_weight.to(hidden.dtype)
        linear_bias = None if linear_bias is None else linear_bias.to(hidden.dtype)
    _check_tensors(hidden, linear_weight, target, linear_bias, weight)
    options = _Options(values, reduction, label_smoothing, normalizer)
    rows, flat = hidden.reshape(-1, hidden.shape[-1]), target.reshape(-1).long()
    with _as_given(hidden):
        if _needs_plain_operations(hidden, linear_weight, linear_bias, weight):
            loss = _composed(rows, linear_weight, linear_bias, flat, weight, options)
        else:
            positions = _positions(flat, linear_weight.shape[0], weight, options, working_dtype(hidden))
            loss = _Chunked.apply(rows, linear_weight, linear_bias, flat, weight, positions, options)
    return loss.reshape(target.shape) if reduction == "none" else loss


class _Options(NamedTuple):
    ignored: tuple[int, ...]
    reduction: str
    smoothing: float
    normalizer: int | float | Tensor | None


class _Positions(NamedTuple):
    """What belongs to the valid positions, K in number, in the working dtype; their w q has the parts ``of_*``."""

    rows: Tensor | None  # (K), where they stand among all; None if all are valid
    target: Tensor  # (K)
    of_target: Tensor  # (K), w_t (1 - s)
    of_classes: Tensor | None  # (C) or (), w_c s / C; None without smoothing
    total: Tensor | None  # (K), A; None where it is 1
    denominator: Tensor  # (), 1 unless the reduction is the mean


def _positions(
    target: Tensor, classes: int, weight: Tensor | None, options: _Options, dtype: torch.dtype
) -> _Positions:
    ignored = is_ignored(target, options.ignored)
    rows = (~ignored).nonzero().flatten() if ignored.any() else None
    valid = target if rows is None else target[rows]
    wrong = ((valid < 0) | (valid >= classes)).nonzero().flatten()
    if len(wrong):
        at = int(wrong[0] if rows is None else rows[wrong[0]])
        wanted = (
            f"a class from 0 to {classes - 1}, or {' or '.join(map(str, options.ignored)) or 'nothing'} to be ignored"
        )
        raise IndexError(expected("target", wanted, f"{int(target[at])} at position {at} of the flattened target"))
    s, one = options.smoothing, torch.ones((), dtype=dtype, device=target.device)
    w = one.expand(classes) if weight is None else weight.to(dtype)
    counted = w[valid]
    of_classes = None if not s else one * s / classes if weight is None else w * (s / classes)
    denominator = one
    if options.normalizer is not None:
        denominator = torch.as_tensor(options.normalizer, dtype=dtype, device=target.device)
    elif options.reduction == "mean" and len(valid):
        denominator = counted.sum()
    total = None if weight is None else counted * (1 - s) + w.mean() * s
    return _Positions(rows, valid, counted * (1 - s), of_classes, total, denominator)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        matrix: Tensor,
        bias: Tensor | None,
        target: Tensor,
        weight: Tensor | None,
        positions: _Positions,
        options: _Options,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[:3]
        at_once = any(wanted) and options.reduction != "none"
        scale = torch.ones_like(positions.denominator) / positions.denominator if at_once else None
        losses, gradients = _sweep(hidden, matrix, bias, positions, scale, wanted)
        ctx.save_for_backward(hidden, matrix, bias, target, weight, *gradients)
        ctx.positions, ctx.options = positions, options
        if options.reduction == "none":
            return losses.to(hidden.dtype)
        return (losses.sum() / positions.denominator).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, matrix, bias, target, weight, *gradients = ctx.saved_tensors
        positions, options, wanted = ctx.positions, ctx.options, ctx.needs_input_grad[:3]
        nothing = (None,) * 4
        with _as_given(hidden):
            if torch.is_grad_enabled() or not torch._C._has_storage(upstream):  # create_graph; a wrapper of vmap
                with torch.enable_grad():
                    loss = _composed(hidden, matrix, bias, target, weight, options)
                    inputs = [t for t, w in zip((hidden, matrix, bias), wanted, strict=True) if w]
                    found = iter(torch.autograd.grad(loss, inputs, upstream, create_graph=True))
                return *(next(found) if w else None for w in wanted), *nothing
            unit = options.reduction != "none" and upstream == 1
            if unit or (options.reduction != "none" and hidden.dtype == working_dtype(hidden)):
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
            scale = upstream.to(positions.denominator.dtype) / positions.denominator
            if scale.dim() and positions.rows is not None:
                scale = scale[positions.rows]
            return *_sweep(hidden, matrix, bias, positions, scale, wanted)[1], *nothing


def _sweep(
    hidden: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    positions: _Positions,
    scale: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, list[Tensor | None]]:
    """The losses (M), 0 where ignored; and, given u / D as ``scale``, () or (K), those gradients that are wanted."""
    dtype, classes = working_dtype(hidden), matrix.shape[0]
    losses = hidden.new_zeros(len(hidden), dtype=dtype)
    count, chunk = len(positions.target), _positions_at_once(len(positions.target), classes)
    chunks = [slice(n, min(n + chunk, count)) for n in range(0, count, chunk)]
    product = product_for(matrix, min(chunk, count), len(chunks))
    wants_hidden, wants_matrix, wants_bias = (w and scale is not None for w in wanted)
    of_hidden = torch.zeros_like(hidden, memory_format=torch.contiguous_format) if wants_hidden else None
    of_bias = torch.zeros(classes, dtype=dtype, device=hidden.device) if wants_bias else None
    scale = None if scale is None else scale.expand(count)
    shift = None if bias is None else bias.to(dtype)

    step = max(1, min(_CACHED // classes, chunk))
    room = torch.empty(min(step, count), classes, dtype=dtype, device=hidden.device)
    for at in chunks:
        rows = None if positions.rows is None else positions.rows[at]
        h = (hidden[at] if rows is None else hidden[rows]).contiguous()
        product.fill(h)
        for n in range(0, len(h), step):
            few = slice(n, min(n + step, len(h)))
            x = product.logits(few)
            if shift is not None:
                x += shift
            mine = _part(positions, slice(at.start + few.start, at.start + few.stop))
            found, d = _losses_and_difference(x, mine, room[: len(x)])
            losses[slice(at.start + few.start, at.start + few.stop) if mine.rows is None else mine.rows] = found
            if scale is not None:
                u = scale[at][few]
                if of_bias is None:
                    torch.mul(d, u.unsqueeze(1), out=product.place(few))
                else:
                    product.place(few).copy_(d.mul_(u.unsqueeze(1)))
                    of_bias += d.sum(0)  # not a product with ones, which adds naively
        if of_hidden is not None:
            if rows is None:
                product.times_matrix(len(h), out=of_hidden[at])
            else:
                of_hidden[rows] = product.times_matrix(len(h))
        if wants_matrix:
            product.add_outer(h)
    of_matrix = product.outer() if wants_matrix else None
    return losses, [of_hidden, of_matrix, None if of_bias is None else of_bias.to(matrix.dtype)]


def _losses_and_difference(x: Tensor, mine: _Positions, room: Tensor) -> tuple[Tensor, Tensor]:
    """The losses of the positions with logits x (R, C), and, in the room of x's shape, A p - w q."""
    t = mine.target.unsqueeze(1)
    if mine.of_classes is None:
        p = torch.softmax(x, 1, out=room)
        nll = -p.gather(1, t).log()
        if bool((nll > -math.log(torch.finfo(p.dtype).tiny) - 10).any()):  # p_t has underflowed, or is about to
            nll = x.amax(1, keepdim=True) - x.gather(1, t) - p.amax(1, keepdim=True).log()
        losses = weighed(nll.squeeze(1), mine.of_target)
    else:
        log_p = torch.log_softmax(x, 1, out=room)
        losses = weighed(-log_p.gather(1, t).squeeze(1), mine.of_target)
        losses += weighed(-log_p, mine.of_classes).sum(1)
        p = log_p.exp_()
    if mine.total is not None:
        p *= mine.total.unsqueeze(1)
    p.scatter_add_(1, t, -mine.of_target.unsqueeze(1))
    if mine.of_classes is not None:
        p -= mine.of_classes
    return losses, p


def _part(positions: _Positions, few: slice) -> _Positions:
    rows, target, of_target, of_classes, total, denominator = positions
    return _Positions(
        None if rows is None else rows[few],
        target[few],
        of_target[few],
        of_classes,
        None if total is None else total[few],
        denominator,
    )


def _positions_at_once(count: int, classes: int) -> int:
    """An eighth of the positions, unless that makes few or very many logits: a matrix product wants many rows at a time."""
    size = min(max(count * classes // 8, _SMALLEST_CHUNK), _LARGEST_CHUNK)
    return max(1, min(count, -(-size // classes)))


def _composed(
    hidden: Tensor, matrix: Tensor, bias: Tensor | None, target: Tensor, weight: Tensor | None, options: _Options
) -> Tensor:
    """The loss by way of all logits, in operations that can be differentiated any number of times, traced and mapped."""
    dtype = working_dtype(hidden)
    ignored = is_ignored(target, options.ignored)
    kept = hidden.masked_fill(ignored.unsqueeze(1), 0).to(dtype)
    x = nn.functional.linear(kept, matrix.to(dtype), None if bias is None else bias.to(dtype))
    by_count = options.normalizer is None
    loss = masked_cross_entropy(
        x,
        target,
        weight=weight,
        ignore_index=options.ignored,
        reduction=options.reduction if by_count else "sum",
        label_smoothing=options.smoothing,
    )
    return (loss if by_count else loss / options.normalizer).to(hidden.dtype)


def _as_given(x: Tensor) -> AbstractContextManager[Any]:
    """Dtypes are what is said here, not what autocast makes of them."""
    return torch.autocast(x.device.type, enabled=False)


def _needs_plain_operations(*tensors: Tensor | None) -> bool:
    """Whether a branch on a value would fail or break a graph."""
    return (
        torch.compiler.is_compiling()
        or any(type(t) not in (Tensor, nn.Parameter) for t in tensors if t is not None)
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
