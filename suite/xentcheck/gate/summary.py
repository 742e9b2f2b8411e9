"""What the gate found, as Markdown: the colour, the counts, and a table for each outcome."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from xentcheck.gate.compare import BETTER, INCONCLUSIVE, MISSING, WORSE, Finding, Report
from xentcheck.results.markdown import count, table

_SHOWN, _NAMED = 40, 3  # rows of a table, cases of a row


def markdown(report: Report, strict: bool = False) -> str:
    """strict: whether what is inconclusive is red, too."""
    missing, worse, better, unsure = (report.of(outcome) for outcome in (MISSING, WORSE, BETTER, INCONCLUSIVE))
    compared = ", ".join(f"{number} {kind}" for kind, number in report.compared.items())
    parts = [
        f"## Gate: {'red' if report.is_red(strict) else 'green'}",
        f"{len(missing)} missing, {len(worse)} worse, {len(better)} better, {len(unsure)} inconclusive"
        f"{' (red by --strict-perf)' if strict and unsure else ''}. Compared: {compared}.",
        *report.notes,
        *(f"**The gate could not do its work: {problem}.**" for problem in report.problems),
    ]
    if missing:
        parts.append(
            f"### Missing\n\nThe baseline holds these and the run does not. A part of the baseline is selected by `--gate-only`.\n\n{table(_groups(missing))}"
        )
    for title, found in (("Worse", worse), ("Inconclusive", unsure), ("Better", better)):
        if found:
            parts.append(f"### {title}\n\n{table([_row(f) for f in found[:_SHOWN]])}")
            if len(found) > _SHOWN:
                parts.append(f"and {len(found) - _SHOWN} more")
    return "\n\n".join(parts) + "\n"


def publish(text: str) -> None:
    """Appends to the summary of a GitHub job, where there is one."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if path:
        with Path(path).open("a", encoding="utf-8") as summary:
            summary.write(text + "\n")


def _groups(missing: Iterable[Finding]) -> list[dict[str, str]]:
    """One row for each implementation and aspect: all of a missing implementation would fill pages."""
    grouped: dict[tuple[str, str], list[Finding]] = {}
    for finding in missing:
        grouped.setdefault((finding.implementation, finding.aspect), []).append(finding)
    return [
        {
            "implementation": f"`{name}`",
            "aspect": aspect,
            "missing": count(len(found), "case"),
            "such as": ", ".join(f"`{finding.case}`" for finding in found[:_NAMED]),
            "see it again": f"`{found[0].again}`",
        }
        for (name, aspect), found in grouped.items()
    ]


def _row(found: Finding) -> dict[str, str]:
    return {
        "what": found.kind,
        "implementation": f"`{found.implementation}`" if found.implementation else "",
        "case": f"`{found.case}`",
        "baseline": found.was,
        "now": found.now.replace("\n", " ")[:300],
        "see it again": f"`{found.again}`" if found.again else "",
    }
