"""The truth: loss and gradient of a batch, from the definition, in a precision well above what it judges.

With x the logits of a position, q the target distribution (one-hot or given, then smoothed: q_c = s/C + (1 - s) [c = t]), w the
class weights and lse = log sum_c exp(x_c):

    loss of a position     l = sum_c w_c q_c (lse - x_c)        over the classes with w_c q_c != 0
    sum, mean              the sum of the losses; that sum over D, the sum of w_t over the valid positions; of given
                           probabilities, the number of positions; or what the case gives as the normalizer
    gradient               u / D (A p_j - w_j q_j)              with p = softmax(x), A = sum_c w_c q_c, u the upstream gradient
    its derivative along v u A / D p_j (v_j - sum_k p_k v_k)

as in the documentation of torch.nn.CrossEntropyLoss and, for smoothing, Szegedy et al. 2016 (arXiv:1512.00567). Ignored positions
are deleted before anything is computed. No autograd, and no code of any implementation.

Beside each value stands its unit: the error that rounding alone can cause in a good implementation (see ``_units``).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import mpmath
import numpy as np
import torch
from torch import Tensor

from xentcheck.batch import Batch
from xentcheck.linear import Parts, Sums

Array = np.ndarray


@dataclass(frozen=True)
class Truth:
    """Expected values in the shapes of the loss and of the input; NaN in a gradient marks what the definition leaves open.

    ``ignored`` marks the entries of the input that belong to ignored positions.
    """

    loss: Array
    loss_unit: Array
    gradient: Array
    gradient_unit: Array
    second: Array | None
    second_unit: Array | None
    ignored: Array
    others: Mapping[str, tuple[Array, Array]] = field(
        default_factory=dict
    )  # further gradients and their units, by argument


def longdouble_is_extended() -> bool:
    return np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant


def relevant_conventions(batch: Batch) -> frozenset[str]:
    """The conventions on which the answer to this batch depends."""
    logits, valid = batch.logits, batch.valid
    relevant = set()
    if batch.reduction == "mean" and not valid.any() and "normalizer" not in batch.options:
        relevant.add("empty_mean")
    rows = logits[valid]
    if (np.isposinf(rows).any(axis=1) & ~np.isnan(rows).any(axis=1)).any():
        relevant.add("infinite_row")
    if valid.any() and _excused(rows, _shares(_Precision(batch), batch), batch).any():
        relevant.add("zero_times_infinity")
    return frozenset(relevant)


def truth(batch: Batch, answers: Mapping[str, str], sums: Sums | None = None) -> Truth:
    """Loss and gradient by the definition, and by ``answers`` where a convention decides.

    sums: where the batch is but some positions of a fused linear loss, what the gradients of matrix and bias are added to, which are
    then not in the answer.
    """
    number = _Precision(batch)
    logits, valid = batch.logits, batch.valid
    x = number.convert(logits[valid])
    parts = Parts(batch, valid, number.convert) if batch.is_linear else None
    x = x if parts is None else parts.logits()
    count, classes = x.shape
    w = number.convert(_weight(batch, classes))
    q = _shares(number, batch)
    wq = w * q
    with np.errstate(all="ignore"):
        top = x.max(axis=1, keepdims=True) if classes else x
        lse = top + number.log(number.exp(x - top).sum(axis=1, keepdims=True))
        lse = np.where(np.isposinf(logits[valid]).any(axis=1, keepdims=True), top, lse)
        p = number.exp(x - lse)
        terms = np.where(wq != 0, wq * (lse - x), 0)
        losses = terms.sum(axis=1)
        losses = np.where(
            _excused(logits[valid], q, batch).any(axis=1) & (answers.get("zero_times_infinity") == "nan"),
            np.nan,
            losses,
        )
        infinite = np.isposinf(logits[valid]).any(axis=1) & ~np.isnan(logits[valid]).any(axis=1)
        losses = np.where(infinite & (answers.get("infinite_row") == "nan"), np.nan, losses)
        A = wq.sum(axis=1, keepdims=True)
        D = _denominator(number, batch, w)
        D = D if D != 0 else np.nan
        u = number.convert(_upstream(batch, valid.size))[valid][:, None] / D
        gradient = u * (A * p - wq)
        position_unit, gradient_unit = _units(number, x, lse, p, q, w, A, losses, u)
        if parts is not None:
            gradient_unit = _units(number.unrounded(), x, lse, p, q, w, A, losses, u)[1]
            more = parts.units(number.compute_eps, p, A, wq)
            position_unit, gradient_unit = position_unit + more[0], gradient_unit + abs(u) * more[1]
        second = second_unit = None
        if batch.direction is not None:
            v = number.convert(np.moveaxis(batch.direction, batch.class_axis, -1).reshape(logits.shape)[valid])
            second, second_unit = _second(number, x, lse, p, A, u, v)
        open_rows = ~np.isfinite(logits[valid]).all(axis=1) & ~_defined(logits[valid])
        gradient[open_rows] = np.nan
        if batch.reduction == "none":
            loss, loss_unit = _scatter(losses, valid, valid.shape), _scatter(position_unit, valid, valid.shape)
            loss, loss_unit = loss.reshape(batch.positions), loss_unit.reshape(batch.positions)
        elif batch.reduction == "mean" and not count and "normalizer" not in batch.options:
            loss, loss_unit = np.asarray(np.nan if answers.get("empty_mean") == "nan" else 0.0), np.asarray(0.0)
        else:
            loss, loss_unit = np.asarray(losses.sum() / D), np.asarray(position_unit.sum() / abs(D))

    def back(rows: Array | None) -> Array | None:
        return None if rows is None else _to_input(_scatter(rows, valid, logits.shape), batch)

    if parts is not None:
        precision = (number.eps, number.compute_eps, number.tiny)
        total = sums or Sums()
        total.add(parts, gradient, gradient_unit)
        others = total.gradients(*precision) if sums is None else {}
        of_hidden = parts.gradient(gradient, gradient_unit, *precision, total.spread)
        gradient, gradient_unit = (_scatter(rows, valid, batch.input.shape) for rows in of_hidden)
        ignored = np.repeat(~valid[:, None], batch.input.shape[1], axis=1)
        return Truth(loss, loss_unit, gradient, gradient_unit, None, None, ignored, others)
    ignored = _to_input(np.repeat(~valid[:, None], classes, axis=1), batch)
    return Truth(loss, loss_unit, back(gradient), back(gradient_unit), back(second), back(second_unit), ignored)  # type: ignore[arg-type]


def _units(
    number: _Precision, x: Array, lse: Array, p: Array, q: Array, w: Array, A: Array, losses: Array, u: Array
) -> tuple[Array, Array]:
    """The error of a good implementation that computes in float32 (float64 for float64) and rounds its result once.

    e is the eps of the case's dtype, f the eps computed in:
    loss e |l| + f sum_c w_c q_c max(1, |lse|, |x_c|); gradient |u| / D (e (|A p_j - w_j q_j| + A p_j |log p_j|)
    + f (A p_j (1 + max(|x_j|, |lse|)) + w_j q_j)), plus the dtype's smallest normal number.
    The 1 in the loss: the sum of exponentials, at least 1 after the largest is taken out, is rounded before its logarithm is taken.
    """
    e, f, tiny, wq = number.eps, number.compute_eps, number.tiny, abs(w * q)
    size = np.maximum(abs(lse), abs(x))
    finite = np.where(np.isfinite(size.astype(np.float64)), size, 0)
    loss_unit = e * abs(losses) + f * np.where(wq != 0, wq * np.maximum(finite, 1), 0).sum(axis=1) + tiny
    p_log_p = np.where(p > 0, p * abs(x - lse), 0)
    p_size = np.where(p > 0, p * (1 + finite), 0)
    gradient_unit = abs(u) * (e * (abs(A * p - w * q) + abs(A) * p_log_p) + f * (abs(A) * p_size + wq)) + tiny
    return loss_unit, gradient_unit


def _second(number: _Precision, x: Array, lse: Array, p: Array, A: Array, u: Array, v: Array) -> tuple[Array, Array]:
    """The derivative of the gradient along v, and its unit: each product and the sum may be rounded, and p carries lse's error."""
    along = (p * v).sum(axis=1, keepdims=True)
    size = np.where(p > 0, p * (2 + np.maximum(abs(x), abs(lse))), 0)
    unit = abs(u * A) * number.eps * size * (abs(v) + (p * abs(v)).sum(axis=1, keepdims=True)) + number.tiny
    return u * A * p * (v - along), unit


