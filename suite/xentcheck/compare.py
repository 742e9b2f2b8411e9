"""Compares values in units of rounding error, and says what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from xentcheck.batch import DTYPES

Array = np.ndarray

# How many units of rounding error an answer may have, calibrated on correct implementations written in different ways.
ALLOWED_UNITS = {"float64": 3.0, "float32": 3.0, "bfloat16": 1.0, "float16": 1.0}


@dataclass(frozen=True)
class Fault:
    """What is wrong: a kind (see ``Deviation``), a sentence, and the error in units where it is one of size."""

    kind: str
    message: str
    units: float | None = None


def compare(
    name: str, found: Array, expected: Array | str, unit: Any, dtype: str, found_dtype: str, ignored: Array | None
) -> tuple[Fault | None, float | None]:
    """Found against expected values in units. In a gradient, an expected NaN marks what the definition leaves open."""
    if isinstance(expected, str):
        if expected == "finite" and not np.isfinite(found).all():
            where = first(~np.isfinite(found))
            return Fault(
                "nan" if np.isnan(found[where]) else "inf",
                f"expected a finite {name}; found {found[where]}{place(where)}",
            ), None
        return None, None
    if found.shape != expected.shape:
        return Fault("shape", f"expected a {name} of shape {expected.shape}; found {found.shape}"), None
    with np.errstate(all="ignore"):
        judged = ~np.isnan(expected.astype(np.float64)) if ignored is not None else np.ones(expected.shape, dtype=bool)
        target, unit = expected, np.asarray(unit)
        same = (found == target) | (np.isnan(found) & np.isnan(target.astype(np.float64)))
        same |= is_rounded_to_infinity(found, target, ALLOWED_UNITS[dtype] * unit, found_dtype)
        must_be_zero = ignored if ignored is not None else np.zeros(expected.shape, dtype=bool)
        error = np.where(
            same | ~judged, 0.0, np.asarray(abs(found - target) / np.where(unit > 0, unit, 1), dtype=np.float64)
        )
        error = np.where(~same & judged & (~np.isfinite(error) | must_be_zero | (unit <= 0)), np.inf, error)
    worst = float(error.max()) if error.size else 0.0
    allowed = ALLOWED_UNITS[dtype]
    if worst <= allowed:
        return None, worst
    where = first(error > allowed)
    count = int((error > allowed).sum())
    value, right = float(found[where]), float(target[where])
    kind = kind_of(value, bool(must_be_zero[where]))
    at = place(where) + (", an ignored position" if must_be_zero[where] else "")
    size = f", {_in_units(float(error[where]))} where {allowed:g} are allowed" if np.isfinite(error[where]) else ""
    more = (
        f"; {count} of {error.size} values are wrong"
        + (f", the worst by {_in_units(worst)}" if np.isfinite(worst) and count > 1 else "")
        if error.size > 1
        else ""
    )
    return Fault(
        kind, f"expected a {name} of {right!r}; found {value!r}{at}{size}{more}", worst if np.isfinite(worst) else None
    ), worst


def is_rounded_to_infinity(found: Array, expected: Array, slack: Array, dtype: str) -> Array:
    """Half a step beyond the largest number of the dtype that was returned, rounding gives infinity."""
    if dtype not in DTYPES:
        return np.zeros(expected.shape, dtype=bool)
    info = torch.finfo(DTYPES[dtype])
    edge = info.max * (1 + info.eps / (4 - 2 * info.eps)) if info.bits < 64 else np.inf
    return (found == np.where(expected < 0, -np.inf, np.inf)) & (abs(expected) + slack >= edge)


def kind_of(wrong: float, must_be_zero: bool = False) -> str:
    """The kind of fault that a wrong number is (see ``Deviation``)."""
    return "nan" if np.isnan(wrong) else "inf" if np.isinf(wrong) else "nonzero" if must_be_zero else "value"


def _in_units(error: float) -> str:
    return f"{error:.3g} units"


def first(mask: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(mask)), mask.shape))


def place(where: tuple[int, ...]) -> str:
    return f" at {list(where)}" if where else ""
