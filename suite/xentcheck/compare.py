"""Comparison with the fault in words, for the modules that do not take it as facts yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xentcheck import units
from xentcheck.units import ALLOWED_UNITS, Array, first, is_rounded_to_infinity, kind_of
from xentcheck.verdict import describe

__all__ = ["ALLOWED_UNITS", "Array", "Fault", "compare", "first", "is_rounded_to_infinity", "kind_of", "place"]


@dataclass(frozen=True)
class Fault:
    """What is wrong: a kind, a sentence, and the error in units where it is one of size."""

    kind: str
    message: str
    units: float | None = None

    @property
    def worst_units(self) -> float | None:
        return self.units


def compare(*args: Any) -> tuple[Fault | None, float | None]:
    fault, worst = units.compare(*args)
    return fault and Fault(fault.kind, describe(fault), fault.worst_units), worst


def place(where: tuple[int, ...]) -> str:
    return f" at {list(where)}" if where else ""
