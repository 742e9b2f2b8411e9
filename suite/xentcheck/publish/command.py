"""What ``xentcheck report`` does: records to published records and pages, or a check of those that are published."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from xentcheck.implementation import FOLDER, Implementation, ImplementationError, find, names
from xentcheck.publish import check, costs, page_answers, page_summary, report
from xentcheck.publish.page import Material, Script
from xentcheck.repro.literals import WRITTEN_OUT
from xentcheck.repro.script import script
from xentcheck.results import record
from xentcheck.results.markdown import visible
from xentcheck.results.record import Results
from xentcheck.spec import bug_reports, common_claims, loader
from xentcheck.spec.batch import build
from xentcheck.spec.case import Case


def write_or_check(results: Results | None, to: Path, excerpt: Path | None = None, checks: bool = False) -> int:
    """Writes the pages, or compares them with what is published.

    Args:
        results: of a run; None to make the pages of the record that is published already.
        to: the folder of the reports. The record of other libraries in it, ``report.FIELD``, has its pages as well; it is only read.
        excerpt: a page with an excerpt of the first page.
        checks: whether nothing is written, and what differs is a problem.

    Returns:
        The exit code: 1 where there is a problem, which is said on stderr.
    """
    where, cases, questions = to / report.RECORD, loader.load_all(), common_claims.load()
    if results is not None and results.costs and not checks:  # times differ from run to run
        print(f"wrote {', '.join(map(str, costs.write(results, to)))}")
        if not results.verdicts:
            return 0 if results.complete else 1
    problems: list[str] = []
    if results is None:
        published = results = record.load(where)
    elif checks:
        published = record.load(where)
        problems += check.between(published, results)
    else:
        published = record.publish(results, where)
    material, beside = Material(published, cases), to / report.FIELD
    field = Material(record.load(beside), cases) if beside.is_file() else None
    made = report.pages(material, questions, bug_reports.load(), _script(cases, published), to, field)
    front = page_summary.with_excerpt(material, excerpt) if excerpt else ""
    problems += page_answers.unverified(questions, material)
    if checks:
        problems += check.pages(made, to)
        problems += check.pages({excerpt.name: front.encode()}, excerpt.parent) if excerpt else []
    else:
        report.write(made, to)
        if excerpt:
            excerpt.write_text(front, encoding="utf-8")
        print(f"wrote {', '.join(str(to / name) for name in (report.RECORD, *made) if '/' not in name)}")
    if not results.complete:
        problems.append("these results are of a run that did not finish; continue it with --resume")
    for problem in problems:
        print(f"xentcheck: {visible(problem)}", file=sys.stderr)
    return 1 if problems else 0


def _script(cases: Sequence[Case], results: Results) -> Script:
    by_id = {case.id: case for case in cases}
    shipped = frozenset(names(FOLDER))  # nothing else is loaded: a record must not name code that is run
    implementations: dict[str, Implementation] = {}

    @cache
    def short_script(name: str, case_id: str) -> str:
        """Empty where the batch is large, or the case or implementation is the user's own, since results contain neither."""
        if case_id not in by_id or name not in shipped:
            return ""
        try:
            if name not in implementations:
                version = results.run["implementations"][name]["version"]
                implementations[name] = replace(find(name)[0], version=version)
        except ImplementationError:
            return ""
        if implementations[name].environment:
            return ""
        batch = build(by_id[case_id])
        return script(by_id[case_id], implementations[name], batch) if batch.input.numel() <= WRITTEN_OUT else ""

    return short_script
