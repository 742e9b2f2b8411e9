"""One pass over the logits on the CPU, in blocks that stay in the cache: the losses and, on the way, the gradient."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from . import buffers, thresholds
from .formula import (
    Objective,
    Shares,
    losses_of,
    nll_of,
    parted,
    rows_are_short,
    shares_of,
    smoothed,
    weighed,
    working_dtype,
)

Block = tuple[slice, ...] | Tensor  # slices, or the numbers of rows


def blockwise_pass(
    input: Tensor,
    objective: Objective,
    scale: Tensor | float | None,
    *,
    wants_losses: bool = True,
    into: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """The losses, 0 where ignored, and the gradient, if a scale for it is given.

    scale: what the gradient of each position's loss is multiplied with. into: the buffer for the gradient: that of an
    earlier gradient for the same objective, or the logits, which are then overwritten.
    """
    as_rows = goes_by_rows(input)
    x, target = _arranged(input, as_rows), _arranged(objective.target, as_rows)
    ignored = None if objective.ignored is None else _arranged(objective.ignored, as_rows)
    dtype = working_dtype(x)
    overwrites = into is input
    blocks = _blocks(x, ignored)
    shares = shares_of(x, target, objective) if objective.has_class_indices else None
    is_plain = shares is not None and shares.classes is None
    is_even = shares is not None and objective.weight is None and not is_plain
    evenly = objective.smoothing / x.shape[1] if is_even else 0.0  # what smoothing takes from the target for each class
    losses = torch.zeros((x.shape[0], 1, *x.shape[2:]), dtype=dtype, device=x.device) if wants_losses else None
    gradient = factor = None
    if scale is not None:
        scale = _arranged(scale, as_rows) if isinstance(scale, Tensor) else scale
        factor = scale * shares.target if is_plain and objective.weight is not None else scale
        factor = _cleared(factor, ignored, dtype)
        gradient = _room(input, x, blocks) if into is None else _arranged(into, as_rows)
    if overwrites and ignored is not None and x.dim() == 2:
        gradient.index_fill_(0, ignored.flatten().nonzero().flatten(), 0)
    scratch = buffers.Scratch(dtype)

    for at in blocks:
        t = target[at]
        logits = _load(x, at, scratch, overwrites)
        in_scratch = (
            gradient is None or gradient.dtype != dtype or isinstance(at, Tensor) or not gradient[at].is_contiguous()
        )
        out = scratch.shaped(logits.shape) if in_scratch else gradient[at]
        if is_plain or is_even:
            mean = logits.mean(1, keepdim=True) if is_even and losses is not None else None
            p = torch.softmax(logits, 1, out=out)
            p_target, p_others = parted(p, t)
            if losses is not None:
                before = partial(_before, x, at, logits, p)
                skipped = None if ignored is None else ignored[at]
                nll = nll_of(p, p_target, p_others, before, t, skipped)
                if mean is not None:
                    nll = _smoothed(nll, before(), mean, t, skipped, _part(shares, at), objective.smoothing)
                losses[at] = nll
            if gradient is not None:
                total = p_target + p_others
                # p_t - (1 - s) total; w_t is part of the factor
                p.scatter_(1, t, p_target.mul_(objective.smoothing).sub_(p_others, alpha=1 - objective.smoothing))
                _multiply(p, total, factor, evenly, at, ignored)
        else:
            p = torch.log_softmax(logits, 1, out=out)
            block_shares = smoothed(t, objective, dtype) if shares is None else _part(shares, at)
            if losses is not None:
                losses[at] = _general_losses(p, t, block_shares)
            share = block_shares.total if isinstance(block_shares, Shares) else block_shares.sum(1, keepdim=True)
            total = p.exp_().sum(1, keepdim=True)
            if losses is not None:
                # The loss of an infinite weight is infinite already, or NaN.
                losses[at] += share.masked_fill(share.isinf(), 0) * total.log()
            if gradient is not None:
                _make_difference(p, share / total, t, block_shares)
                _multiply(p, 1, factor, 0, at, ignored)
        if gradient is not None and in_scratch:
            gradient[at] = p.to(gradient.dtype) if isinstance(at, Tensor) else p

    if losses is not None:
        losses = weighed(losses, shares.target) if is_plain and objective.weight is not None else losses
        losses = losses if ignored is None else losses.masked_fill_(ignored, 0)
        losses = losses.view(input.shape[0], 1, *input.shape[2:])
    return losses, None if gradient is None else _as_logits(gradient, input.shape)


def scale_in_place(gradient: Tensor, factor: float, ignored: Tensor | None) -> Tensor:
    """Multiplies a gradient with a number, and leaves memory of ignored rows untouched."""
    as_rows = goes_by_rows(gradient)
    part = _arranged(gradient, as_rows)
    if ignored is None or not as_rows or part.data_ptr() != gradient.data_ptr():
        gradient.mul_(factor)
    else:
        for at in _blocks(part, _arranged(ignored, as_rows)):
            if isinstance(at, Tensor):
                part[at] = part[at] * factor
            else:
                part[at].mul_(factor)
    return gradient if ignored is None or math.isfinite(factor) else gradient.masked_fill_(ignored, 0)


# What happens to a block


def _load(x: Tensor, at: Block, scratch: buffers.Scratch, copies: bool) -> Tensor:
    """The logits, contiguous and in the scratch's dtype: where they are, or in the scratch."""
    if isinstance(at, Tensor) and x.dtype == scratch.dtype:
        return torch.index_select(x, 0, at, out=scratch.shaped(torch.Size((len(at), x.shape[1]))))
    block = _taken(x, at)
    if copies or block.dtype != scratch.dtype or not block.is_contiguous():
        # Copied to another dtype, a negative view of a half type loses its sign.
        return scratch.shaped(block.shape).copy_(block.resolve_neg())
    return block


