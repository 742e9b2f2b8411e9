"""Bugs that were reported of real losses, and the cases that catch them: ``cases/wild-bugs.yaml``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from xentcheck.spec.case import Case, Model
from xentcheck.spec.fields import Text, Texts
from xentcheck.spec.mistakes import Mistake, Unexpected
from xentcheck.spec.patterns import matches, nearest
from xentcheck.spec.resources import cases_folder
from xentcheck.spec.validation import parsed

PATH = cases_folder() / "wild-bugs.yaml"
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


class BugReport(Model):
    """One reported bug: either ``cases`` (patterns of case ids) that catch it, as ``mutants`` that reproduce it show, or ``why_not``.

    ``needs``: what would reach a bug that no case catches. ``note``: how closely the mutants reproduce the bug.
    """

    id: Annotated[str, Field(pattern=r"^[A-Z]{2,3}-\d\d$")]
    project: Text
    links: Annotated[tuple[Annotated[str, Field(pattern=r"^https?://\S+$")], ...], Field(min_length=1)]
    symptom: Text
    where: Literal[tuple(WHERE)]  # type: ignore[valid-type]
    cases: Texts = ()
    mutants: Texts = ()
    why_not: Text | None = None
    needs: Literal[tuple(NEEDS)] | None = None  # type: ignore[valid-type]
    note: Text | None = None

    @model_validator(mode="after")
    def _caught_or_not(self) -> BugReport:
        if bool(self.cases) == (self.why_not is not None):
            raise Unexpected("either cases that catch the bug or why_not", "both" if self.cases else "neither")
        if bool(self.cases) != bool(self.mutants):
            found = "cases alone" if self.cases else "mutants alone"
            raise Unexpected("cases and the mutants that prove that these catch the bug, or neither", found)
        if self.needs and not self.why_not:
            raise Unexpected("cases or needs, which is what would reach a bug that no case catches", "both")
        return self


class Theme(Model):
    prefix: Annotated[str, Field(pattern=r"^[A-Z]{2,3}$")]
    title: Text
    reports: Annotated[tuple[BugReport, ...], Field(min_length=1)]


class _File(Model):
    themes: tuple[Theme, ...]


def load(path: Path = PATH) -> tuple[Theme, ...]:
    """The reported bugs by theme. Raises CaseFileError that lists every mistake with its line."""
    return parsed(_File, path).themes


def lint(
    themes: Sequence[Theme], cases: Sequence[Case], mutants: Collection[str] | None = None, path: Path = PATH
) -> list[Mistake]:
    """What should be improved in the table; an empty list if nothing should.

    Args:
        themes: as loaded from ``path``.
        cases: those that the table may name.
        mutants: the names of the known wrong losses; with them, each of a report must be one of these.
    """
    found = [*_about_the_ids(themes), *_about_the_reports(themes, [case.id for case in cases], mutants)]
    return [Mistake(text, path, key=key) for key, text in found]


def _about_the_ids(themes: Sequence[Theme]) -> Iterator[tuple[str, str]]:
    for theme in themes:
        for number, report in enumerate(theme.reports, 1):
            if report.id != (expected := f"{theme.prefix}-{number:02}"):
                yield report.id, f"expected the ids of {theme.prefix} in order and without gaps, here {expected}"
                break
    for prefix, times in Counter(theme.prefix for theme in themes).items():
        if times > 1:
            yield prefix, f"expected each theme once; found it {times} times"


def _about_the_reports(
    themes: Sequence[Theme], ids: Sequence[str], mutants: Collection[str] | None
) -> Iterator[tuple[str, str]]:
    for report in (report for theme in themes for report in theme.reports):
        for pattern in report.cases:
            if not any(matches(pattern, case_id) for case_id in ids):
                hint = nearest(pattern, {case_id.partition("[")[0] for case_id in ids})
                yield f"{report.id}.cases", f"no case matches {pattern!r}{hint}"
        for name in report.mutants if mutants is not None else ():
            if name not in mutants:
                yield f"{report.id}.mutants", f"there is no wrong loss {name!r}{nearest(name, mutants or ())}"
        for name in ("symptom", "why_not", "note"):
            text = getattr(report, name)
            if text is not None and not text.endswith("."):
                yield f"{report.id}.{name}", f"expected a sentence that ends with a full stop; found {text!r:.60}"
