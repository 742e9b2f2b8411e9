"""Markdown as the pages have it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd


def table(rows: Iterable[dict[str, Any]]) -> str:
    """One row for each mapping; columns in the order of their first appearance."""
    frame = pd.DataFrame(list(rows)).fillna("")
    return frame.to_markdown(index=False, disable_numparse=True) if len(frame) else "(nothing)"
