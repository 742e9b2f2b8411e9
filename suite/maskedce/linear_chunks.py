"""Hidden states and weight matrix to loss and gradients, a chunk of positions at a time: the logits are never held at once.

With hidden states h (M, H), matrix V (C, H) and bias b (C), the logits are x = h V^T + b, the loss is that of ``maskedce``, and

    gradient of h = d V,    of V = d^T h,    of b = the sum of d over the positions,    d = u / D (A p - w q)

The logits of a few valid positions at a time become their d in place; ignored positions are left out before anything is
computed. How much room a few positions take is in ``_positions_at_once``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import thresholds
from .arguments import expected, is_ignored
from .formula import nll_of, parted, weighed, working_dtype
from .linear_products import product_for, rounded


class Options(NamedTuple):
    ignored: tuple[int, ...]
    reduction: str
    smoothing: float
    normalizer: int | float | Tensor | None
    dtype: torch.dtype  # of the loss


class LinearCall(NamedTuple):
    """A call of the linear loss with positions in one dimension, its arguments checked."""

    hidden: Tensor  # (M, H)
    matrix: Tensor  # (C, H)
    bias: Tensor | None  # (C)
    target: Tensor  # (M), int64
    weight: Tensor | None  # (C)
    options: Options


class Positions(NamedTuple):
    """What belongs to the valid positions, K in number, in the working dtype; their w q has the parts ``of_*``."""

    rows: Tensor | None  # (K), where they stand among all; None if all are valid
    target: Tensor  # (K)
    of_target: Tensor  # (K), w_t (1 - s)
    of_classes: Tensor | None  # (C) or (), w_c s / C; None without smoothing
    total: Tensor | None  # (K), A; None where it is 1
    denominator: Tensor  # (), 1 unless the reduction is the mean


def positions_of(
    target: Tensor, classes: int, weight: Tensor | None, options: Options, dtype: torch.dtype
) -> Positions:
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
    if options.normalizer is not None and len(valid):
        denominator = torch.as_tensor(options.normalizer, dtype=dtype, device=target.device)
    elif options.reduction == "mean" and len(valid):
        denominator = counted.sum()
    total = None if weight is None else counted * (1 - s) + (w.mean() * s if s else 0)  # not inf * 0
    return Positions(rows, valid, counted * (1 - s), of_classes, total, denominator)


def wanted_gradients(*tensors: Tensor | None) -> list[bool]:
    """Which gradients may be asked for; ``ctx.needs_input_grad`` does not know of no_grad."""
    return [torch.is_grad_enabled() and t is not None and t.requires_grad for t in tensors]


def loss_and_gradients(
    hidden: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    positions: Positions,
    options: Options,
    wanted: Sequence[bool],
) -> tuple[Tensor, list[Tensor | None]]:
    """The loss; and the gradients that are wanted of hidden states, matrix and bias for an upstream gradient of 1, but for "none",
    where nobody knows yet what it will be."""
    at_once = any(wanted) and options.reduction != "none"
    scale = torch.ones_like(positions.denominator) / positions.denominator if at_once else None
    losses, gradients = chunked_pass(hidden, matrix, bias, positions, scale, wanted)
    loss = losses if options.reduction == "none" else losses.sum() / positions.denominator
    return loss.to(options.dtype), gradients


def can_be_scaled(hidden: Tensor, reduction: str) -> bool:
    """Whether a gradient for another upstream gradient is that for 1 times it; half types would be rounded twice."""
    return reduction != "none" and hidden.dtype == working_dtype(hidden)


def gradients_anew(
    upstream: Tensor,
    hidden: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    positions: Positions,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    scale = upstream.to(positions.denominator.dtype) / positions.denominator
    if scale.dim() and positions.rows is not None:
        scale = scale[positions.rows]
    return chunked_pass(hidden, matrix, bias, positions, scale, wanted)[1]


def chunked_pass(
    hidden: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    positions: Positions,
    scale: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, list[Tensor | None]]:
    """The losses (M), 0 where ignored; and, given u / D as ``scale``, () or (K), those gradients that are wanted."""
    dtype, classes = working_dtype(hidden), matrix.shape[0]
    losses = hidden.new_zeros(len(hidden), dtype=dtype)
    count = len(positions.target)
    chunk = _positions_at_once(count, max(matrix.shape))
    chunks = [slice(n, min(n + chunk, count)) for n in range(0, count, chunk)]
    product = product_for(matrix, chunk, len(chunks))
    wants_hidden, wants_matrix, wants_bias = (w and scale is not None for w in wanted)
    of_hidden = torch.zeros_like(hidden, memory_format=torch.contiguous_format) if wants_hidden else None
    of_bias = torch.zeros(classes, dtype=dtype, device=hidden.device) if wants_bias else None
    scale = None if scale is None else scale.expand(count)
    shift = None if bias is None else bias.to(dtype)

    step = max(1, min(thresholds.CACHED_LOGITS // classes, chunk))
    room = torch.empty(min(step, count), classes, dtype=dtype, device=hidden.device)
    for at in chunks:
        rows = None if positions.rows is None else positions.rows[at]
        size = at.stop - at.start
        h = hidden[at].contiguous() if rows is None else hidden[rows]
        if rounded(size) > size:
            h = nn.functional.pad(h, (0, 0, 0, rounded(size) - size))
        product.fill(h)
        product.place(slice(size, len(h))).zero_()
        for n in range(0, size, step):
            few = slice(n, min(n + step, size))
            x = product.logits(few)
            if shift is not None:
                x += shift
            few_positions = _part(positions, slice(at.start + few.start, at.start + few.stop))
            found, d = _losses_and_difference(x, few_positions, room[: len(x)])
            losses[
                slice(at.start + few.start, at.start + few.stop) if few_positions.rows is None else few_positions.rows
            ] = found
            if scale is not None:
                u = scale[at][few]
                if of_bias is None:
                    torch.mul(d, u.unsqueeze(1), out=product.place(few))
                else:
                    product.place(few).copy_(d.mul_(u.unsqueeze(1)))
                    of_bias += d.sum(0)  # not a product with ones, which adds naively
        if of_hidden is not None:
            of_hidden[at if rows is None else rows] = product.times_matrix(len(h))[:size]
        if wants_matrix:
            product.add_outer(h)
    of_matrix = product.outer() if wants_matrix else None
    return losses, [of_hidden, of_matrix, None if of_bias is None else of_bias.to(matrix.dtype)]


def _losses_and_difference(x: Tensor, few_positions: Positions, room: Tensor) -> tuple[Tensor, Tensor]:
    """The losses of the positions with logits x (R, C), and, in the room of x's shape, A p - w q."""
    t = few_positions.target.unsqueeze(1)
    if few_positions.of_classes is None:
        p = torch.softmax(x, 1, out=room)
        p_target, p_others = parted(p, t)
        losses = weighed(nll_of(p, p_target, p_others, lambda: x, t).squeeze(1), few_positions.of_target)
        share = few_positions.of_target.unsqueeze(1) / (p_target + p_others)
        return losses, p.mul_(share).scatter_(1, t, -p_others * share)
    log_p = torch.log_softmax(x, 1, out=room)
    log_p -= log_p.exp().sum(1, keepdim=True).log_()  # not quite 0, see parted
    losses = weighed(-log_p.gather(1, t).squeeze(1), few_positions.of_target)
    losses += weighed(-log_p, few_positions.of_classes).sum(1)
    p = log_p.exp_()
    if few_positions.total is not None:
        p *= few_positions.total.unsqueeze(1)
    p.scatter_add_(1, t, -few_positions.of_target.unsqueeze(1))
    p -= few_positions.of_classes
    return losses, p


def _part(positions: Positions, few: slice) -> Positions:
    rows, target, of_target, of_classes, total, denominator = positions
    return Positions(
        None if rows is None else rows[few],
        target[few],
        of_target[few],
        of_classes,
        None if total is None else total[few],
        denominator,
    )


def _positions_at_once(count: int, width: int) -> int:
    """A seventh of the positions, unless that makes few numbers, or more than products gain from; all chunks alike, but for ``rounded``.

    Each chunk reads and packs the whole matrix for each product, which few positions do not pay for. width: how many logits or
    features a position has, whichever are more, for its hidden state and the gradient of that take room as well.
    """
    most = max(thresholds.ENOUGH_POSITIONS, thresholds.LARGEST_CHUNK // width)
    size = min(max(count / thresholds.CHUNKS, thresholds.SMALLEST_CHUNK / width), most)
    chunks = math.ceil(count / max(size, 1))
    return rounded(math.ceil(count / chunks)) if chunks else 1


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Dtypes are those written here, and not what autocast makes of them, where the device has it."""
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)
