"""Names as users type them: patterns over case ids, and the nearest right word for a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase


def matches(pattern: str, case_id: str) -> bool:
    """``*`` and ``?`` are wildcards, brackets are plain characters; the name of a clause or of a matrix stands for all of it."""
    plain = pattern.replace("[", "[[]")
    return any(fnmatchcase(case_id, form) for form in (plain, f"{plain}/*", f"{plain}[[]*"))


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """`; did you mean a, b?`, or a full stop where nothing is near."""
    close = difflib.get_close_matches(name[:100], list(known), n=count, cutoff=0.5)
    return f"; did you mean {', '.join(close)}?" if close else "."
