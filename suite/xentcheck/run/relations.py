"""What must hold between the answers to two batches, whatever the right answer is.

Each relation makes other batches of one, whose answers follow from the first, and checks that they do. Two answers may differ by the
rounding error that is allowed for each; what must be bit for bit the same, or zero, is compared exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from xentcheck.reference.truth import Array, Truth, class_weights, classes_of, relevant_conventions, rows_of, truth
from xentcheck.run.observe import Answer, Failure
from xentcheck.run.units import compare
from xentcheck.run.verdict import Fault, describe
from xentcheck.spec.batch import DTYPES, Batch
from xentcheck.spec.capabilities import GRADES
from xentcheck.spec.case import RELATIONS, Case, Relation

# What an implementation must offer to be tested in an aspect, beyond what the case itself needs.
_MORE = {
    "poisoning": {"non_finite"},
    "reductions": {"reduction_option", "reduction_none", "reduction_sum", "reduction_mean"},
}
NEEDS: Mapping[str, frozenset[str]] = {
    name: frozenset({"backward"} | _MORE.get(name, set())) for name in ("gradient", *RELATIONS)
}
_REDUCTIONS = ("none", "sum", "mean")


@dataclass(frozen=True)
class Asked:
    """A batch, the implementation's answer to it, and the truth, whose units say how much rounding is allowed; computed when a relation
    needs it, unless it is ``known``. stated: the implementation's answers to conventions, of which its grades of accuracy count here."""

    batch: Batch
    answer: Answer
    known: Truth | None
    dtype: str
    stated: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def truth(self) -> Truth:
        return truth(self.batch, self.stated) if self.known is None else self.known

    @property
    def loss(self) -> Array:
        assert self.answer.loss is not None
        return self.answer.loss

    @property
    def gradient(self) -> Array:
        """As (positions, classes)."""
        assert self.answer.gradient is not None
        return rows_of(self.answer.gradient, self.batch)

    def excused(self, unit: Array) -> Array:
        """Units as (positions, classes), NaN for the ignored positions whose gradient is not zero: the aspect gradient says so, and there
        is nothing that other answers have to be equal to."""
        wrong = ~self.batch.valid & (self.gradient != 0).any(axis=1)
        return np.where(wrong[:, None], np.nan, unit)

    def another(self, batch: Batch, answer: Answer | Failure) -> Asked:
        """The same for another batch. Raises Broken if there is no answer to it."""
        if isinstance(answer, Failure):
            raise Broken(Fault(answer.status, expected="an answer, too", found=answer.message))
        if answer.raised:
            raise Broken(Fault("raised", expected="an answer, too", found=str(answer.raised)))
        if answer.loss is None or answer.gradient is None:
            raise Broken(Fault("missing", expected="a loss and a gradient, too", found="none"))
        return Asked(batch, answer, None, self.dtype, self.stated)

    def expect(self, name: str, found: Array, expected: Array, unit: Any) -> None:
        """Raises Broken unless two answers are the same up to the rounding error of both; ``unit`` is that of one."""
        if found.shape != expected.shape:
            raise Broken(Fault("shape", name, expected.shape, found.shape))
        unit = 2 * np.asarray(unit, dtype=np.float64)
        if unit.shape not in ((), found.shape):
            raise Broken(Fault("shape", name, unit.shape, found.shape))
        if name == "loss":
            found, expected = (_overflowing(values, self.answer.loss_type) for values in (found, expected))
        open_ = np.isnan(unit)  # where the definition leaves the value open
        found, expected = np.where(open_, 0.0, found), np.where(open_, 0.0, expected)
        kind = self.answer.loss_type if name == "loss" else self.dtype
        fault, _ = compare(name, found, expected, np.where(open_, 1.0, unit), self.dtype, kind, None)
        if fault is not None:
            raise Broken(fault)

    @property
    def gradient_unit(self) -> Array:
        """As (positions, classes); NaN where the definition leaves the gradient open."""
        unit = np.where(np.isnan(self.truth.gradient.astype(np.float64)), np.nan, self.truth.gradient_unit)
        return rows_of(unit.astype(np.float64), self.batch)


