"""How one aspect of one case ended: the statuses and their properties."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

PASSED, FAILED, DEVIATING, UNSUPPORTED, UNAVAILABLE = "passed", "failed", "deviating", "unsupported", "unavailable"
GROUPS = (PASSED, FAILED, DEVIATING, UNSUPPORTED, UNAVAILABLE)  # the columns of every table of scores


class Status(str, Enum):
    """A status. The first in this order that one of a case's aspects has is the status of the case.

    A case is ``unsupported`` only if no aspect could be tested, so ``pass`` comes before it.

    symbol: its sign in tables. group: the column it is counted in. is_good: whether it leaves the exit code at 0. rank: how far it is from
    a pass; a change to a higher rank is a regression.
    """

    CRASH = "crash", "✗", FAILED, False, 4
    TIMEOUT = "timeout", "✗", FAILED, False, 4
    ERROR = "error", "✗", FAILED, False, 4
    FAIL = "fail", "✗", FAILED, False, 4
    UNEXPECTED_PASS = "unexpected-pass", "!", FAILED, False, 4
    DEVIATES = "deviates", "△", DEVIATING, True, 1
    UNAVAILABLE = "unavailable", "?", UNAVAILABLE, True, 3
    PASS = "pass", "✓", PASSED, True, 0
    UNSUPPORTED = "unsupported", "–", UNSUPPORTED, True, 2

    symbol: str
    group: str
    is_good: bool
    rank: int

    def __new__(cls, value: str, symbol: str = "", group: str = "", is_good: bool = False, rank: int = 0) -> Status:
        member = str.__new__(cls, value)
        member._value_ = value
        member.symbol, member.group, member.is_good, member.rank = symbol, group, is_good, rank
        return member

    def __str__(self) -> str:
        return self.value

    @classmethod
    def _missing_(cls, value: object) -> Status:
        raise ValueError(f"expected a status of {', '.join(map(str, cls))}; found {value!r}")

    @property
    def was_asked(self) -> bool:
        """Whether the implementation gave an answer that could be judged, or failed to."""
        return self.group not in (UNSUPPORTED, UNAVAILABLE)


def of_case(statuses: Iterable[Status]) -> Status:
    """A case's status from those of its aspects."""
    return min(statuses, key=tuple(Status).index)
