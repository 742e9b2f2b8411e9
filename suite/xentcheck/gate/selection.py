"""Which keys of a baseline a run is held to."""

from __future__ import annotations

from dataclasses import dataclass

from xentcheck.cost.measurement import MEASURES
from xentcheck.run.verdict import Key
from xentcheck.spec.mistakes import UsageError
from xentcheck.spec.patterns import matches

VERDICTS, COSTS = "verdicts", "costs"  # stand for all aspects, and for both measures


@dataclass(frozen=True)
class Selection:
    """Patterns separated by commas, each ``CASE``, ``IMPLEMENTATION:CASE`` or ``IMPLEMENTATION:CASE:ASPECT``.

    ``*`` and ``?`` are wildcards. An aspect may be ``verdicts`` or ``costs``. No text selects everything.
    """

    text: str = ""

    def __post_init__(self) -> None:
        if self.text and not self._patterns():
            raise UsageError("--gate-only names nothing; expected patterns such as 'ignored-*' or '*:*:verdicts'")
        for pattern in self._patterns():
            if len(pattern) != 3 or not all(pattern):
                raise UsageError(
                    f"--gate-only {self.text}: expected CASE, IMPLEMENTATION:CASE or IMPLEMENTATION:CASE:ASPECT"
                )

    def has(self, key: Key) -> bool:
        return not self.text or any(
            matches(implementation, key.implementation) and matches(case, key.case) and _is_of(aspect, key.aspect)
            for implementation, case, aspect in self._patterns()
        )

    def _patterns(self) -> list[list[str]]:
        found = []
        for pattern in (part.strip() for part in self.text.split(",") if part.strip()):
            parts = pattern.split(":")
            found.append(["*", *parts, "*"] if len(parts) == 1 else [*parts, "*"] if len(parts) == 2 else parts)
        return found


EVERYTHING = Selection()


def _is_of(pattern: str, aspect: str) -> bool:
    if pattern in (VERDICTS, COSTS):
        return (aspect in MEASURES) is (pattern == COSTS)
    return matches(pattern, aspect)
