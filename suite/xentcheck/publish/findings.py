"""What is wrong with an implementation, in words and by cause, the worst first. Shared by the pages on other libraries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from xentcheck.publish.page import Material
from xentcheck.results.markdown import count
from xentcheck.run.verdict import Verdict, counted
from xentcheck.spec.case import RELATIONS
from xentcheck.spec.patterns import matches

# What a fault is called, the gravest first. "value" is graver where it is far off: see ``_gravity``.
_WORDS = {
    "crash": "the process dies",
    "timeout": "no answer in time",
    "accepted": "takes what it must refuse",
    "nan": "NaN as {aspect}",
    "inf": "an infinite {aspect}",
    "nonzero": "a {aspect} that is not zero where it must be",
    "changed": "changes its arguments",
    "unstable": "another answer to the same call",
    "value": "a wrong {aspect}",
    "raised": "an error instead of an answer",
    "missing": "no {aspect}",
    "shape": "a {aspect} of the wrong shape",
    "dtype": "a {aspect} of the wrong dtype",
}
_BROKEN_RELATIONS = {
    "deletion": "the answer changes when the ignored positions are deleted",
    "poisoning": "what ignored positions hold reaches the answer",
    "permutation": "the answer depends on the order of the positions",
    "class_permutation": "the answer depends on the order of the classes",
    "shift": "a constant added to all logits of a position changes the answer",
    "splitting": "two halves of a batch do not add up to the batch",
    "linearity": "the gradient is not proportional to the one from above",
    "zero_sum": "the gradient of a position does not add up to zero",
    "reductions": "the reductions do not agree with each other",
}
FAR = 1000.0  # units of error from which a wrong number is more than inaccurate


@dataclass(frozen=True, eq=False)
class Finding:
    """One thing that is wrong. text: in words. verdicts: what shows it, the first one the plainest. is_torchs, is_adapters: whether torch's
    own loss does exactly the same, and whether the answer is the adapter's and not its library's."""

    text: str
    verdicts: tuple[Verdict, ...]
    is_torchs: bool
    is_adapters: bool
    gravity: float
    link: str = ""
    reason: str = ""

    @property
    def cases(self) -> int:
        return len({verdict.case for verdict in self.verdicts})

    @property
    def example(self) -> Verdict:
        return self.verdicts[0]

    @property
    def units(self) -> float:
        """The largest error; NaN where none is known."""
        sizes = [size for verdict in self.verdicts if math.isfinite(size := _units(verdict))]
        return max(sizes, default=math.nan)

    @property
    def is_librarys(self) -> bool:
        return not (self.is_torchs or self.is_adapters)

    def __str__(self) -> str:
        up_to = "" if math.isnan(self.units) else f", up to {counted(self.units, 'unit')}"
        return f"{self.text} ({count(self.cases, 'case')}{up_to})"


def findings(material: Material, name: str) -> list[Finding]:
    """What is wrong, by cause: what the library does itself first, then what the adapter does, then what is torch's; of each the gravest first.

    A declared deviation is one cause. What is not declared is grouped by clause and kind of fault; relations, which mostly fail for a reason
    that a clause shows as well, by relation.
    """
    frame = material.frame
    wrong = frame[(frame["implementation"] == name) & frame["asked"] & (frame["status"] != "pass")]
    wrong = wrong[wrong["status"] != "unexpected-pass"]
    groups: dict[tuple[Any, ...], list[Verdict]] = {}
    for verdict in wrong["verdict"]:
        groups.setdefault(_cause(material, verdict), []).append(verdict)
    found = [_finding(material, cause, verdicts) for cause, verdicts in groups.items()]
    return sorted(found, key=lambda one: (one.is_torchs, one.is_adapters, one.gravity, -one.cases, one.text))


def _cause(material: Material, verdict: Verdict) -> tuple[Any, ...]:
    declared = _declared(material, verdict)
    whose = bool(verdict.same_as), verdict.by_adapter
    if declared is not None:
        return *whose, "declared", declared["observed"]
    if verdict.aspect in RELATIONS:
        return *whose, "relation", verdict.aspect
    return *whose, verdict.clause, verdict.kind or str(verdict.status)


def _declared(material: Material, verdict: Verdict) -> dict[str, Any] | None:
    """The declared deviation that a verdict belongs to."""
    if verdict.status != "deviates" or verdict.same_as:
        return None
    for deviation in material.claims[verdict.implementation]["deviations"]:
        if (deviation["aspect"], deviation["fault"]) == (verdict.aspect, verdict.kind) and any(
            matches(pattern, verdict.case) for pattern in deviation["cases"]
        ):
            return deviation
    return None


def _finding(material: Material, cause: tuple[Any, ...], verdicts: Sequence[Verdict]) -> Finding:
    is_torchs, is_adapters, group, what = cause
    ordered = sorted(verdicts, key=lambda v: (v.aspect in RELATIONS, len(v.message), v.case, v.aspect))
    first, link, reason = ordered[0], "", ""
    if group == "declared":
        declared = _declared(material, first) or {}
        text, link, reason = what, declared.get("link", ""), declared.get("reason", "")
    elif group == "relation":
        text = _BROKEN_RELATIONS[what]
    else:
        aspects = " and ".join(dict.fromkeys(a for v in ordered if (a := _named(v.aspect))))
        clauses = {case.clause.clause: case.clause.title for case in material.cases}
        words = _WORDS.get(what, what).format(aspect=aspects or "answer")
        text = f"{words}, against “{clauses.get(group, group)}”"
    return Finding(text, tuple(ordered), is_torchs, is_adapters, min(map(_gravity, ordered)), link, reason)


def _named(aspect: str) -> str:
    return aspect if aspect in ("loss", "gradient") else "loss" if aspect == "shape" else ""


def _gravity(verdict: Verdict) -> float:
    """The smaller, the graver; relations come after clauses."""
    kinds = list(_WORDS)
    grade = float(kinds.index(verdict.kind)) if verdict.kind in kinds else 0.0
    if verdict.kind == "value" and not _units(verdict) < FAR:
        grade = 1.5  # after what has no answer, before what is taken
    return grade + (len(kinds) if verdict.aspect in RELATIONS else 0)


def _units(verdict: Verdict) -> float:
    fault = verdict.fault
    if fault is None or fault.kind != "value":
        return math.nan
    return fault.worst_units if fault.worst_units is not None else math.inf


def by_clause(material: Material, name: str) -> pd.DataFrame:
    """Cases by clause: columns ``right``, ``wrong``, ``cannot`` and ``here`` (not available here)."""
    outcomes = material.outcomes[material.outcomes["implementation"] == name]
    groups = outcomes["symbol"].map(lambda symbol: {"✓": "right", "–": "cannot", "?": "not here"}.get(symbol, "wrong"))
    found = pd.crosstab(outcomes["clause"], groups)
    return found.reindex(columns=["right", "wrong", "cannot", "not here"], fill_value=0).sort_index()