class Broken(Exception):
    """A relation that does not hold."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(describe(fault))
        self.fault = fault


def applying(case: Case, batch: Batch) -> tuple[Relation, ...]:
    """The relations that say something about this batch."""
    question = case.question
    if question.mode != "eager" or not case.has_gradient or question.padded_to or question.linear is not None:
        return ()
    if "unspecified" in (question.expect.loss, question.expect.gradient):
        return ()
    if not batch.input.numel() or relevant_conventions(batch) - {"empty_mean", *GRADES}:
        return ()  # where a convention decides, it may decide differently for each batch
    return tuple(name for name, relation in _RELATIONS.items() if relation.applies(batch))


Check = Callable[..., None]
Related = tuple[Sequence[Batch], Check]


def related(name: Relation, batch: Batch) -> Related:
    """The batches that a relation makes of this one, and a check: called with the batch's own answer and, in order, those to the others
    (each an ``Asked``), it raises Broken where the relation does not hold."""
    return _RELATIONS[name].make(batch)


def broken(
    name: Relation, asked: Asked, batches: Sequence[Batch], check: Check, answers: Sequence[Answer | Failure]
) -> Fault | None:
    """How a relation fails to hold; None where it holds."""
    try:
        check(asked, *(asked.another(*pair) for pair in zip(batches, answers, strict=True)))
    except Broken as error:
        return replace(error.fault, context=_RELATIONS[name].words)
    return None


def _deletion(batch: Batch) -> Related:
    valid = batch.valid

    def check(asked: Asked, other: Asked) -> None:
        loss, unit = asked.loss, asked.truth.loss_unit
        if batch.reduction == "none":
            loss, unit = loss.reshape(-1)[valid], unit.reshape(-1)[valid]
        asked.expect("loss", other.loss, loss, unit)
        asked.expect("gradient", other.gradient, asked.gradient[valid], asked.gradient_unit[valid])

    return [_picked(batch, torch.from_numpy(np.flatnonzero(valid)))], check


def _poisoning(batch: Batch) -> Related:
    valid = batch.valid
    poisoned = batch.fresh()
    rows = poisoned.input.movedim(batch.class_axis, -1)
    largest = torch.finfo(batch.input.dtype).max
    for number, position in enumerate(np.flatnonzero(~valid)):
        where = np.unravel_index(position, batch.positions) if batch.positions else ()
        rows[tuple(int(i) for i in where)] = (np.nan, np.inf, -np.inf, largest, -largest)[number % 5]

    def check(asked: Asked, other: Asked) -> None:
        zero = np.zeros_like(other.gradient)
        asked.expect("gradient of an ignored position", other.gradient[~valid], zero[~valid], zero[~valid])
        asked.expect("loss", other.loss, asked.loss, np.zeros(asked.loss.shape))
        asked.expect("gradient", other.gradient[valid], asked.gradient[valid], zero[valid])

    return [poisoned], check


def _permutation(batch: Batch) -> Related:
    order = _shuffled(batch.valid.size)

    def check(asked: Asked, other: Asked) -> None:
        loss, unit = asked.loss, asked.truth.loss_unit
        if batch.reduction == "none":
            loss, unit = loss.reshape(-1)[order].reshape(loss.shape), unit.reshape(-1)[order].reshape(loss.shape)
        asked.expect("loss", other.loss, loss, unit)
        asked.expect("gradient", other.gradient, asked.gradient[order], asked.excused(asked.gradient_unit)[order])

    return [_picked(batch, torch.from_numpy(order), batch.positions)], check


def _class_permutation(batch: Batch) -> Related:
    order = _shuffled(batch.classes)  # the new class j is the old class order[j]
    new = torch.from_numpy(np.argsort(order))
    columns = torch.from_numpy(order)
    options = dict(batch.options)
    if "weight" in options:
        options["weight"] = options["weight"][columns]
    if batch.has_probabilities:
        target = batch.target.index_select(batch.class_axis, columns)
    else:
        old = batch.target.long()
        is_class = (old >= 0) & (old < batch.classes)
        target = torch.where(is_class, new[old.clamp(0, batch.classes - 1)], old).to(batch.target.dtype)
        if "ignore_index" in options:
            values = [int(new[v]) if 0 <= v < batch.classes else v for v in batch.ignore_values]
            options["ignore_index"] = values[0] if isinstance(options["ignore_index"], int) else values

    def check(asked: Asked, other: Asked) -> None:
        asked.expect("loss", other.loss, asked.loss, asked.truth.loss_unit)
        unit = asked.excused(asked.gradient_unit)[:, order]
        asked.expect("gradient", other.gradient, asked.gradient[:, order], unit)

    logits = batch.input.index_select(batch.class_axis, columns)
    return [replace(batch, input=logits, target=target, options=options)], check


def _shift(batch: Batch) -> Related:
    """Compares two batches whose logits differ by exactly a constant in each row; the logits are rounded first to make that possible."""
    rows = batch.input.movedim(batch.class_axis, -1)
    signs = torch.where(torch.arange(batch.valid.size) % 2 == 0, 8.0, -8.0).reshape(*batch.positions, 1).to(rows.dtype)
    moved = rows + signs
    back = moved - signs
    gap = (moved.double() - back.double() == signs.double()) | ~torch.isfinite(rows)
    exact = gap.all(-1, keepdim=True)
    moved, back = torch.where(exact, moved, rows), torch.where(exact, back, rows)

    def check(asked: Asked, one: Asked, two: Asked) -> None:
        unit = np.maximum(one.truth.loss_unit.astype(np.float64), two.truth.loss_unit.astype(np.float64))
        asked.expect("loss", two.loss, one.loss, unit)
        unit = asked.excused(np.maximum(one.gradient_unit, two.gradient_unit))
        asked.expect("gradient", two.gradient, one.gradient, unit)

    return [replace(batch, input=x.movedim(-1, batch.class_axis)) for x in (back, moved)], check


def _splitting(batch: Batch) -> Related:
    cut = max(1, batch.input.shape[0] // 3)
    whole = _mass(batch)
    parts: list[tuple[Batch, float]] = []  # with the share of what counts in them
    for where in (slice(0, cut), slice(cut, None)):
        upstream = batch.upstream[where] if batch.upstream is not None and batch.reduction == "none" else batch.upstream
        part = replace(batch, input=batch.input[where], target=batch.target[where], upstream=upstream)
        by_share = batch.reduction == "mean" and "normalizer" not in batch.options
        parts.append((part, _mass(part) / whole if by_share else 1.0))

    def check(asked: Asked, *others: Asked) -> None:
        answers = iter(others)
        loss: list[Array] = []
        gradient: list[Array] = []
        for part, share in parts:
            if not share:
                gradient.append(np.zeros((part.valid.size, batch.classes)))
                continue
            other = next(answers)
            if _overflows(other):
                return
            loss.append(other.loss if batch.reduction == "none" else other.loss * share)
            gradient.append(other.gradient * share)
        together = np.concatenate(loss) if batch.reduction == "none" else np.asarray(sum(loss))
        asked.expect("loss", together, asked.loss, asked.truth.loss_unit)
        asked.expect("gradient", np.concatenate(gradient), asked.gradient, asked.excused(asked.gradient_unit))

    return [part for part, share in parts if share], check  # a mean over no position is a convention


def _overflows(part: Asked) -> bool:
    """Whether a right answer overflows the dtype, as a mean over few positions may where the mean over all does not."""
    if not (np.isinf(part.loss).any() or np.isinf(part.gradient).any()):
        return False
    exact = (part.truth.loss, part.answer.loss_type), (part.truth.gradient, part.dtype)
    return any(bool((np.isfinite(v) & np.isinf(_overflowing(v, dtype))).any()) for v, dtype in exact)


def _linearity(batch: Batch) -> Related:
    shape = batch.positions if batch.reduction == "none" else ()
    upstream = torch.ones(shape, dtype=batch.input.dtype) if batch.upstream is None else batch.upstream
    factor = torch.full(shape, -2.0, dtype=upstream.dtype)
    if batch.reduction == "none":
        factor.reshape(-1)[np.flatnonzero(batch.valid)[1::2]] = 0.0

    def check(asked: Asked, other: Asked) -> None:
        by_row = factor.double().reshape(-1).expand(batch.valid.size).numpy()[:, None]
        expected = np.where(by_row == 0, 0.0, by_row * asked.gradient)
        asked.expect("gradient", other.gradient, expected, asked.excused(asked.gradient_unit * abs(by_row)))

    return [replace(batch, upstream=upstream * factor)], check


def _zero_sum(batch: Batch) -> Related:
    def check(asked: Asked) -> None:
        valid = batch.valid
        total, unit = asked.gradient[valid].sum(axis=1), asked.gradient_unit[valid].sum(axis=1)
        asked.expect("sum of a position's gradient", total, np.zeros_like(total), unit / 2)

    return [], check


def _reductions(batch: Batch) -> Related:
    ones = torch.ones(batch.positions, dtype=batch.input.dtype)

    def check(asked: Asked, none: Asked, total: Asked, mean: Asked) -> None:
        mass = _mass(batch)
        # The loss of a position may overflow the dtype where the mean, which divides by more, does not.
        if np.isfinite(none.loss).all() or not np.isfinite(none.truth.loss.astype(np.float64)).all():
            asked.expect("loss", total.loss, np.asarray(none.loss.sum()), total.truth.loss_unit)
            asked.expect("loss", mean.loss, np.asarray(none.loss.sum() / mass), mean.truth.loss_unit)
        asked.expect("gradient of the sum", total.gradient, none.gradient, asked.excused(total.gradient_unit))
        asked.expect("gradient of the mean", mean.gradient, none.gradient / mass, asked.excused(mean.gradient_unit))

    return [
        replace(batch, options={**batch.options, "reduction": name}, upstream=ones if name == "none" else None)
        for name in _REDUCTIONS
    ], check


def _can_be_split(batch: Batch) -> bool:
    """Whether the batch can be cut in two, and no part's mean divides by a sum of weights that is zero or negative."""
    return bool(batch.valid.any()) and batch.input.dim() > 1 and batch.input.shape[0] > 1 and _least_weight(batch) > 0


