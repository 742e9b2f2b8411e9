"""Whether an answer to a large batch is right: every loss and every entry of the gradient, in blocks.

Positions that ``blockwise`` finds wrong are left to ``truth``, which for float64 is more precise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from xentcheck.reference import blockwise
from xentcheck.reference.blockwise import Expected, flat
from xentcheck.reference.definition import ALLOWED_UNITS
from xentcheck.reference.truth import Array
from xentcheck.run.units import finite, first, is_rounded_to_infinity, kind_of
from xentcheck.run.verdict import Fault
from xentcheck.spec.batch import Batch

DOUBTFUL = 64  # positions left to ``truth`` at most, those that are furthest off


@dataclass(frozen=True)
class Found:
    """faults: what is wrong with the answer, by aspect; for the gradients of a fused loss one each, the worst first. A fault's index is
    where its error is largest. loss_units, gradient_units: the largest errors of the answer."""

    faults: Mapping[str, Sequence[Fault]] = field(default_factory=dict)
    loss_units: float = 0.0
    gradient_units: float = 0.0


def examine(batch: Batch, right: Expected, loss: Tensor, gradients: Sequence[Tensor]) -> Found:
    """The answer to a large batch, held to the definition.

    gradients: of the input and, in their order, of the other arguments that get one (``Batch.differentiated``); none where the case
    asks for none.
    """
    misshapen = _misshapen(batch, loss, gradients)
    if misshapen is not None:
        return Found({"shape": [misshapen]})
    of_loss, loss_units = list[Fault](), 0.0
    if not right.denominator:  # the loss is a convention; so are the gradients, unless all is ignored
        if batch.valid.any():
            return Found()
    else:
        of_loss, loss_units = _of_loss(batch, right, loss)
    of_gradients, gradient_units = list[Fault](), 0.0
    if gradients:
        judged = _of_gradient if right.gradients is None else _of_linear_gradients
        of_gradients, gradient_units = judged(batch, right, gradients)
    faults = {"loss": of_loss, "gradient": of_gradients}
    return Found({aspect: some for aspect, some in faults.items() if some}, loss_units, gradient_units)


def _misshapen(batch: Batch, loss: Tensor, gradients: Sequence[Tensor]) -> Fault | None:
    shape = tuple(batch.target.shape) if batch.reduction == "none" else ()
    if tuple(loss.shape) != shape:
        return Fault("shape", "loss", shape, tuple(loss.shape))
    for (name, argument), gradient in zip(batch.differentiated.items(), gradients, strict=True):
        if gradient.shape != argument.shape:
            return Fault("shape", _gradient_of(name), tuple(argument.shape), tuple(gradient.shape))
        if gradient.dtype != argument.dtype:
            return Fault("dtype", _gradient_of(name), str(argument.dtype), str(gradient.dtype))
    return None


def _of_loss(batch: Batch, right: Expected, loss: Tensor) -> tuple[list[Fault], float]:
    found = _float64(loss)
    want, unit = (values.reshape(found.shape) for values in blockwise.reduced(batch, right))
    with np.errstate(all="ignore"):
        errors = _errors(found, want, unit)
        slack, dtype = _allowed(batch) * unit, str(loss.dtype).removeprefix("torch.")
        errors = np.where(is_rounded_to_infinity(found, want, slack, dtype), 0.0, errors)
    worst = float(errors.max(initial=0.0))
    return ([_wrong(batch, "loss", want, found, errors)] if worst > _allowed(batch) else []), worst


def _of_linear_gradients(batch: Batch, right: Expected, gradients: Sequence[Tensor]) -> tuple[list[Fault], float]:
    """What is wrong with each gradient, the worst first, and the largest error of all."""
    wrong: list[tuple[float, Fault]] = []
    worst, ignored = 0.0, ~batch.valid
    assert right.gradients is not None
    for name, gradient in zip(batch.differentiated, gradients, strict=True):
        (want, unit), found = right.gradients[name], _float64(gradient)
        errors = _errors(found, want, unit)
        if name == "input":
            errors[ignored] = np.where(found[ignored] == 0, 0.0, np.inf)
        error = float(errors.max(initial=0.0))
        if error > _allowed(batch):
            is_ignored = name == "input" and bool(ignored[first(errors == error)[0]])
            wrong.append((error, _wrong(batch, _gradient_of(name), want, found, errors, is_ignored)))
        worst = max(worst, error)
    return [fault for _, fault in sorted(wrong, key=lambda one: -one[0])], worst


def _of_gradient(batch: Batch, right: Expected, gradients: Sequence[Tensor]) -> tuple[list[Fault], float]:
    """What is wrong with the gradient of the logits, and its largest error."""
    found, allowed = flat(gradients[0].detach().cpu()), _allowed(batch)
    for here in blockwise.position_blocks(~batch.valid, batch.classes):
        g = found[here]
        if g.any():
            position, label = first((g != 0).numpy())
            value, index = float(g[position, label]), _index(batch, int(here[position]), label)
            return [Fault(kind_of(value, True), "gradient", 0.0, value, index, is_ignored=True)], np.inf
    doubtful: list[tuple[float, int]] = []
    worst = 0.0
    for here, want, unit in blockwise.gradient_blocks(batch, right):
        errors = _errors(found[here].double().numpy(), want, unit).max(axis=1, initial=0.0)
        worst = max(worst, float(errors.max()))
        doubtful += [(float(errors[i]), int(here[i])) for i in np.flatnonzero(errors > allowed)]
        doubtful = sorted(doubtful, key=lambda one: (-one[0], one[1]))[:DOUBTFUL]
    if not doubtful:
        return [], worst
    positions = np.asarray([position for _, position in doubtful])
    exact, rows = blockwise.exact(batch, positions, right.denominator), found[positions].double().numpy()
    with np.errstate(all="ignore"):
        errors = _errors(rows, exact.gradient.astype(np.float64), exact.gradient_unit.astype(np.float64))
    if errors.max() <= allowed:
        return [], min(worst, allowed)
    fault = _wrong(batch, "gradient", exact.gradient, rows, errors, positions=positions)
    return [fault], worst


def _errors(found: Array, want: Array, unit: Array) -> Array:
    """In units; infinite where a number is not one."""
    with np.errstate(all="ignore"):
        errors = np.where(found == want, 0.0, abs(found - want) / unit)
    return np.where(np.isnan(errors), np.inf, errors)


def _wrong(
    batch: Batch,
    quantity: str,
    want: Array,
    found: Array,
    errors: Array,
    is_ignored: bool = False,
    positions: Array | None = None,
) -> Fault:
    """The fault at the largest error. positions: which of the batch the rows are, where they are not all."""
    at = first(errors == errors.max())
    value, error = float(found[at]), finite(float(errors[at]))
    return Fault(
        kind_of(value, is_ignored),
        quantity,
        float(want[at]),
        value,
        at if positions is None else _index(batch, int(positions[at[0]]), at[1]),
        is_ignored,
        units=error,
        worst_units=error,
        allowed_units=_allowed(batch),
    )


def _index(batch: Batch, position: int, label: int) -> tuple[int, ...]:
    """Where in the logits a position's class stands."""
    sample, *place = (int(i) for i in np.unravel_index(position, batch.positions))
    return sample, label, *place


def _gradient_of(argument: str) -> str:
    return "gradient" if argument == "input" else f"gradient of {argument}"


def _allowed(batch: Batch) -> float:
    return ALLOWED_UNITS[str(batch.input.dtype).removeprefix("torch.")]


def _float64(tensor: Tensor) -> Array:
    return tensor.detach().double().cpu().numpy()
