"""The truth: loss and gradient of a batch, from the definition, in a precision well above what it judges, each with its unit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import mpmath
import numpy as np
import torch

from xentcheck.reference import definition
from xentcheck.reference.definition import Rounding
from xentcheck.reference.grades import FEW, Slack
from xentcheck.reference.linear import PRODUCTS, Layer, ParameterGradients
from xentcheck.spec.batch import Batch

Array = np.ndarray


@dataclass(frozen=True)
class Truth:
    """Expected values in the shapes of the loss and of the input; NaN in a gradient marks what the definition leaves open.

    ignored: which entries of the input belong to ignored positions. others: further gradients and their units, by argument.
    """

    loss: Array
    loss_unit: Array
    gradient: Array
    gradient_unit: Array
    second: Array | None
    second_unit: Array | None
    ignored: Array
    others: Mapping[str, tuple[Array, Array]] = field(default_factory=dict)


def relevant_conventions(batch: Batch) -> frozenset[str]:
    """The conventions on which the answer to this batch depends."""
    rows = batch.logits[batch.valid]
    relevant = set()
    if _is_mean_over_nothing(batch):
        relevant.add("empty_mean")
    if _has_infinity(rows).any():
        relevant.add("infinite_row")
    if _excused(rows, _target_distribution(_Precision(batch), batch), batch).any():
        relevant.add("zero_times_infinity")
    if max(batch.classes, len(rows) if batch.reduction != "none" else 0) > FEW:
        relevant.add("sums")
    if rounding_of(batch).e > rounding_of(batch).f:
        relevant.add("half_rounding")
    return frozenset(relevant)


def truth(batch: Batch, answers: Mapping[str, str], parameters: ParameterGradients | None = None) -> Truth:
    """Loss and gradient by the definition, and by ``answers`` where a convention decides.

    answers: to the questions of ``spec.capabilities.CONVENTIONS``; a grade of accuracy that is left out is the lower one.
    parameters: for a batch that holds only some positions of a fused linear loss. The gradients of matrix and bias are added to it, and
    are not in the result.
    """
    number, rounding, valid = _Precision(batch), rounding_of(batch, answers), batch.valid
    rows = batch.logits[valid]
    layer = Layer(batch, valid, number.convert) if batch.is_linear else None
    w, q = number.convert(class_weights(batch)), _target_distribution(number, batch)
    with np.errstate(all="ignore"):
        x = number.convert(rows) if layer is None else layer.logits()
        wq = w * q
        A = wq.sum(axis=1, keepdims=True)
        lse = definition.log_sum_exp(x, number.exp, number.log)
        p = definition.softmax(x, lse, number.exp)
        losses = _by_convention(definition.losses(wq, x, lse), rows, q, batch, answers)
        slack = slack_of(batch, answers)
        lse_slack = slack.of_lse(p, x, lse)
        loss_units = definition.loss_units(wq, x, lse, losses, rounding, lse_slack)
        loss_units = loss_units + slack.of_losses(wq, x, lse, losses)
        D = definition.denominator(batch.reduction, batch.options.get("normalizer"), w, classes_of(batch), len(x))
        D = D if D != 0 else np.nan
        of_D = slack.of_denominator(added_up_to_the_denominator(batch), D)
        u = number.convert(upstream(batch))[valid, None] / D
        gradient = u * definition.gradient(A, p, wq)
        gradient[has_no_softmax(rows)] = np.nan
        more = slack.of_gradient(u, A, p, wq, of_D)
        if layer is not None:
            within = rounding if slack.rounds_often else _of_intermediate(rounding)
            units = definition.gradient_units(A, p, wq, x, lse, u, within, lse_slack) + more
            of_logits = layer.units(rounding, p, A, wq, x, slack.rounds_often)
            loss, loss_unit = _reduced(batch, losses, loss_units + of_logits[0], D, answers, slack, of_D)
            units = units + abs(u) * of_logits[1]
            return _of_linear(batch, layer, loss, loss_unit, gradient, units, rounding, parameters)
        loss, loss_unit = _reduced(batch, losses, loss_units, D, answers, slack, of_D)
        units = definition.gradient_units(A, p, wq, x, lse, u, rounding, lse_slack) + more
        second = second_units = None
        if batch.direction is not None:
            v = number.convert(rows_of(batch.direction, batch)[valid])
            second = definition.second_derivative(u * A, p, v)
            second_units = definition.second_units(u * A, p, x, lse, v, rounding)

    def back(values: Array | None) -> Any:
        return None if values is None else _to_input(definition.scatter(values, valid), batch)

    ignored = _to_input(np.repeat(~valid[:, None], batch.classes, axis=1), batch)
    return Truth(loss, loss_unit, back(gradient), back(units), back(second), back(second_units), ignored)


def _of_linear(
    batch: Batch,
    layer: Layer,
    loss: Array,
    loss_unit: Array,
    d: Array,
    d_unit: Array,
    rounding: Rounding,
    parameters: ParameterGradients | None,
) -> Truth:
    """The truth of a fused linear loss from d, the gradient of its logits."""
    valid = batch.valid
    total = parameters or ParameterGradients()
    total.add(layer, d, d_unit)
    others = total.gradients(rounding) if parameters is None else {}
    gradient, unit = (definition.scatter(v, valid) for v in layer.gradient(d, d_unit, rounding, total.spread))
    ignored = np.repeat(~valid[:, None], batch.input.shape[1], axis=1)
    return Truth(loss, loss_unit, gradient, unit, None, None, ignored, others)


def _reduced(
    batch: Batch, losses: Array, units: Array, D: Any, answers: Mapping[str, str], slack: Slack, of_D: float
) -> tuple[Array, Array]:
    """What is returned for the losses of the valid positions, and its unit."""
    if batch.reduction == "none":
        loss, unit = (definition.scatter(values, batch.valid).reshape(batch.positions) for values in (losses, units))
        return loss, unit
    if _is_mean_over_nothing(batch):
        return np.asarray(np.nan if answers.get("empty_mean") == "nan" else 0.0), np.asarray(0.0)
    return np.asarray(losses.sum() / D), np.asarray(unit_of_reduced(losses, units, D, slack, of_D))


def unit_of_reduced(losses: Array, units: Array, D: Any, slack: Slack, of_D: float) -> Any:
    """The unit of the sum of the losses over D; units: of each."""
    total = losses.sum()
    return (units.sum() + slack.of_sums(losses) + slack.of_total(total) + abs(total) * of_D) / abs(D)


# --- what a convention decides, or nothing does


def _is_mean_over_nothing(batch: Batch) -> bool:
    return batch.reduction == "mean" and not batch.valid.any() and "normalizer" not in batch.options


def _by_convention(losses: Array, rows: Array, q: Array, batch: Batch, answers: Mapping[str, str]) -> Array:
    is_nan = _excused(rows, q, batch).any(axis=1) & (answers.get("zero_times_infinity") == "nan")
    is_nan |= _has_infinity(rows) & (answers.get("infinite_row") == "nan")
    if answers.get("infinite_row") == "limit":  # all the probability is where the one infinity is
        infinite = np.isposinf(rows)
        is_certain = (infinite.sum(axis=1) == 1) & ~np.isnan(rows).any(axis=1)
        losses = np.where(is_certain & ~((q != 0) & ~infinite).any(axis=1), 0, losses)
    return np.where(is_nan, np.nan, losses)


def _excused(rows: Array, q: Array, batch: Batch) -> Array:
    """Where a term of the loss is infinite but weighs nothing only because its class weight, or what smoothing leaves it, is zero."""
    weighs_nothing = (class_weights(batch) == 0) & (q != 0)
    t = classes_of(batch)
    if t is not None and batch.options.get("label_smoothing") == 1:
        weighs_nothing = weighs_nothing | (definition.one_hot(t, batch.classes) != 0)
    return np.isneginf(rows) & weighs_nothing


def _has_infinity(rows: Array) -> Array:
    return np.isposinf(rows).any(axis=1) & ~np.isnan(rows).any(axis=1)


def has_no_softmax(rows: Array) -> Array:
    """Rows whose gradient is not defined. A row has a softmax if none of its logits is NaN or +inf and at least one is finite."""
    return np.isnan(rows).any(axis=1) | np.isposinf(rows).any(axis=1) | ~np.isfinite(rows).any(axis=1)


# --- from tensors to arrays of the valid positions, and back


def class_weights(batch: Batch) -> Array:
    weight = batch.options.get("weight")
    return np.ones(batch.classes) if weight is None else weight.detach().double().cpu().numpy()


def upstream(batch: Batch) -> Array:
    """The upstream gradient of each position, (positions,)."""
    given = 1.0 if batch.upstream is None else batch.upstream.detach().double().cpu().numpy()
    return np.broadcast_to(np.asarray(given, dtype=np.float64).reshape(-1), (math.prod(batch.positions),))


def classes_of(batch: Batch) -> Array | None:
    """The target class of each valid position; None of probabilities."""
    if batch.has_probabilities:
        return None
    return batch.target.cpu().numpy().reshape(-1)[batch.valid].astype(np.int64)


def _target_distribution(number: _Precision, batch: Batch) -> Array:
    s = number.convert(np.asarray(batch.options.get("label_smoothing", 0.0)))[()]
    t = classes_of(batch)
    wanted = (
        definition.one_hot(t, batch.classes) if t is not None else rows_of(batch.target.double().cpu().numpy(), batch)
    )
    return definition.smoothed(number.convert(wanted), s)


def rows_of(values: Array, batch: Batch) -> Array:
    """An array of the input's shape as (positions, C)."""
    moved = np.moveaxis(values, batch.class_axis, -1)
    return moved.reshape(math.prod(moved.shape[:-1]), moved.shape[-1])


