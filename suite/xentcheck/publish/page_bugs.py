"""``wild-bugs.md``: bugs that were reported of real losses, and the cases that catch them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from xentcheck.publish.page import Material
from xentcheck.results.markdown import anchor, listed, table
from xentcheck.spec.bug_reports import NEEDS, WHERE, BugReport, Theme


def page(material: Material, themes: Sequence[Theme]) -> str:
    reports = [report for theme in themes for report in theme.reports]
    overview = [{"theme": f"[{theme.title}]({anchor(theme.title)})"} | _counts(theme.reports) for theme in themes]
    missed = _missed(reports)
    return material.page(
        "Reported bugs",
        "Bugs reported in real implementations of cross entropy, each with the cases that catch it: a wrong loss that reproduces the bug "
        "([tests/mutants](../tests/mutants)) is run on these cases and must fail at least one of them. "
        "**where**: where the bug was reported. What happened on a GPU or between ranks is reproduced here by the same mistake on a CPU; "
        "the same cases test the original where it runs. A case `clause/name` is in `cases/clause.yaml`. The data is in "
        "[cases/wild-bugs.yaml](../cases/wild-bugs.yaml).",
        table([*overview, {"theme": "**all**"} | _counts(reports)]),
        f"What it would take to catch the others: {missed}." if missed else "",
        *(f"## {theme.title}\n\n{table(map(_row, theme.reports))}" for theme in themes),
    )


def _counts(reports: Sequence[BugReport]) -> dict[str, str]:
    """How many reports there are, and how many of them are caught: in all, and by where they were reported."""
    caught = [report for report in reports if report.cases]
    by_place = {
        f"caught, {text}": f"{sum(r.where == where for r in caught)} of {sum(r.where == where for r in reports)}"
        for where, text in WHERE.items()
    }
    return {"reports": str(len(reports)), "caught": str(len(caught)), **by_place}


def _missed(reports: Sequence[BugReport]) -> str:
    """What it would take to catch the reports that no case catches, with how many each."""
    tally = Counter(report.needs for report in reports if report.why_not)
    needs = [*NEEDS.items(), (None, "a smaller tolerance")]
    return listed(f"{text} ({tally[need]})" for need, text in needs if tally[need]) if tally else ""


def _row(report: BugReport) -> dict[str, str]:
    proof = ", ".join(f"`{name}`" for name in report.mutants)
    cases = ", ".join(f"`{pattern}`" for pattern in report.cases)
    return {
        "id": report.id,
        "report": f"{report.project}: {', '.join(f'[{_short(link)}]({link})' for link in report.links)}",
        "where": WHERE[report.where],
        "symptom": report.symptom,
        "caught by": cases or f"not here: {report.why_not}",
        "reproduced by": ". ".join(part for part in (proof, report.note) if part),
    }


def _short(link: str) -> str:
    """``owner/name#1`` for an issue or a pull request on GitHub; else the address without its scheme."""
    return re.sub(r"^https?://(github\.com/)?", "", re.sub(r"/(issues|pull)/(?=\d+$)", "#", link))
