"""Bugs that were reported of real losses, and the cases that catch them: ``cases/wild-bugs.yaml``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from xentcheck.case import Case, Model
from xentcheck.loader import CASES
from xentcheck.patterns import matches, nearest
from xentcheck.yaml_document import CaseFileError, read

PATH = CASES / "wild-bugs.yaml"
# Where the bug was reported. On a CPU, the cases catch the same wrong scheme.
WHERE: dict[str, str] = {
    "cpu": "CPU",
    "gpu": "GPU only",
    "device": "another device",
    "ranks": "several ranks",
}
# What it takes to reach a bug that no case can catch.
NEEDS: dict[str, str] = {
    "gpu": "a GPU",
    "linear": "cases of a fused linear loss",
    "ranks": "several ranks",
    "benchmark": "a measurement of time or memory",
    "framework": "a test of the framework around the loss",
}


class Report(Model):
    """One reported bug: either ``cases`` (patterns of case ids) that catch it, as ``mutants`` that reproduce it show, or ``why_not``.

    ``needs``: what would reach a bug that no case catches. ``note``: in how far the mutants are the bug.
    """

    id: Annotated[str, Field(pattern=r"^[A-Z]{2,3}-\d\d$")]
    project: str
    links: Annotated[tuple[Annotated[str, Field(pattern=r"^https?://\S+$")], ...], Field(min_length=1)]
    symptom: str
    where: Literal[tuple(WHERE)]  # type: ignore[valid-type]
    cases: tuple[str, ...] = ()
    mutants: tuple[str, ...] = ()
    why_not: str | None = None
    needs: Literal[tuple(NEEDS)] | None = None  # type: ignore[valid-type]
    note: str | None = None

    @model_validator(mode="after")
    def _caught_or_not(self) -> Report:
        if bool(self.cases) == (self.why_not is not None):
            raise ValueError("expected either cases that catch the bug or why_not; found both or neither")
        if bool(self.cases) != bool(self.mutants):
            raise ValueError("expected mutants beside cases, and none without: they prove that the bug is caught")
        if self.needs and not self.why_not:
            raise ValueError("needs: says what would reach a bug that no case catches; found cases")
        return self


class Theme(Model):
    prefix: Annotated[str, Field(pattern=r"^[A-Z]{2,3}$")]
    title: str
    reports: Annotated[tuple[Report, ...], Field(min_length=1)]


class _File(Model):
    themes: tuple[Theme, ...]


def load(path: Path = PATH) -> tuple[Theme, ...]:
    """Raises CaseFileError that names the first mistake and its line."""
    document = read(path)
    try:
        return _File.model_validate(document.value).themes
    except ValidationError as error:
        first = error.errors()[0]
        where = tuple(first["loc"])
        while where and where not in document.lines:
            where = where[:-1]
        raise CaseFileError(
            f"{path}:{document.lines.get(where, 1)}: {'.'.join(map(str, first['loc']))}: {first['msg']}; found {first['input']!r:.80}"
        ) from error


def lint(
    themes: Sequence[Theme], cases: Sequence[Case], mutants: Collection[str] | None = None, path: Path = PATH
) -> list[str]:
    """What is wrong with the table, as ``file: id: found and expected``. mutants: the names of the known wrong losses, if known."""
    return [f"{path}: {text}" for text in _mistakes(themes, [case.id for case in cases], mutants)]


def _mistakes(themes: Sequence[Theme], ids: Sequence[str], mutants: Collection[str] | None) -> Iterator[str]:
    for theme in themes:
        expected = [f"{theme.prefix}-{number:02}" for number in range(1, len(theme.reports) + 1)]
        found = [report.id for report in theme.reports]
        if found != expected:
            wrong = next((f, e) for f, e in zip(found, expected, strict=True) if f != e)
            yield f"{wrong[0]}: expected the ids of {theme.prefix} in order and without gaps; found it in place of {wrong[1]}"
    prefixes = [theme.prefix for theme in themes]
    for prefix in sorted({p for p in prefixes if prefixes.count(p) > 1}):
        yield f"{prefix}: expected each theme once; found it {prefixes.count(prefix)} times"
    for report in (report for theme in themes for report in theme.reports):
        for pattern in report.cases:
            if not any(matches(pattern, case_id) for case_id in ids):
                yield f"{report.id}: cases: no case matches {pattern!r}{nearest(pattern, {i.partition('[')[0] for i in ids})}"
        for name in report.mutants if mutants is not None else ():
            if name not in mutants:
                yield f"{report.id}: mutants: there is no wrong loss {name!r}{nearest(name, mutants or ())}"
        for name in ("symptom", "why_not", "note"):
            text = getattr(report, name)
            if text is not None and not text.endswith("."):
                yield f"{report.id}: {name}: expected a sentence that ends with a full stop; found {text!r:.60}"


def counts(reports: Sequence[Report]) -> dict[str, str]:
    """How many reports there are, and how many of them are caught: in all, and by where they were reported."""
    caught = [report for report in reports if report.cases]
    by_place = {
        f"caught, {text}": f"{sum(r.where == where for r in caught)} of {sum(r.where == where for r in reports)}"
        for where, text in WHERE.items()
    }
    return {"reports": str(len(reports)), "caught": str(len(caught)), **by_place}


def missed(reports: Sequence[Report]) -> str:
    """What would reach the reports that no case catches, each with their number."""
    tally = Counter(report.needs for report in reports if report.why_not)
    needs = {**NEEDS, None: "a smaller tolerance"}
    return ", ".join(f"{text} ({tally[need]})" for need, text in needs.items() if tally[need])


def row(report: Report) -> dict[str, str]:
    """The report as a row of the published page."""
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
