"""Mistakes in case files: what is wrong and where, and the sentences that say so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# So many mistakes are shown; the others are counted.
MAX_MISTAKES = 20


@dataclass(frozen=True)
class Mistake:
    """One mistake, with its place where that is known: file, line (from 1), case, and the key with dots, ``target.ignore.rows``."""

    text: str
    path: Path | None = None
    line: int | None = None
    case: str = ""
    key: str = ""

    def __str__(self) -> str:
        place = "" if self.path is None else f"{self.path}" if self.line is None else f"{self.path}:{self.line}"
        case, key, text = one_line(self.case, 100), one_line(self.key, 100), one_line(self.text, 1000)
        return ": ".join(part for part in (one_line(place, 4096), case and f"case {case}", key, text) if part)


class UsageError(Exception):
    """What a user asked for cannot be done. The text says what was expected, what was found, and what to do."""


class CaseFileError(UsageError, ValueError):
    """Case files that cannot be used, or a choice among them that cannot be made.

    Its text has a line for each of the first ``MAX_MISTAKES``, and one that counts the others.
    """

    def __init__(self, *mistakes: Mistake | str) -> None:
        super().__init__(*mistakes)
        self.mistakes = tuple(m if isinstance(m, Mistake) else Mistake(m) for m in mistakes)

    def __str__(self) -> str:
        more = len(self.mistakes) - MAX_MISTAKES
        rest = [f"{more:,} more mistakes"] if more > 0 else []
        return "\n".join([*map(str, self.mistakes[:MAX_MISTAKES]), *rest])


class Unexpected(ValueError):
    """What a validator found in place of what it expects.

    Args:
        expected: in words.
        found: in words; None stands for the value that was validated.
        key: the key below the validated mapping that it is about, with dots; empty where it is about the value as a whole.
    """

    def __init__(self, expected: str, found: str | None = None, key: str = "") -> None:
        super().__init__(expected, found, key)
        self.expected, self.found, self.key = expected, found, key

    def __str__(self) -> str:
        return f"expected {self.expected}" + ("" if self.found is None else f"; found {self.found}")


@contextmanager
def about(key: str) -> Iterator[None]:
    """Adds a key to the Unexpected that is raised inside."""
    try:
        yield
    except Unexpected as error:
        inner = f"{key}.{error.key}" if error.key else key
        raise Unexpected(error.expected, error.found, inner) from error


def kind(value: Any) -> str:
    """What was found, in words."""
    if value is None:
        return "nothing"
    if isinstance(value, (dict, list)):
        return ("a " if value else "an empty ") + ("mapping" if isinstance(value, dict) else "list")
    return f"{value!r:.80}"


def one_line(text: str, at_most: int) -> str:
    """The text with escapes in place of line breaks and control characters, cut to a length."""
    cut = text if len(text) <= at_most else text[: at_most - 3] + "..."
    return cut if cut.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)