def _before(x: Tensor, at: Block, loaded: Tensor, p: Tensor) -> Tensor:
    """The logits of a block whose softmax is p; which may stand where they were loaded to, and scattered rows cost a copy."""
    return _taken(x, at) if p.data_ptr() == loaded.data_ptr() else loaded


def _taken(x: Tensor, at: Block) -> Tensor:
    """x[at], which for the numbers of rows would take up to ten times as long in half types."""
    return x.index_select(0, at) if isinstance(at, Tensor) else x[at]


def _smoothed(
    nll: Tensor,
    logits: Tensor,
    mean: Tensor,
    target: Tensor,
    ignored: Tensor | None,
    shares: Shares,
    smoothing: float,
) -> Tensor:
    """(1 - s) (lse - x_t) + s (lse - the mean of x), for equal weights; where that is not finite, or the logits are far from 0, from
    each class by itself."""
    losses = nll + smoothing * (logits.gather(1, target).to(mean.dtype) - mean)
    is_fine = losses.isfinite() & (mean.abs() <= thresholds.FAR_MEAN)
    is_fine = is_fine if ignored is None else is_fine | ignored
    return losses if is_fine.all() else losses_of(_log_softmax(logits.to(mean.dtype)), target, shares)


def _log_softmax(logits: Tensor) -> Tensor:
    log_p = torch.log_softmax(logits, 1)
    return log_p.sub_(log_p.exp().sum(1, keepdim=True).log_())


def _general_losses(log_p: Tensor, target: Tensor, share: Shares | Tensor) -> Tensor:
    if isinstance(share, Shares):
        return losses_of(log_p, target, share)
    losses = -(share * log_p).sum(1, keepdim=True)
    return weighed(-log_p, share).sum(1, keepdim=True) if losses.isnan().any() else losses


def _make_difference(p: Tensor, scale: Tensor, target: Tensor, share: Shares | Tensor) -> None:
    """scale p - w q, in the place of p."""
    p.mul_(scale)
    if not isinstance(share, Shares):
        p.sub_(share)
        return
    p.scatter_add_(1, target, -share.target.expand(target.shape))
    if share.classes is not None:
        p.sub_(share.classes)


def _multiply(
    p: Tensor, total: Tensor | float, factor: Tensor | float, evenly: float, at: Block, ignored: Tensor | None
) -> None:
    """(p / total - evenly) * factor, in the place of p."""
    factor = factor[at] if isinstance(factor, Tensor) and factor.dim() else factor
    if isinstance(total, Tensor) or isinstance(factor, Tensor) or factor != 1:
        p.mul_(factor / total)
    if evenly:
        p.sub_(factor * evenly)  # torch.addcmul does both at once, in seven times the time
    if ignored is not None:
        bad = p[:, :1].isnan() & ignored[at]  # else 0 already; a softmax is NaN in all classes or in none
        if bad.any():
            p.masked_fill_(bad, 0)


