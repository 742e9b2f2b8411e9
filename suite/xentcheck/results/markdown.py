"""Markdown as the pages have it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

_NUMBER = re.compile(r"[-+]?[\d.,]+( of \d+)?( %| units?)?$")


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """One row for each mapping; columns in the order of their first appearance, those of numbers flush right.

    Cells are not padded: one long cell would make every line as long as itself, and one new digit would change every line.
    """
    rows = list(rows)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if not columns:
        return "None."
    body = [[cell(row.get(column, "")) for column in columns] for row in rows]
    marks = ["--:" if _is_numeric(cells) else "---" for cells in zip(*body, strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, marks, *body))


def cell(value: Any) -> str:
    """Text that stays within its cell."""
    return re.sub(r"(?<!\\)\|", r"\\|", str(value)).replace("\n", " ")


def count(number: int, noun: str, plural: str = "") -> str:
    """``1 case``, ``2 cases``, ``0 classes``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def listed(words: Iterable[str], last: str = "and") -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *before, end = list(words) or [""]
    return f"{', '.join(before)} {last} {end}" if before else end


def anchor(title: str) -> str:
    """What a heading is linked by."""
    return "#" + re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _is_numeric(cells: Iterable[str]) -> bool:
    filled = [text for text in cells if text]
    return bool(filled) and all(_NUMBER.match(text) for text in filled)
