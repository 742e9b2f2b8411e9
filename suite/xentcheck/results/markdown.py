"""Markdown as the pages have it, and the one place where text of others is made harmless: for a terminal (``visible``) and for a page
(``cell``)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

LONGEST = 4000  # characters of one text that are shown
# What moves the cursor of a terminal, ends a line, or turns the direction of writing; newlines and tabs are left.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
# Code between backticks, as Markdown has it: a backtick after a backslash opens none.
_CODE = re.compile(r"(?<![\\`])(`+)(?!`).+?(?<!`)\1(?!`)")
# A link that leads neither to http(s) nor to a place in these pages.
_BAD_LINK = re.compile(r"\](?=\()(?!\((?:https?://|#?[\w./-][\w./#-]*\)))", re.IGNORECASE)
_TAG = re.compile(r"<(?=[A-Za-z/!?])")  # what HTML begins with; "<3" is text
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
    return "\n".join(f"| {' | '.join(line)} |" for line in ([cell(c) for c in columns], marks, *body))


def visible(value: Any, most: int = LONGEST) -> str:
    """Text whose control characters are shown as escapes, such as ``\\x1b``, and that is cut after ``most`` characters."""
    text = str(value)
    left = len(text) - most
    text = text if left <= 0 else f"{text[:most]} ... and {count(left, 'more character')}"
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def cell(value: Any) -> str:
    """Markdown on one line that stays within its cell or paragraph: code, emphasis and links to http(s) or within the pages are left, HTML
    and other links become plain text."""
    text = visible(value).replace("\n", " ")
    parts, end = list[str](), 0
    for code in _CODE.finditer(text):
        parts += [_plain(text[end : code.start()]), code[0]]
        end = code.end()
    return re.sub(r"(?<!\\)\|", r"\\|", "".join([*parts, _plain(text[end:])]))


def _plain(text: str) -> str:
    """Markdown outside code. Entities, since a backslash of the text before a backslash of ours would undo it."""
    return _BAD_LINK.sub("&#93;", _TAG.sub("&lt;", text).replace("`", "&#96;"))


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
