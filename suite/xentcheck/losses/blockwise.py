"""The loss of many logits on the CPU: one sweep over blocks, into one buffer of the logits' size."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .buffers import Box, load
from .composed import composed_gradient
from .terms import Question, Shares, losses_of, reduced, scale_of, shares_of, weighed, working_dtype

_SMALLEST_BLOCK, _LARGEST_BLOCK = 2**18, 2**22  # logits


class Blockwise(torch.autograd.Function):
    """The loss by a sweep over blocks, which makes of the softmax at hand the gradient for an upstream gradient of 1.

    For another one, the backward pass scales it in place in float32 and float64, and sweeps again in half types, where
    the rounding has to come last.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, question: Question) -> Tensor:
        dtype = working_dtype(input)
        unlikely = input.dtype != dtype and question.reduction == "none"
        scale = None if unlikely else scale_of(torch.ones(()), question, dtype)
        losses, gradient = sweep(input, question, scale)
        ctx.save_for_backward(input, *question[:3], gradient)
        ctx.options = question[3:]
        return reduced(losses, question).to(input.dtype, copy=True)  # a view could not be changed in place

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        input, target, ignored, weight, gradient = ctx.saved_tensors
        question = Question(target, ignored, weight, *ctx.options)
        if torch.is_grad_enabled() or not torch._C._has_storage(upstream):  # create_graph; a wrapper of vmap
            return composed_gradient(input, upstream, question), None
        may_change = not _is_graph_kept()
        if gradient is not None and upstream.dim() == 0 and upstream == 1:
            return gradient if may_change else gradient.clone(), None
        if input.dtype != working_dtype(input):
            scale = scale_of(upstream, question, working_dtype(input))
            room = gradient if may_change else None
            return sweep(input, question, scale, want_losses=False, gradient=room)[1], None
        scale = upstream.unsqueeze(1) if upstream.dim() else upstream
        if ignored is not None:
            scale = scale.expand(ignored.shape).masked_fill(ignored, 0)  # inf * 0 is no 0
        return gradient.mul_(scale) if may_change else gradient * scale, None


def _is_graph_kept() -> bool:
    """Whether backward may come again (retain_graph), so that what it has saved must stay."""
    asked = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return asked is None or asked()


def sweep(
    input: Tensor,
    question: Question,
    scale: Tensor | None = None,
    *,
    want_losses: bool = True,
    gradient: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """The losses, 0 where ignored; and, given its scale, the gradient, in the room of an earlier one if given."""
    x = _rows_or_planes(input)
    dtype = working_dtype(x)
    positions = (x.shape[0], 1, *x.shape[2:])

    def arranged(value: Tensor) -> Tensor:
        return value.reshape(positions) if value.dim() else value

    target = arranged(question.target)
    ignored = None if question.ignored is None else arranged(question.ignored)
    shares = shares_of(x, target, question)
    losses = torch.zeros(positions, dtype=dtype) if want_losses else None
    if scale is not None:
        gradient = torch.empty(x.shape, dtype=x.dtype) if gradient is None else _rows_or_planes(gradient)
        scale = arranged(scale)
        if ignored is not None and x.dim() == 3:  # ignored rows are left out
            scale = scale.expand(positions).masked_fill(ignored, 0)
    inbox, outbox = Box(dtype), Box(dtype)

    for at in _blocks(x, ignored):
        logits, t = load(x, at, inbox), target[at]
        mine = shares._replace(target=_part(shares.target, at), total=_part(shares.total, at))
        in_place = gradient is not None and gradient.dtype == dtype and isinstance(at, slice)
        out = gradient[at] if in_place else outbox.shaped(*logits.shape)
        if losses is None or (gradient is not None and x.dim() == 2 and shares.classes is None):
            p = torch.softmax(logits, 1, out=out)
            if losses is not None:
                losses[at] = weighed(_nll_beside_softmax(p, logits, t), mine.target)
        else:
            log_p = torch.log_softmax(logits, 1, out=out)
            losses[at] = losses_of(log_p, t, mine)
            p = log_p if gradient is None else log_p.exp_()
        if gradient is not None:
            _make_difference(p, t, mine)
            if isinstance(at, slice):
                torch.mul(p, _part(scale, at), out=gradient[at])
            else:
                gradient[at] = p.mul_(_part(scale, at)).to(gradient.dtype)

    if ignored is not None:
        _clear(losses, gradient, ignored)
    if losses is not None:
        losses = losses.view(question.target.shape)
    if gradient is not None and gradient.dim() == 2 and input.dim() > 2:
        gradient = gradient.view(input.shape[0], -1, input.shape[1]).transpose(1, 2)
    return losses, None if gradient is None else gradient.view(input.shape)


def _make_difference(p: Tensor, target: Tensor, shares: Shares) -> None:
    """A p - w q, in the place of p."""
    if shares.total.dim():  # otherwise 1
        p.mul_(shares.total)
    p.scatter_add_(1, target, -shares.target.expand(target.shape))
    if shares.classes is not None:
        p.sub_(shares.classes)


def _nll_beside_softmax(p: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    """-log p_t. What rounding p_t costs its logarithm, rounding lse would cost as well, unless p_t has underflowed."""
    nll = -p.gather(1, target).log()
    if bool((nll > -math.log(torch.finfo(p.dtype).tiny) - 10).any()):
        nll = logits.amax(1, keepdim=True) - logits.gather(1, target) - p.amax(1, keepdim=True).log()
    return nll


def _rows_or_planes(input: Tensor) -> Tensor:
    """(M, C) where classes lie together, else (N, C, S): a view, unless d1, ..., dk cannot be merged without a copy."""
    if input.dim() == 2:
        return input
    planes = input.flatten(2)
    if planes.shape[2] == 1 or planes.stride(1) == 1:
        return planes.transpose(1, 2).reshape(-1, planes.shape[1])
    return planes


def _blocks(x: Tensor, ignored: Tensor | None) -> list[slice | Tensor]:
    """What to work on together, along the first dimension: the valid rows, or all planes.

    A block and its softmax should stay in the cache from one operation to the next; but each operation on one starts
    and joins the threads, which takes long where others want the cores too. So 16 blocks, if not too small or large.
    """
    size = min(max(x.numel() // 16, _SMALLEST_BLOCK), _LARGEST_BLOCK)
    count = max(1, size // math.prod(x.shape[1:]))
    if x.dim() == 3 or ignored is None:
        return [slice(n, n + count) for n in range(0, x.shape[0], count)]
    blocks: list[slice | Tensor] = []
    for rows in (~ignored).flatten().nonzero().flatten().split(count):
        if len(rows):
            first, last = int(rows[0]), int(rows[-1])
            blocks.append(slice(first, last + 1) if last - first + 1 == len(rows) else rows)
    return blocks


def _part(value: Tensor, at: slice | Tensor) -> Tensor:
    return value[at] if value.dim() else value


def _clear(losses: Tensor | None, gradient: Tensor | None, ignored: Tensor) -> None:
    if losses is not None:
        losses.masked_fill_(ignored, 0)
    if gradient is None:
        return
    if gradient.dim() == 2:
        gradient.index_fill_(0, ignored.flatten().nonzero().flatten(), 0)
    elif (gradient[:, :1].isnan() & ignored).any():  # else 0 already; a softmax is NaN in all classes or in none
        gradient.masked_fill_(ignored, 0)