# How a tensor is divided


def goes_by_rows(input: Tensor) -> bool:
    """Whether positions are best worked on as rows, and not as planes."""
    if rows_are_short(input):
        return False
    if input.dim() == 2:
        return True
    planes = input.flatten(2)
    return planes.shape[2] == 1 or planes.stride(1) == 1


def _arranged(value: Tensor, as_rows: bool) -> Tensor:
    """(M, C) or (N, C, S): a view, unless d1, ..., dk cannot be merged without a copy. C may be 1."""
    if value.dim() <= 2:
        return value if as_rows or not value.dim() else value.t().unsqueeze(0)
    planes = value.flatten(2)
    return planes.transpose(1, 2).reshape(-1, planes.shape[1]) if as_rows else planes


def _as_logits(gradient: Tensor, shape: torch.Size) -> Tensor:
    if gradient.dim() == 3 and len(shape) == 2:
        return gradient.squeeze(0).t()
    if gradient.dim() == 2 and len(shape) > 2:
        gradient = gradient.view(shape[0], -1, shape[1]).transpose(1, 2)
    return gradient.view(shape)


def _blocks(x: Tensor, ignored: Tensor | None) -> list[Block]:
    """What to work on together: rows, without long stretches of ignored ones, or planes."""
    size = thresholds.BLOCK_LOGITS * torch.get_num_threads()
    count = max(1, size // math.prod(x.shape[1:]))
    if x.dim() == 3:
        width = max(1, size // x.shape[1])
        return [
            (slice(n, n + count), slice(None), slice(s, s + width))
            for n in range(0, x.shape[0], count)
            for s in range(0, x.shape[2], width)
        ]
    if ignored is None:
        return [(slice(n, n + count),) for n in range(0, len(x), count)]
    valid = (~ignored).flatten().nonzero().flatten()
    stretches = _stretches(valid, len(x) // thresholds.GAP_PARTS + 1) if len(valid) else []
    if len(valid) < thresholds.SCATTERED_SHARE * sum(
        stop - start for start, stop in stretches
    ):  # else copying takes longer than it saves
        return list(valid.split(max(1, size // x.shape[1])))
    return [(slice(n, min(n + count, stop)),) for start, stop in stretches for n in range(start, stop, count)]


def _stretches(valid: Tensor, gap: int) -> list[tuple[int, int]]:
    """Where the valid rows are, first and last + 1, with no more than so many ignored ones in between."""
    last = (valid.diff() > gap).nonzero().flatten()
    starts = torch.cat([valid[:1], valid[last + 1]])
    stops = torch.cat([valid[last], valid[-1:]]) + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


def _room(input: Tensor, x: Tensor, blocks: list[Block]) -> Tensor:
    if x.dim() == 3:
        return _arranged(buffers.empty(tuple(input.shape), x.dtype), as_rows=False)
    rows = sum(len(at) if isinstance(at, Tensor) else len(range(*at[0].indices(len(x)))) for at in blocks)
    if rows == len(x):
        return buffers.empty(tuple(x.shape), x.dtype)
    pieces = sum(len(at) if isinstance(at, Tensor) else 1 for at in blocks)
    sparse = (
        rows < len(x) / thresholds.SPARSE_PARTS and rows * x.shape[1] * x.itemsize < pieces * thresholds.HUGE_PAGE / 2
    )
    return buffers.zeros(tuple(x.shape), x.dtype, sparse=sparse)


def _cleared(factor: Tensor | float, ignored: Tensor | None, dtype: torch.dtype) -> Tensor | float:
    """0 where ignored; a number or of the shape of the positions."""
    if isinstance(factor, Tensor) and not factor.dim():
        factor = float(factor)
    if ignored is None:
        return factor
    if isinstance(factor, Tensor):
        return factor.masked_fill(ignored, 0)
    wide = torch.full(ignored.shape, factor, dtype=torch.float64, device=ignored.device)
    return wide.to(dtype).masked_fill_(ignored, 0)  # a factor beyond float32 is infinite there


def _part(shares: Shares, at: Block) -> Shares:
    return shares._replace(target=_at(shares.target, at), total=_at(shares.total, at))


def _at(value: Tensor, at: Block) -> Tensor:
    return value[at] if value.dim() else value