def _rows(batch: Batch, tensor: Tensor) -> Array:
    """Probabilities as (positions, classes) in float64, which holds every dtype exactly."""
    values = np.moveaxis(tensor.detach().double().cpu().numpy(), batch.class_axis, -1)
    return values.reshape(math.prod(values.shape[:-1]), values.shape[-1])


def _classes(batch: Batch) -> Array:
    """The target class of each valid position."""
    return batch.target.cpu().numpy().reshape(-1)[batch.valid].astype(np.int64)


def _shares(number: _Precision, batch: Batch) -> Array:
    """q: how much each class of each valid position is wanted, (valid positions, classes)."""
    classes = batch.classes
    s = number.convert(np.asarray(batch.options.get("label_smoothing", 0.0)))[()]
    if batch.has_probabilities:
        wanted = _rows(batch, batch.target)
    else:
        wanted = (np.arange(classes) == _classes(batch)[:, None]).astype(np.float64)
    return s / max(classes, 1) + number.convert(wanted) * (1 - s)


def _denominator(number: _Precision, batch: Batch, w: Array) -> Any:
    if batch.reduction != "mean":
        return number.convert(np.asarray(1.0))[()]
    if "normalizer" in batch.options:
        return number.convert(np.asarray(float(batch.options["normalizer"])))[()]
    if batch.has_probabilities:
        return number.convert(np.asarray(float(batch.valid.size)))[()]
    return w[_classes(batch)].sum()


