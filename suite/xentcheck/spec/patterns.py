"""Names as users type them: patterns over case ids, and the nearest right word for a wrong one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def matches(pattern: str, case_id: str) -> bool:
    """``*`` and ``?`` are wildcards, brackets are plain characters; the name of a clause or of a matrix stands for all of it."""
    regex = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(rf"{regex}(/.*|\[.*)?", case_id) is not None


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """`; did you mean a, b?`, or a full stop where nothing is near."""
    close = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f"; did you mean {', '.join(close)}?" if close else "."
