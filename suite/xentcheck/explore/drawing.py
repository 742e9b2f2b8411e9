"""The state that strategies share: what has been drawn of a case document so far."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

ABSENT: Any = object()
Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass
class Facts:
    """What has been drawn so far, and what may be drawn."""

    draw: Draw
    capabilities: frozenset[str]
    entry: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    classes: int = 0
    shape: tuple[int, ...] = ()
    ignore_values: tuple[int, ...] = (-100,)
    usable: list[int] = field(default_factory=list)  # ignore values that the target's dtype can hold

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
        """True once in so many times; shrinks to False."""
        return self.draw(st.sampled_from([False] * (one_in - 1) + [True]))

    def likely(self) -> bool:
        """True three times in four; shrinks to False."""
        return self.draw(st.sampled_from([False, True, True, True]))

    def one_of(self, *values: Any) -> Any:
        return self.draw(st.sampled_from(values))


def nested(flat: list[Any], shape: tuple[int, ...]) -> Any:
    """The values as nested lists of this shape."""
    return np.array(flat, dtype=object).reshape(shape).tolist()
