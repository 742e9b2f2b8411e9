"""Mistakes in case files: what is wrong and where, as facts that are put into words once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mistake:
    """One mistake. Where it is known, the place is given: file, line (from 1), case, and the key with dots, ``target.ignore.rows``."""

    text: str
    path: Path | None = None
    line: int | None = None
    case: str = ""
    key: str = ""

    def __str__(self) -> str:
        place = "" if self.path is None else f"{self.path}" if self.line is None else f"{self.path}:{self.line}"
        return ": ".join(part for part in (place, self.case and f"case {self.case}", self.key, self.text) if part)


class UsageError(Exception):
    """What a user asked for cannot be done. The text says what was expected, what was found, and what to do."""


class CaseFileError(UsageError, ValueError):
    """Case files that cannot be used, or a choice among them that cannot be made. Its text has a line for each mistake."""

    def __init__(self, *mistakes: Mistake | str) -> None:
        super().__init__(*mistakes)
        self.mistakes = tuple(m if isinstance(m, Mistake) else Mistake(m) for m in mistakes)

    def __str__(self) -> str:
        return "\n".join(map(str, self.mistakes))


class Unexpected(ValueError):
    """What a validator found in place of what it expects.

    key: the key below the validated mapping that it is about, with dots; empty where it is about the value as a whole.
    found: in words; None stands for the value itself.
    """

    def __init__(self, expected: str, found: str | None = None, key: str = "") -> None:
        super().__init__(expected, found, key)
        self.expected, self.found, self.key = expected, found, key