def _least_weight(batch: Batch) -> float:
    weight = batch.options.get("weight")
    return 1.0 if weight is None else float(weight.min())


class _Relation(NamedTuple):
    """words: what is done to the batch. make: see ``related``. applies: whether the relation says something about a batch."""

    words: str
    make: Callable[[Batch], Related]
    applies: Callable[[Batch], bool] = lambda b: bool(b.valid.any())


_RELATIONS: dict[Relation, _Relation] = {
    "deletion": _Relation(
        "with the ignored positions deleted", _deletion, lambda b: bool(b.valid.any() and not b.valid.all())
    ),
    "poisoning": _Relation(
        "with NaN, infinities and huge values at the ignored positions",
        _poisoning,
        lambda b: (
            not b.valid.all() and 0 not in b.input.stride()
        ),  # positions that share memory cannot be changed singly
    ),
    "permutation": _Relation(
        "with the positions in another order", _permutation, lambda b: bool(b.valid.any()) and b.valid.size > 1
    ),
    "class_permutation": _Relation(
        "with the classes in another order", _class_permutation, lambda b: bool(b.valid.any()) and b.classes > 1
    ),
    "shift": _Relation("with a constant added to each row", _shift),
    "splitting": _Relation("put together from two parts of the batch", _splitting, _can_be_split),
    "linearity": _Relation("with another gradient from above", _linearity),
    "zero_sum": _Relation("over the classes of a position that counts", _zero_sum),
    "reductions": _Relation(
        "between reduction none, sum and mean",
        _reductions,
        lambda b: "normalizer" not in b.options and _mass(b) > 0 and _least_weight(b) >= 0,
    ),
}


