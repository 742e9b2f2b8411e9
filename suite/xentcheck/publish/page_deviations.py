"""``deviations.md``: what is known to be wrong, by cause, with evidence; and scripts that show it, in files of their own."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from xentcheck.publish.page import Material, Script
from xentcheck.results.markdown import anchor, cell, count, table
from xentcheck.run.verdict import counted
from xentcheck.spec.patterns import matches

FOLDER = "scripts"


@dataclass
class _Observed:
    """One way in which a cause shows. hits: the verdicts. declared: implementations that declare it, and for which versions of torch."""

    text: str
    hits: pd.DataFrame
    declared: dict[str, str] = field(default_factory=dict)

    @property
    def absent(self) -> str:
        """Implementations that declare it but do not show it in this run; empty if there are none."""
        names = sorted(self.declared.keys() - set(self.hits["implementation"]))
        texts = [f"`{name}`" + (f" (torch {self.declared[name]})" if self.declared[name] else "") for name in names]
        return f"not in this run: {', '.join(texts)}" if texts else ""


def pages(material: Material, script: Script) -> dict[str, str]:
    """The page and its scripts, by path."""
    causes = _causes(material)
    titles = _titles(causes)
    files: dict[str, str] = {}

    def linked(hits: pd.DataFrame) -> str:
        """A link to the shortest script that shows one of these; empty where all scripts would be too long."""
        own = hits[~hits["relation"]]  # a script shows the answer to one batch, not how two answers relate
        first = own[own["implementation"] == own["implementation"].min()]
        pairs = first[["implementation", "case"]].drop_duplicates().itertuples(index=False, name=None)
        texts = {(name, case): script(name, case) for name, case in pairs}
        chosen = min(texts, key=lambda pair: (len(texts[pair]) or math.inf, pair), default=None)
        if chosen is None or not texts[chosen]:
            return ""
        path = f"{FOLDER}/{_file_name(*chosen)}"
        files[path] = texts[chosen]
        return f"[script]({path})"

    sections = [
        f"## {titles[cause]}\n\n{cell(f'{cause[0]} ([evidence elsewhere]({cause[1]}))')}\n\n{table(_row(o, linked) for o in shown)}"
        for cause, shown in causes.items()
    ]
    text = material.page(
        "Known deviations",
        "Where implementations are known to break a clause, by cause. Every deviation is strict: the run fails once it no longer holds, or matches no case. "
        "`xentcheck repro CASE --impl NAME` prints a script for any case.",
        material.note_on_twins(),
        table(_overview(titles[cause], shown) for cause, shown in causes.items())
        if causes
        else "None of these implementations declares one.",
        *sections,
    )
    return {"deviations.md": text, **files}


def _causes(material: Material) -> dict[tuple[str, str], list[_Observed]]:
    """By reason and link. A verdict that deviates belongs to the first declaration that covers it."""
    deviating = material.frame[material.frame["status"] == "deviates"]
    found: dict[tuple[str, str], dict[str, _Observed]] = {}
    for name in material.names:
        left = deviating[deviating["implementation"] == name]
        for deviation in material.claims[name]["deviations"]:
            covered = left[_covers(left, deviation)]
            left = left.drop(covered.index)
            shown, text = found.setdefault((deviation["reason"], deviation["link"]), {}), deviation["observed"]
            observed = shown.setdefault(text, _Observed(text, deviating[:0]))
            observed.hits = pd.concat([observed.hits, covered]).sort_index()
            observed.declared[name] = deviation["torch"]
    causes = {cause: list(shown.values()) for cause, shown in found.items()}
    # Causes that no verdict of this run shows come last.
    return dict(sorted(causes.items(), key=lambda item: all(observed.hits.empty for observed in item[1])))


def _covers(verdicts: pd.DataFrame, deviation: Mapping[str, Any]) -> pd.Series:
    fits = (verdicts["aspect"] == deviation["aspect"]) & (verdicts["kind"] == deviation["fault"])
    named = [any(matches(pattern, case) for pattern in deviation["cases"]) for case in verdicts["case"]]
    return fits & np.array(named, dtype=bool)


def _titles(causes: Mapping[tuple[str, str], list[_Observed]]) -> dict[tuple[str, str], str]:
    """The most frequent observation of each cause; no title twice."""
    titles: dict[tuple[str, str], str] = {}
    for cause, shown in causes.items():
        by_hits = sorted(shown, key=lambda observed: -len(observed.hits))
        texts = [cell(_capital(observed.text)) for observed in by_hits]
        free = [text for text in texts if text not in titles.values()]
        titles[cause] = free[0] if free else f"{texts[0]} ({len(titles) + 1})"
    return titles


def _capital(text: str) -> str:
    """With a capital letter, unless the first word is the name of a function or a dtype."""
    first = text.partition(" ")[0]
    return text[0].upper() + text[1:] if first.isalpha() else text


def _overview(title: str, shown: list[_Observed]) -> dict[str, Any]:
    hits = pd.concat([observed.hits for observed in shown])
    names = [f"`{name}`" for name in hits["implementation"].unique()]
    absent = "; ".join(dict.fromkeys(observed.absent for observed in shown))
    return {
        "what is wrong": f"[{title}]({anchor(title)})",
        "implementations": ", ".join(names) or absent,
        "cases": hits["case"].nunique(),
    }


def _row(observed: _Observed, linked: Callable[[pd.DataFrame], str]) -> dict[str, str]:
    hits = observed.hits
    if hits.empty:
        return {"seen": observed.text, "implementations, with cases": observed.absent}
    aspects = hits[["aspect", "kind"]].drop_duplicates().sort_values(["aspect", "kind"])
    cases = hits.drop_duplicates(["implementation", "case"])["implementation"].value_counts(sort=False)
    clauses = hits.drop_duplicates("case")["clause"].value_counts()
    units = hits["units"].max()
    first = hits.sort_values(["relation", "implementation", "case"]).iloc[0]
    implementations = ", ".join(f"`{name}` {n}" for name, n in cases.items() if n)
    return {
        "seen": observed.text,
        "aspect": ", ".join(f"{aspect}: {kind}" for aspect, kind in aspects.itertuples(index=False)),
        "implementations, with cases": "; ".join(filter(None, (implementations, observed.absent))),
        "clauses, with cases": _clauses(clauses),
        "up to": "" if math.isnan(units) else counted(units, "unit"),
        "for instance": f"`{first['implementation']}`, `{first['case']}`: {first['verdict'].message}",
        "again": linked(hits),
    }


def _clauses(counts: pd.Series, most: int = 4) -> str:
    shown = [f"{clause} {n}" for clause, n in counts.iloc[:most].items()]
    rest = counts.iloc[most:]
    return ", ".join(shown) + (f", and {rest.sum()} of {count(len(rest), 'other clause')}" if len(rest) else "")


def _file_name(implementation: str, case: str) -> str:
    return re.sub(r"[^\w.]+", "-", f"{case}-{implementation}").strip("-") + ".py"
