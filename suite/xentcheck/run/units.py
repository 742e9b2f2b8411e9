"""Compares values with expected ones, in units: one unit is the error that rounding alone can cause in a good implementation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from xentcheck.reference.definition import ALLOWED_UNITS
from xentcheck.run.verdict import Fault
from xentcheck.spec.batch import DTYPES

Array = np.ndarray


def compare(
    quantity: str,
    found: Array,
    expected: Array | str,
    unit: Any,
    dtype: str,
    found_dtype: str,
    ignored: Array | None,
) -> tuple[Fault | None, float | None]:
    """What is wrong with the found values, and the largest error in units; None where there is nothing to compare.

    Args:
        expected: numbers, where NaN in a gradient marks what the definition leaves open; or ``"finite"``; or another word, for values
            that are not compared.
        unit: of each expected value, or of all.
        dtype: the case's, which decides how many units are allowed. found_dtype: what the answer came in.
        ignored: for a gradient, which entries belong to ignored positions and must be zero; None for a loss.
    """
    if isinstance(expected, str):
        if expected != "finite" or np.isfinite(found).all():
            return None, None
        index = first(~np.isfinite(found))
        return Fault(kind_of(found[index]), quantity, expected, float(found[index]), index), None
    if found.shape != expected.shape:
        return Fault("shape", quantity, expected.shape, found.shape), None
    allowed = ALLOWED_UNITS[dtype]
    errors = _errors(found, expected, np.asarray(unit), allowed, found_dtype, ignored)
    worst = float(errors.max()) if errors.size else 0.0
    if worst <= allowed:
        return None, worst
    wrong = errors > allowed
    index = first(wrong)
    value, is_ignored = float(found[index]), ignored is not None and bool(ignored[index])
    return Fault(
        kind_of(value, is_ignored),
        quantity,
        float(expected[index]),
        value,
        index,
        is_ignored,
        units=finite(float(errors[index])),
        worst_units=finite(worst),
        allowed_units=allowed,
        count=int(wrong.sum()),
        total=errors.size,
    ), worst


def _errors(
    found: Array, expected: Array, unit: Array, allowed: float, found_dtype: str, ignored: Array | None
) -> Array:
    """The errors in units; infinite where no rounding explains a value: not finite, or not zero where it must be."""
    with np.errstate(all="ignore"):
        is_open = np.isnan(expected.astype(np.float64))
        same = (found == expected) | (np.isnan(found) & is_open)
        same |= is_rounded_to_infinity(found, expected, allowed * unit, found_dtype)
        if ignored is not None:
            same |= is_open
        errors = np.asarray(abs(found - expected) / np.where(unit > 0, unit, 1), dtype=np.float64)
        beyond = ~np.isfinite(errors) | (unit <= 0) | (False if ignored is None else ignored)
        return np.where(same, 0.0, np.where(beyond, np.inf, errors))


def is_rounded_to_infinity(found: Array, expected: Array, slack: Array, dtype: str) -> Array:
    """Whether infinity is right because the expected value rounds to it in the dtype that was returned."""
    if dtype not in DTYPES:
        return np.zeros(expected.shape, dtype=bool)
    info = torch.finfo(DTYPES[dtype])
    edge = info.max * (1 + info.eps / (4 - 2 * info.eps)) if info.bits < 64 else np.inf
    return (found == np.where(expected < 0, -np.inf, np.inf)) & (abs(expected) + slack >= edge)


def kind_of(wrong: float, must_be_zero: bool = False) -> str:
    """The kind of fault that a wrong number is (see ``spec.capabilities.FAULT_KINDS``)."""
    return "nan" if np.isnan(wrong) else "inf" if np.isinf(wrong) else "nonzero" if must_be_zero else "value"


def first(mask: Array) -> tuple[int, ...]:
    """The index of the first true entry."""
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(mask)), mask.shape))


def finite(error: float) -> float | None:
    """An error in units; None where it is infinite, so that its size says nothing."""
    return error if np.isfinite(error) else None