def _to_input(rows: Array, batch: Batch) -> Array:
    return np.moveaxis(rows.reshape(*batch.positions, batch.classes), -1, batch.class_axis)


def _scatter(values: Array, valid: Array, shape: tuple[int, ...]) -> Array:
    full = np.zeros(shape, dtype=values.dtype)
    full[valid] = values
    return full


def _weight(batch: Batch, classes: int) -> Array:
    weight = batch.options.get("weight")
    return np.ones(classes) if weight is None else weight.detach().double().cpu().numpy()


def _upstream(batch: Batch, positions: int) -> Array:
    upstream = 1.0 if batch.upstream is None else batch.upstream.detach().double().cpu().numpy()
    return np.broadcast_to(np.asarray(upstream).reshape(-1), (positions,))


def _excused(rows: Array, q: Array, batch: Batch) -> Array:
    """Where a term of the loss is infinite but weighs nothing only because its class weight is zero."""
    return np.isneginf(rows) & (_weight(batch, rows.shape[1]) == 0) & (q != 0)


def _defined(rows: Array) -> Array:
    """A row with infinities still has a softmax as long as none is positive and one class is finite."""
    return ~np.isnan(rows).any(axis=1) & ~np.isposinf(rows).any(axis=1) & np.isfinite(rows).any(axis=1)


class _Precision:
    """The arithmetic that a dtype is judged in: float64 for float32 and below; above float64, long double where it is
    wider (x86), and mpmath elsewhere."""

    def __init__(self, batch: Batch) -> None:
        info = torch.finfo(batch.input.dtype)
        self.eps, self.tiny = info.eps, info.smallest_normal
        self.compute_eps = min(info.eps, torch.finfo(torch.float32).eps)
        self.exp: Any = np.exp
        self.log: Any = np.log
        if batch.input.dtype != torch.float64:
            self.convert: Any = lambda a: np.asarray(a, dtype=np.float64)
        elif longdouble_is_extended():
            self.convert = lambda a: np.asarray(a, dtype=np.longdouble)
        else:
            context = mpmath.MPContext()
            context.prec = 113
            number = np.frompyfunc(context.mpf, 1, 1)

            def convert(values: Array) -> Array:
                with np.errstate(invalid="ignore"):  # NaN is a value like others
                    return np.asarray(number(values), dtype=object)

            self.convert = convert
            self.exp, self.log = np.frompyfunc(context.exp, 1, 1), np.frompyfunc(context.log, 1, 1)

    def unrounded(self) -> _Precision:
        """For values that are computed and not yet rounded to the case's dtype."""
        other = copy.copy(self)
        other.eps, other.tiny = self.compute_eps, min(self.tiny, torch.finfo(torch.float32).smallest_normal)
        return other
