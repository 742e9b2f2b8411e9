"""Names as users type them: patterns over case ids, and the nearest right word for a wrong one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from fnmatch import translate
from functools import lru_cache


def matches(pattern: str, case_id: str) -> bool:
    """``*`` and ``?`` are wildcards, brackets are plain characters; the name of a clause or of a matrix stands for all of it."""
    return _compiled(pattern).match(case_id) is not None


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    """As ``fnmatch`` translates it, which takes no longer with many wildcards."""
    plain = pattern.replace("[", "[[]")
    return re.compile("|".join(map(translate, (plain, f"{plain}/*", f"{plain}[[]*"))))


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """`; did you mean a, b?`, or a full stop where nothing is near."""
    close = difflib.get_close_matches(name[:100], list(known), n=count, cutoff=0.5)
    return f"; did you mean {', '.join(close)}?" if close else "."