def _overflowing(values: Array, dtype: str) -> Array:
    """What a loss of this dtype can hold: infinity beyond its largest number."""
    if dtype not in DTYPES or dtype == "float64":
        return values
    return np.where(abs(values) > torch.finfo(DTYPES[dtype]).max, np.copysign(np.inf, values), values)


def _mass(batch: Batch) -> float:
    """What the mean divides by."""
    classes = classes_of(batch)
    return float(batch.valid.sum() if classes is None else class_weights(batch)[classes].sum())


def _picked(batch: Batch, order: Tensor, shape: tuple[int, ...] | None = None) -> Batch:
    """The chosen positions in this order, as (positions, classes) or, if a shape is given, in that."""

    def pick(values: Tensor) -> Tensor:
        rows = values.movedim(batch.class_axis, -1).reshape(-1, batch.classes)[order]
        return rows if shape is None else rows.reshape(*shape, batch.classes).movedim(-1, batch.class_axis).contiguous()

    def pick_flat(values: Tensor) -> Tensor:
        flat = values.reshape(-1)[order]
        return flat if shape is None else flat.reshape(shape)

    upstream = batch.upstream
    if upstream is not None and batch.reduction == "none":
        upstream = pick_flat(upstream)
    target = pick(batch.target) if batch.has_probabilities else pick_flat(batch.target)
    return replace(batch, input=pick(batch.input), target=target, upstream=upstream)


def _shuffled(count: int) -> Array:
    """A fixed order for each count: sorted by the products with 2^32 over the golden ratio, modulo 2^32.

    The first and the last, where mistakes are most common, never stay in place.
    """
    order = np.argsort((np.arange(count, dtype=np.uint64) * np.uint64(2654435769)) % np.uint64(2**32))
    return order[::-1].copy() if order[0] == 0 or order[-1] == count - 1 else order
