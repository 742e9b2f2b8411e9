"""What the pages share: the record and cases that they are made from, and how they begin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from xentcheck.results.markdown import cell, listed
from xentcheck.results.record import Results
from xentcheck.results.score import Score, scores
from xentcheck.run.status import Status
from xentcheck.spec.case import ASPECTS, RELATIONS, Case

# From implementation and case to a script that reproduces it; empty where it would be too long.
Script = Callable[[str, str], str]
WIDEST = 8  # columns of a table
LEGEND = (
    "✓ passes, △ is wrong in a known way ([deviations](deviations.md)), ✗ is wrong in a new way (fails, raises, crashes or times out), "
    "! passes although a deviation is declared, – is not offered and was not tested, ? is not available here."
)


@dataclass(frozen=True)
class Material:
    """What all pages are made from: a record, and the cases that it answers."""

    results: Results
    cases: Sequence[Case]

    @cached_property
    def claims(self) -> dict[str, dict[str, Any]]:
        """What each implementation declares, in the order of the run."""
        return self.results.run["implementations"]

    @cached_property
    def scores(self) -> dict[str, Score]:
        found = scores(self.results.verdicts)
        return {name: found.get(name) or Score(name, {}, 0, 0, None) for name in self.claims}

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row for each verdict: its fields and what the pages group by, in the order of implementations, cases and aspects."""
        verdicts = self.results.verdicts
        columns = {
            "implementation": pd.Categorical([v.implementation for v in verdicts], list(self.claims), ordered=True),
            "clause": [v.clause for v in verdicts],
            "case": [v.case for v in verdicts],
            "aspect": pd.Categorical([v.aspect for v in verdicts], ASPECTS, ordered=True),
            "status": [str(v.status) for v in verdicts],
            "symbol": [v.status.symbol for v in verdicts],
            "asked": np.array([v.status.was_asked for v in verdicts], dtype=bool),
            "kind": [v.kind for v in verdicts],
            "grades": [", ".join(v.lower_grades) for v in verdicts],
            "units": np.array([v.error_units for v in verdicts], dtype=float),
            "dtype": [v.dtype for v in verdicts],
            "by_adapter": np.array([v.by_adapter for v in verdicts], dtype=bool),
            "relation": np.array([v.aspect in RELATIONS for v in verdicts], dtype=bool),
            "verdict": pd.Series(verdicts, dtype=object),
        }
        return pd.DataFrame(columns).sort_values(["implementation", "case", "aspect"], ignore_index=True)

    @cached_property
    def outcomes(self) -> pd.DataFrame:
        """One row for each implementation and case."""
        rows = [
            {"implementation": name, "case": case, "clause": case.partition("/")[0], "symbol": status.symbol}
            for name, score in self.scores.items()
            for case, status in score.statuses.items()
        ]
        return pd.DataFrame(rows, columns=["implementation", "case", "clause", "symbol"])

    @cached_property
    def twins(self) -> dict[str, list[str]]:
        """Implementations that have a row of their own, each with those that have the same outcome in every aspect of every case."""
        found: dict[tuple[Any, ...], list[str]] = {}
        for name, verdicts in self.frame.groupby("implementation", observed=False):
            outcome = verdicts[["case", "aspect", "status", "kind"]].itertuples(index=False, name=None)
            found.setdefault(tuple(outcome), []).append(str(name))
        return {first: others for first, *others in found.values()}

    @property
    def names(self) -> list[str]:
        return list(self.twins)

    @property
    def is_linear(self) -> dict[str, bool]:
        return {name: "linear" in claims["capabilities"] for name, claims in self.claims.items()}

    def label(self, name: str) -> str:
        """The name and those of its twins."""
        return ", ".join(f"`{one}`" for one in (name, *self.twins[name]))

    def page(self, title: str, *parts: str) -> str:
        truncated = "> **This run did not end; what follows is not complete.** Continue it with `--resume`."
        parts = (f"# {title}", *([] if self.results.complete else [truncated]), *parts)
        return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"

    def note_on_twins(self) -> str:
        pairs = [f"{listed(f'`{o}`' for o in others)} with `{name}`" for name, others in self.twins.items() if others]
        return cell(f"Those with the same outcome in every case are shown as one: {'; '.join(pairs)}.") if pairs else ""


SYMBOLS = tuple(dict.fromkeys(status.symbol for status in (Status.PASS, *Status)))


def tally(symbols: pd.Series) -> str:
    """How many of each: ``26 ✓ 3 △``. Known and new failures have different symbols."""
    counts = symbols.value_counts()
    return " ".join(f"{counts[symbol]} {symbol}" for symbol in SYMBOLS if symbol in counts)