def _to_input(rows: Array, batch: Batch) -> Array:
    return np.moveaxis(rows.reshape(*batch.positions, batch.classes), -1, batch.class_axis)


# --- precision


def rounding_of(batch: Batch, answers: Mapping[str, str] | None = None) -> Rounding:
    """How a good implementation rounds in the batch's dtype, or, where ``answers`` hold what it computes in, in that."""
    info, single = torch.finfo(batch.input.dtype), torch.finfo(torch.float32)
    inside = (answers or {}).get("computes_in")
    if inside and info.eps < single.eps:
        info = single
    return Rounding(
        info.eps, min(info.eps, single.eps), info.smallest_normal, PRODUCTS.get(inside or "", 0.0) / _allowed(batch)
    )


def slack_of(batch: Batch, answers: Mapping[str, str]) -> Slack:
    return Slack(rounding_of(batch, answers), answers, _allowed(batch))


def _allowed(batch: Batch) -> float:
    return definition.ALLOWED_UNITS[str(batch.input.dtype).removeprefix("torch.")]


def added_up_to_the_denominator(batch: Batch) -> Array | None:
    """What the mean divides by the sum of, for each valid position; None where it divides by what the case gives, or does not divide."""
    if batch.reduction != "mean" or "normalizer" in batch.options:
        return None
    t = classes_of(batch)
    return np.ones(int(batch.valid.sum())) if t is None else class_weights(batch)[t]


def _of_intermediate(rounding: Rounding) -> Rounding:
    """For values that are computed and not yet rounded to the case's dtype."""
    return rounding._replace(e=rounding.f, tiny=min(rounding.tiny, torch.finfo(torch.float32).smallest_normal))


def longdouble_is_extended() -> bool:
    return np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant


class _Precision:
    """The numbers that a dtype is judged in: float64 for float32 and the half types; for float64, long double where it is wider (x86)
    and mpmath elsewhere."""

    def __init__(self, batch: Batch) -> None:
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
                with np.errstate(invalid="ignore"):  # NaN is a valid input
                    return np.asarray(number(values), dtype=object)

            self.convert = convert
            self.exp, self.log = np.frompyfunc(context.exp, 1, 1), np.frompyfunc(context.log, 1, 1)
