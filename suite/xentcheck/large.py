"""Whether an answer to a large batch is right: every loss and every entry of the gradient, in blocks.

``reference`` needs some twenty float64 arrays of the logits' size, gigabytes for a language model's batch. Here the definition is
evaluated in float64 block by block, in the units of ``reference``; positions that this finds wrong are put to ``reference`` itself,
which for float64 is more precise. A fused linear loss has smaller batches, since its products take most of the time; there each
block is put to ``reference``. Batches are as a training step has them: finite logits, class weights and smoothing or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xentcheck.batch import Batch
from xentcheck.compare import ALLOWED_UNITS, Fault, is_rounded_to_infinity, kind_of
from xentcheck.linear import Sums
from xentcheck.reference import truth

BLOCK = 2**20  # logits
DOUBTFUL = 64  # positions put to ``reference`` at most, those that are furthest off


@dataclass(frozen=True)
class Expected:
    """What the definition says of a batch whose positions are flattened to (P, C): the losses (P), 0 where ignored, their units (P),
    the denominator of the reduction, and what the gradient is made of: the log-sum-exps (P), or, for a fused linear loss, the gradients
    and their units, by argument."""

    losses: np.ndarray
    units: np.ndarray
    denominator: float
    lse: np.ndarray | None = None
    gradients: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None


def expected(batch: Batch) -> Expected:
    """The losses and what the gradient is made of. Takes some 100 MB beside the batch, and 20 ns a logit."""
    if batch.is_linear:
        return _expected_of_linear(batch)
    rows, target = _flat(batch.input), batch.target.reshape(-1).numpy()
    e, f, _ = _eps(batch)
    count, classes = rows.shape
    weight, s = _weight(batch, classes), float(batch.options.get("label_smoothing", 0.0))
    losses, units, lses = np.zeros(count), np.zeros(count), np.zeros(count)
    for here, x in _blocks(rows):
        t, valid = _class_of(target[here], batch)
        top = x.max(axis=1)
        lse = top + np.log(np.exp(x - top[:, None]).sum(axis=1))
        x_t, w_t = np.take_along_axis(x, t[:, None], 1)[:, 0], (1 - s) * weight[t]
        size = np.maximum(abs(lse), 1)
        loss, unit = w_t * (lse - x_t), w_t * np.maximum(size, abs(x_t))
        if s:
            loss += s / classes * (weight * (lse[:, None] - x)).sum(axis=1)
            unit += s / classes * (weight * np.maximum(size[:, None], abs(x))).sum(axis=1)
        losses[here], units[here], lses[here] = loss * valid, (e * abs(loss) + f * unit) * valid, lse
    return Expected(losses, units, _denominator(batch), lses)


def _expected_of_linear(batch: Batch) -> Expected:
    denominator = _denominator(batch)
    upstream = torch.from_numpy(_upstream(batch) / (denominator or 1.0))
    sums = Sums(entries=sum(argument.numel() for argument in batch.differentiated.values()))
    losses, units, gradients, units_of_gradients = [], [], [], []
    step = max(BLOCK // batch.classes, 1)
    for start in range(0, len(batch.target), step):
        here = slice(start, start + step)
        some = replace(
            batch, input=batch.input[here], target=batch.target[here], options=_each(batch), upstream=upstream[here]
        )
        exact = truth(some, {}, sums)
        losses.append(exact.loss)
        units.append(exact.loss_unit)
        gradients.append(exact.gradient)
        units_of_gradients.append(exact.gradient_unit)
    of_hidden = np.concatenate(gradients), np.concatenate(units_of_gradients)
    found = {"input": of_hidden, **sums.gradients(*_eps(batch))}
    return Expected(np.concatenate(losses), np.concatenate(units), denominator, gradients=found)


@dataclass(frozen=True)
class Found:
    """faults: what is wrong with the answer, by aspect; for the gradients of a fused loss one each, the worst first. units: its largest
    errors, of the loss and of the gradient."""

    faults: Mapping[str, Sequence[Fault]] = field(default_factory=dict)
    loss_units: float = 0.0
    gradient_units: float = 0.0


def examine(batch: Batch, right: Expected, loss: Tensor, gradients: Sequence[Tensor]) -> Found:
    """The answer to a large batch, held to the definition.

    gradients: of the input and, in their order, of the other arguments that get one (``Batch.differentiated``); none where the case
    asks for none.
    """
    allowed = _allowed(batch)
    shape = tuple(batch.target.shape) if batch.reduction == "none" else ()
    if tuple(loss.shape) != shape:
        return Found({"shape": [Fault("shape", f"expected a loss of shape {shape}; found {tuple(loss.shape)}")]})
    for argument, gradient in zip(batch.differentiated.values(), gradients, strict=True):
        if gradient.shape != argument.shape or gradient.dtype != argument.dtype:
            kind = "shape" if gradient.shape != argument.shape else "dtype"
            wanted, found_ = (f"{tuple(t.shape)} in {t.dtype}" for t in (argument, gradient))
            return Found({"shape": [Fault(kind, f"expected a gradient of shape {wanted}; found {found_}")]})
    if not right.denominator:  # the loss is a convention; so are the gradients, unless all is ignored
        return (
            Found() if _class_of(batch.target.numpy(), batch)[1].any() else _found(0.0, None, batch, right, gradients)
        )
    found = loss.detach().double().cpu().numpy().reshape(-1)
    want, unit = right.losses, right.units
    if batch.reduction != "none":
        want, unit = np.asarray([want.sum()]) / right.denominator, np.asarray([unit.sum()]) / right.denominator
    with np.errstate(all="ignore"):
        off = np.maximum(abs(found - want) - _eps(batch)[2], 0)
        off[is_rounded_to_infinity(found, want, allowed * unit, str(loss.dtype).removeprefix("torch."))] = 0
        errors = np.where(off == 0, 0.0, off / unit)
        errors = np.where(np.isnan(errors), np.inf, errors)
    worst, faults = float(errors.max(initial=0.0)), []
    if worst > allowed:
        i = int(errors.argmax())
        where = f" at position {i}" if batch.reduction == "none" else ""
        faults.append(_wrong("loss", want[i], found[i], where, worst, allowed))
    return _found(worst, faults, batch, right, gradients)


def _found(worst: float, of_loss: list[Fault], batch: Batch, right: Expected, gradients: Sequence[Tensor]) -> Found:
    of_gradients: list[Fault] = []
    worst_gradient = 0.0
    if right.gradients is not None and gradients:
        of_gradients, worst_gradient = _gradients_of_linear(batch, right.gradients, gradients)
    elif gradients:
        of_gradients, worst_gradient = _gradient(batch, right, gradients[0])
    faults = {"loss": of_loss, "gradient": of_gradients}
    return Found({aspect: some for aspect, some in faults.items() if some}, worst, worst_gradient)


def _wrong(name: str, want: float, found: float, where: str, error: float, allowed: float) -> Fault:
    text = f"expected a {name} of {float(want)!r}; found {float(found)!r}{where}"
    if not np.isfinite(error):
        return Fault(kind_of(found), text)
    return Fault(kind_of(found), f"{text}, {error:.3g} units where {allowed:g} are allowed", error)


def _gradients_of_linear(
    batch: Batch, right: Mapping[str, tuple[np.ndarray, np.ndarray]], gradients: Sequence[Tensor]
) -> tuple[list[Fault], float]:
    """What is wrong with each gradient, the worst first, and the largest error of all."""
    wrong: list[tuple[float, Fault]] = []
    worst, allowed = 0.0, _allowed(batch)
    _, valid = _class_of(batch.target.numpy(), batch)
    for name, gradient in zip(batch.differentiated, gradients, strict=True):
        (want, unit), found = right[name], gradient.detach().double().cpu().numpy()
        with np.errstate(all="ignore"):
            errors = np.where(found == want, 0.0, abs(found - want) / unit)
        errors = np.where(np.isnan(errors), np.inf, errors)
        if name == "input":
            errors[~valid] = np.where(found[~valid] == 0, 0.0, np.inf)
        at = np.unravel_index(int(errors.argmax()), errors.shape)
        error = float(errors[at])
        if error > allowed:
            where = f" at {name}[{', '.join(map(str, at))}]"
            is_ignored = name == "input" and not valid[at[0]]
            fault = (
                _nonzero(found[at], where)
                if is_ignored
                else _wrong("gradient", want[at], found[at], where, error, allowed)
            )
            wrong.append((error, fault))
        worst = max(worst, error)
    return [fault for _, fault in sorted(wrong, key=lambda one: -one[0])], worst


def _nonzero(found: float, where: str) -> Fault:
    text = f"expected a gradient of 0.0; found {float(found)!r}{where}, an ignored position"
    return Fault(kind_of(found, must_be_zero=True), text)


def _gradient(batch: Batch, right: Expected, gradient: Tensor) -> tuple[list[Fault], float]:
    rows, found, target = _flat(batch.input), _flat(gradient.detach().cpu()), batch.target.reshape(-1).numpy()
    e, f, tiny = _eps(batch)
    allowed, classes = _allowed(batch), rows.shape[1]
    weight, s = _weight(batch, classes), float(batch.options.get("label_smoothing", 0.0))
    u = _upstream(batch) / (right.denominator or 1.0)
    doubtful: list[tuple[float, int]] = []
    worst = 0.0
    for (here, x), (_, g) in zip(_blocks(rows), _blocks(found), strict=True):
        t, valid = _class_of(target[here], batch)
        if g[~valid].any():
            i, j = np.argwhere((g != 0) & ~valid[:, None])[0]
            return [_nonzero(g[i, j], f" at position {here.start + i}, class {j}")], np.inf
        wq = np.broadcast_to(s / classes * weight, x.shape).copy() if s else np.zeros_like(x)
        np.put_along_axis(
            wq, t[:, None], np.take_along_axis(wq, t[:, None], 1) + ((1 - s) * weight[t])[:, None], axis=1
        )
        A = wq.sum(axis=1, keepdims=True)
        lse = right.lse[here][:, None]
        log_p = x - lse
        Ap = A * np.exp(log_p)
        unit = e * (abs(Ap - wq) + Ap * abs(log_p)) + f * (Ap * (1 + np.maximum(abs(x), abs(lse))) + wq)
        with np.errstate(invalid="ignore"):
            errors = abs(g - (Ap - wq) * u[here][:, None]) / (abs(u[here])[:, None] * unit + tiny)
        of_rows = np.where(valid, np.where(np.isnan(errors), np.inf, errors).max(axis=1), 0.0)
        worst = max(worst, float(of_rows.max(initial=0.0)))
        doubtful += [(float(of_rows[i]), here.start + int(i)) for i in np.flatnonzero(of_rows > allowed)]
        doubtful = sorted(doubtful, key=lambda row: (-row[0], row[1]))[:DOUBTFUL]
    faults = _put_to_reference(batch, rows, found, u, [i for _, i in doubtful]) if doubtful else []
    return faults, worst if faults else min(worst, allowed)


def _put_to_reference(batch: Batch, rows: Tensor, found: Tensor, u: np.ndarray, positions: list[int]) -> list[Fault]:
    target, upstream = batch.target.reshape(-1)[positions], torch.from_numpy(u[positions])
    exact = truth(Batch(rows[positions], target, _each(batch), upstream, "eager"), {})
    g = found[positions].double().numpy()
    with np.errstate(all="ignore"):
        error = abs(g - exact.gradient.astype(np.float64)) / exact.gradient_unit.astype(np.float64)
        error = np.where(np.isfinite(error), error, np.inf)
    if error.max() <= _allowed(batch):
        return []
    i, j = np.unravel_index(int(error.argmax()), error.shape)
    where = f" at position {positions[i]}, class {j}"
    return [_wrong("gradient", exact.gradient[i, j], g[i, j], where, float(error[i, j]), _allowed(batch))]


def _each(batch: Batch) -> dict[str, Any]:
    """The options of some of the positions; their upstream gradients are what the reduction makes of it."""
    return {name: option for name, option in batch.options.items() if name != "normalizer"} | {"reduction": "none"}


def _allowed(batch: Batch) -> float:
    return ALLOWED_UNITS[str(batch.input.dtype).removeprefix("torch.")]


def _flat(values: Tensor) -> Tensor:
    """(N, C, d1, ...) as (P, C)."""
    return values.detach().movedim(1, -1).reshape(-1, values.shape[1])


def _blocks(rows: Tensor) -> Iterator[tuple[slice, np.ndarray]]:
    step = max(BLOCK // max(rows.shape[1], 1), 1)
    for start in range(0, rows.shape[0], step):
        here = slice(start, min(start + step, rows.shape[0]))
        yield here, rows[here].double().numpy()


def _class_of(target: np.ndarray, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    valid = ~np.isin(target, batch.ignore_values)
    return np.where(valid, target, 0).astype(np.int64), valid


def _upstream(batch: Batch) -> np.ndarray:
    upstream = 1.0 if batch.upstream is None else batch.upstream.double().cpu().numpy()
    return np.broadcast_to(np.asarray(upstream, dtype=np.float64).reshape(-1), (batch.target.numel(),))


def _denominator(batch: Batch) -> float:
    if "normalizer" in batch.options:
        return float(batch.options["normalizer"])
    target = batch.target.reshape(-1).numpy()
    _, valid = _class_of(target, batch)
    return float(_weight(batch, batch.classes)[target[valid]].sum()) if batch.reduction == "mean" else 1.0


def _weight(batch: Batch, classes: int) -> np.ndarray:
    weight = batch.options.get("weight")
    return np.ones(classes) if weight is None else weight.detach().double().cpu().numpy()


def _eps(batch: Batch) -> tuple[float, float, float]:
    info = torch.finfo(batch.input.dtype)
    return info.eps, min(info.eps, torch.finfo(torch.float32).eps), info.smallest_normal
