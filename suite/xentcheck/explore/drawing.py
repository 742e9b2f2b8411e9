"""What is drawn so far of a case document, and how: the state that strategies share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

ABSENT: Any = object()
Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass
class Facts:
    """What is drawn so far, and what may be drawn at all."""

    draw: Draw
    capabilities: frozenset[str]
    entry: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    classes: int = 0
    shape: tuple[int, ...] = ()
    ignore_values: tuple[int, ...] = (-100,)
    usable: list[int] = field(default_factory=list)  # those that the target's dtype can hold

    @property
    def positions(self) -> tuple[int, ...]:
        """The target's shape."""
        return self.shape[:1] + self.shape[2:] if len(self.shape) > 1 else ()

    @property
    def count(self) -> int:
        return math.prod(self.positions)

    def can(self, name: str) -> bool:
        return name in self.capabilities

    def chance(self, one_in: int) -> bool:
        """True once in so many times, and never where it need not be."""
        return self.draw(st.sampled_from([False] * (one_in - 1) + [True]))

    def likely(self) -> bool:
        """True three times in four, and never where it need not be."""
        return self.draw(st.sampled_from([False, True, True, True]))

    def one_of(self, *values: Any) -> Any:
        return self.draw(st.sampled_from(values))
