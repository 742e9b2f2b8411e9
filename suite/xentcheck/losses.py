"""Cross-entropy with ignored targets: right whatever ignored positions hold, accurate in every dtype, fast on the CPU.

The loss of a position with logits x, target class t, class weights w and label smoothing s is, as in the documentation
of ``torch.nn.CrossEntropyLoss`` and, for the smoothing, Szegedy et al. 2016 (arXiv:1512.00567, section 7),

    l = sum_c w_c q_c (lse - x_c),    q_c = (1 - s) [c = t] + s / C,    lse = log sum_c exp(x_c)

and its gradient is A p_j - w_j q_j with p = softmax(x) and A = sum_c w_c q_c. The mean is the sum of the losses over
the sum of w_t over the positions that are not ignored. ``masked_cross_entropy`` computes this in one of three ways:

- ``_guarded``: few logits on the CPU; torch's own loss, kept from what it gets wrong;
- ``_Blockwise``: many logits on the CPU; one sweep over blocks, into one buffer of the logits' size;
- ``_composed``: plain torch operations that never branch on a value: other devices, torch.func, torch.compile.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["MaskedCrossEntropyLoss", "masked_cross_entropy"]

_SMALLEST_BLOCK, _LARGEST_BLOCK = 2**18, 2**22  # logits


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
    _check_options(reduction, label_smoothing)
    values = _ignore_values(ignore_index)
    if input.dim() == 1 and target.dim() == 0:
        batch = input.unsqueeze(0), target.unsqueeze(0)
        options: dict[str, Any] = {"weight": weight, "reduction": reduction, "label_smoothing": label_smoothing}
        loss = masked_cross_entropy(*batch, ignore_index=values, **options)
        return loss.squeeze(0) if reduction == "none" else loss
    _check_tensors(input, target, weight)
    target = target.long()  # before any comparison: as uint8, -100 would be 156
    weight = None if weight is None else weight.to(_working_dtype(input))
    if _values_are_out_of_sight(input):
        question = _Question.ask(target, _is_ignored(target, values), weight, label_smoothing, reduction)
        return _composed(input, question)
    if _is_small(input) and values and _torch_is_right(input.shape[1], weight, label_smoothing):
        return _guarded(input, target, values, weight, label_smoothing, reduction)
    ignored = _is_ignored(target, values)
    question = _Question.ask(target, ignored if ignored.any() else None, weight, label_smoothing, reduction)
    _check_range(question.target.squeeze(1), input.shape[1], values)
    if _is_small(input):
        return _composed(input, question)
    if torch.is_grad_enabled() and input.requires_grad:
        return _Blockwise.apply(input, question)
    return _reduced(_sweep(input, question)[0], question).to(input.dtype)


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
        _check_options(reduction, label_smoothing)
        _ignore_values(ignore_index)
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


# The terms of the formula. What belongs to a position keeps a class dimension of size 1: (N, 1, d1, ..., dk).


class _Question(NamedTuple):
    target: Tensor  # int64, 0 where ignored
    ignored: Tensor | None  # None where it is known that nothing is
    weight: Tensor | None  # (C)
    smoothing: float
    reduction: str

    @staticmethod
    def ask(target: Tensor, ignored: Tensor | None, *options: Any) -> _Question:
        if ignored is None:
            return _Question(target.unsqueeze(1), None, *options)
        return _Question(target.masked_fill(ignored, 0).unsqueeze(1), ignored.unsqueeze(1), *options)


class _Shares(NamedTuple):
    """The parts of w q; of shape () where they are the same for all positions or classes."""

    target: Tensor  # w_t (1 - s) of each position
    classes: Tensor | None  # w_c s / C of each class, (C, 1, ...); None without smoothing
    total: Tensor  # A of each position


def _shares(x: Tensor, target: Tensor, question: _Question) -> _Shares:
    weight, s = question.weight, question.smoothing
    if weight is None:
        one = torch.ones((), dtype=_working_dtype(x), device=x.device)
        of_target = one * (1 - s) if s < 1 else one.new_zeros(target.shape)  # a 0 has to be seen by _weighed
        return _Shares(of_target, one * (s / x.shape[1]) if s else None, one)
    of_target = weight[target] * (1 - s)
    of_classes = weight.view(-1, *[1] * (x.dim() - 2)) * (s / x.shape[1]) if s else None
    return _Shares(of_target, of_classes, of_target + weight.mean() * s)


def _losses(log_p: Tensor, target: Tensor, shares: _Shares) -> Tensor:
    """-sum_c w_c q_c log p_c of each position."""
    if shares.classes is None:
        return _weighed(-log_p.gather(1, target), shares.target)
    if shares.classes.dim():
        smooth = _weighed(-log_p, shares.classes).sum(1, keepdim=True)
    else:
        smooth = -log_p.sum(1, keepdim=True) * shares.classes
    return smooth + _weighed(-log_p.gather(1, target), shares.target)


def _weighed(nll: Tensor, share: Tensor) -> Tensor:
    """nll * share, where inf * 0 is 0."""
    if share.dim() == 0:  # the same for all, and not 0
        return nll * share
    return nll.masked_fill((share == 0) & nll.isposinf(), 0) * share


def _reduced(losses: Tensor, question: _Question) -> Tensor:
    if question.reduction == "none":
        return losses.squeeze(1)
    return losses.sum() / _denominator(question, losses.dtype)


def _denominator(question: _Question, dtype: torch.dtype) -> Tensor:
    """Of the mean, the sum of w_t over the valid positions, or 1 where there is none and the sum is 0; otherwise 1."""
    target, ignored, weight = question[:3]
    if question.reduction != "mean" or not target.numel():
        return torch.ones((), dtype=dtype, device=target.device)
    counted = torch.ones_like(target, dtype=dtype) if weight is None else weight[target]
    if ignored is None:
        return counted.sum()
    return torch.where(ignored.all(), 1, counted.masked_fill(ignored, 0).sum())


def _working_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


# Few logits, and plain operations


def _torch_is_right(classes: int, weight: Tensor | None, smoothing: float) -> bool:
    """Whether 0 * inf cannot occur, nor a careless sum over many classes (smoothing; log_softmax's backward pass)."""
    return (not smoothing or (smoothing < 1 and classes <= 256)) and (weight is None or bool(weight.all()))


def _guarded(
    input: Tensor, target: Tensor, values: tuple[int, ...], weight: Tensor | None, smoothing: float, reduction: str
) -> Tensor:
    """torch's own loss, in the working dtype, with what it cannot cope with put out of its way."""
    x = input if input.dtype == _working_dtype(input) else input.float()
    ignored = _is_ignored(target, values)
    if not target.numel():
        reduction = "none" if reduction == "none" else "sum"
    elif ignored.any():
        if not math.isfinite(x.detach().sum()):
            x = x.masked_fill(ignored.unsqueeze(1), 0)
        if len(values) > 1:
            target = target.masked_fill(ignored, values[0])
        if reduction == "mean" and ignored.all():
            reduction = "sum"
    try:
        loss = nn.functional.cross_entropy(
            x, target, weight, ignore_index=values[0], reduction=reduction, label_smoothing=smoothing
        )
    except IndexError:
        _check_range(target.masked_fill(ignored, 0), input.shape[1], values)
        raise
    return loss if x.dtype == input.dtype else loss.to(input.dtype)


def _composed(input: Tensor, question: _Question) -> Tensor:
    x = _blanked(input, question)
    x = x - x.detach().amax(1, keepdim=True)
    log_p = x - x.logsumexp(1, keepdim=True)  # unlike log_softmax, sums carefully in the backward pass
    losses = _losses(log_p, question.target, _shares(input, question.target, question))
    if question.ignored is not None:
        losses = losses.masked_fill(question.ignored, 0)
    return _reduced(losses, question).to(input.dtype)


def _composed_gradient(input: Tensor, upstream: Tensor, question: _Question) -> Tensor:
    """The gradient, to be differentiated again with respect to ``input`` and ``upstream``."""
    p = _blanked(input, question).softmax(1)
    shares = _shares(input, question.target, question)
    gradient = (shares.total * p).scatter_add(1, question.target, -shares.target.expand(question.target.shape))
    if shares.classes is not None:
        gradient = gradient - shares.classes
    gradient = gradient * _scale(upstream, question, p.dtype)
    if question.ignored is not None:
        gradient = gradient.masked_fill(question.ignored, 0)
    return gradient.to(input.dtype)


def _blanked(input: Tensor, question: _Question) -> Tensor:
    x = input if question.ignored is None else input.masked_fill(question.ignored, 0)
    return x.to(_working_dtype(input))


def _scale(upstream: Tensor, question: _Question, dtype: torch.dtype) -> Tensor:
    """What the gradients of the positions' losses are multiplied with; of shape () where it is the same for all."""
    upstream = upstream.unsqueeze(1) if upstream.dim() else upstream
    return upstream.to(dtype) / _denominator(question, dtype)


# Many logits


class _Blockwise(torch.autograd.Function):
    """The loss by a sweep over blocks, which makes of the softmax at hand the gradient for an upstream gradient of 1.

    For another one, the backward pass scales it in place in float32 and float64, and sweeps again in half types, where
    the rounding has to come last.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, question: _Question) -> Tensor:
        dtype = _working_dtype(input)
        unlikely = input.dtype != dtype and question.reduction == "none"
        scale = None if unlikely else _scale(torch.ones(()), question, dtype)
        losses, gradient = _sweep(input, question, scale)
        ctx.save_for_backward(input, *question[:3], gradient)
        ctx.options = question[3:]
        return _reduced(losses, question).to(input.dtype, copy=True)  # a view could not be changed in place

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        input, target, ignored, weight, gradient = ctx.saved_tensors
        question = _Question(target, ignored, weight, *ctx.options)
        if torch.is_grad_enabled() or not torch._C._has_storage(upstream):  # create_graph; a wrapper of vmap
            return _composed_gradient(input, upstream, question), None
        may_change = not _is_graph_kept()
        if gradient is not None and upstream.dim() == 0 and upstream == 1:
            return gradient if may_change else gradient.clone(), None
        if input.dtype != _working_dtype(input):
            scale = _scale(upstream, question, _working_dtype(input))
            room = gradient if may_change else None
            return _sweep(input, question, scale, want_losses=False, gradient=room)[1], None
        scale = upstream.unsqueeze(1) if upstream.dim() else upstream
        if ignored is not None:
            scale = scale.expand(ignored.shape).masked_fill(ignored, 0)  # inf * 0 is no 0
        return gradient.mul_(scale) if may_change else gradient * scale, None


def _is_graph_kept() -> bool:
    """Whether backward may come again (retain_graph), so that what it has saved must stay."""
    asked = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return asked is None or asked()


def _sweep(
    input: Tensor,
    question: _Question,
    scale: Tensor | None = None,
    *,
    want_losses: bool = True,
    gradient: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """The losses, 0 where ignored; and, given its scale, the gradient, in the room of an earlier one if given."""
    x = _rows_or_planes(input)
    dtype = _working_dtype(x)
    positions = (x.shape[0], 1, *x.shape[2:])

    def arranged(value: Tensor) -> Tensor:
        return value.reshape(positions) if value.dim() else value

    target = arranged(question.target)
    ignored = None if question.ignored is None else arranged(question.ignored)
    shares = _shares(x, target, question)
    losses = torch.zeros(positions, dtype=dtype) if want_losses else None
    if scale is not None:
        gradient = torch.empty(x.shape, dtype=x.dtype) if gradient is None else _rows_or_planes(gradient)
        scale = arranged(scale)
        if ignored is not None and x.dim() == 3:  # ignored rows are left out
            scale = scale.expand(positions).masked_fill(ignored, 0)
    inbox, outbox = _Box(dtype), _Box(dtype)

    for at in _blocks(x, ignored):
        logits, t = _load(x, at, inbox), target[at]
        mine = shares._replace(target=_part(shares.target, at), total=_part(shares.total, at))
        in_place = gradient is not None and gradient.dtype == dtype and isinstance(at, slice)
        out = gradient[at] if in_place else outbox.shaped(*logits.shape)
        if losses is None or (gradient is not None and x.dim() == 2 and shares.classes is None):
            p = torch.softmax(logits, 1, out=out)
            if losses is not None:
                losses[at] = _weighed(_nll_beside_softmax(p, logits, t), mine.target)
        else:
            log_p = torch.log_softmax(logits, 1, out=out)
            losses[at] = _losses(log_p, t, mine)
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


def _make_difference(p: Tensor, target: Tensor, shares: _Shares) -> None:
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


class _Box:
    """Room for one block at a time, made when it is asked for."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.room = torch.empty(0, dtype=dtype)

    def shaped(self, *shape: int) -> Tensor:
        size = math.prod(shape)
        if size > len(self.room):
            self.room = torch.empty(size, dtype=self.dtype)
        return self.room[:size].view(shape)


def _load(x: Tensor, at: slice | Tensor, box: _Box) -> Tensor:
    """The logits of a block, contiguous and in the working dtype: where they are, or copied to the box."""
    if isinstance(at, Tensor) and x.dtype == box.dtype:
        return torch.index_select(x, 0, at, out=box.shaped(len(at), x.shape[1]))
    block = x[at] if isinstance(at, slice) else x.index_select(0, at)
    if block.dtype == box.dtype and block.is_contiguous():
        return block
    return box.shaped(*block.shape).copy_(block)


def _clear(losses: Tensor | None, gradient: Tensor | None, ignored: Tensor) -> None:
    if losses is not None:
        losses.masked_fill_(ignored, 0)
    if gradient is None:
        return
    if gradient.dim() == 2:
        gradient.index_fill_(0, ignored.flatten().nonzero().flatten(), 0)
    elif (gradient[:, :1].isnan() & ignored).any():  # else 0 already; a softmax is NaN in all classes or in none
        gradient.masked_fill_(ignored, 0)


# Arguments


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


def _ignore_values(ignore_index: int | Sequence[int]) -> tuple[int, ...]:
    if type(ignore_index) is int:
        return (ignore_index,)
    try:
        return tuple(map(operator.index, ignore_index if isinstance(ignore_index, Sequence) else (ignore_index,)))
    except TypeError:
        raise TypeError(_expected("ignore_index", "an int or a sequence of ints", repr(ignore_index))) from None


def _is_ignored(target: Tensor, values: tuple[int, ...]) -> Tensor:
    if len(values) == 1:
        return target == values[0]
    return torch.isin(target, torch.tensor(values, dtype=torch.int64, device=target.device))


def _expected(what: str, expected: object, found: object) -> str:
    return f"{what}: expected {expected}, found {found}"


def _check_options(reduction: str, smoothing: float) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(_expected("reduction", "'none', 'mean' or 'sum'", repr(reduction)))
    if not 0 <= smoothing <= 1:
        raise ValueError(_expected("label_smoothing", "a number from 0 to 1", repr(smoothing)))


def _check_tensors(input: Tensor, target: Tensor, weight: Tensor | None) -> None:
    shape = input.shape
    if input.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise TypeError(_expected("dtype of input", "float64, float32, bfloat16 or float16", input.dtype))
    if target.dtype not in (torch.int64, torch.int32, torch.uint8):
        hint = " (class probabilities are not supported)" if target.is_floating_point() else ""
        raise TypeError(_expected("dtype of target", "class indices in int64, int32 or uint8", f"{target.dtype}{hint}"))
    if not shape or not shape[:2][-1]:
        raise ValueError(_expected("shape of input", "(C), (N, C) or (N, C, d1, ..., dk) with C > 0", tuple(shape)))
    if len(shape) == 1 or target.shape != shape[:1] + shape[2:]:
        positions, dimension = ((shape[0], *shape[2:]), 1) if len(shape) > 1 else ((), 0)
        wanted = f"{positions} for logits of shape {tuple(shape)} with the classes in dimension {dimension}"
        raise ValueError(_expected("shape of target", wanted, tuple(target.shape)))
    if target.device != input.device:
        raise ValueError(_expected("device of target", f"{input.device} as for the input", target.device))
    if weight is None:
        return
    if weight.shape != shape[1:2]:
        raise ValueError(_expected("shape of weight", f"({shape[1]},), one weight per class", tuple(weight.shape)))
    if not weight.is_floating_point():
        raise TypeError(_expected("dtype of weight", "floating point", weight.dtype))
    if weight.device != input.device:
        raise ValueError(_expected("device of weight", f"{input.device} as for the input", weight.device))
    if weight.requires_grad and torch.is_grad_enabled():
        raise ValueError(_expected("requires_grad of weight", "False, for it gets no gradient (detach it)", "True"))


def _check_range(target: Tensor, classes: int, values: tuple[int, ...]) -> None:
    """target: with a class in place of what is ignored."""
    wrong = ((target < 0) | (target >= classes)).nonzero()
    if len(wrong):
        position = tuple(wrong[0].tolist())
        wanted = f"a class from 0 to {classes - 1}, or {' or '.join(map(str, values)) or 'nothing'} to be ignored"
        raise IndexError(_expected("target", wanted, f"{int(target[position])} at position {position}"))
