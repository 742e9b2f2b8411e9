"""``--cases telling``: about a hundred cases that ask everything at least once, for implementations that are slow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from xentcheck.spec import bug_reports
from xentcheck.spec.bug_reports import BugReport
from xentcheck.spec.case import Case
from xentcheck.spec.fields import shape_of
from xentcheck.spec.patterns import matches

NAME = "telling"
_LARGE = 4096  # logits
_OPTIONS = ("weight", "label_smoothing", "normalizer", "padded_to", "linear")


def telling(cases: Sequence[Case], reports: Iterable[BugReport] | None = None) -> list[Case]:
    """A few cases that have between them every trait that any case has, in the order given.

    The traits of a case are its clause, the reported bugs that it catches, and what it is made of: its mode, dtype, rank, reduction,
    options, layouts, what is infinite or NaN in it, and what is expected. Cases are added one by one: first the one with the most traits that no earlier
    one has, of several the smallest. Those of more than 4096 logits come after all smaller ones.

    Args:
        cases: to choose from.
        reports: the reported bugs, whose ``cases`` catch them; the shipped table, if left out.
    """
    reports = [one for theme in bug_reports.load() for one in theme.reports] if reports is None else list(reports)
    traits = {case.id: {*_made_of(case), *_catches(case, reports)} for case in cases}
    seen: set[Any] = set()
    chosen: set[str] = set()
    for large in (False, True):
        pool = [case for case in cases if (_size(case) > _LARGE) is large]
        while pool:
            best = max(pool, key=lambda case: (len(traits[case.id] - seen), -_size(case)))
            if not traits[best.id] - seen:
                break
            seen |= traits[best.id]
            chosen.add(best.id)
    return [case for case in cases if case.id in chosen]


def _size(case: Case) -> float:
    """How many logits it has; those from a file are captured batches, which are large."""
    return math.inf if case.question.logits.file else math.prod(_shape(case))


def _shape(case: Case) -> tuple[int, ...]:
    logits = case.question.logits
    return tuple(logits.shape or () if logits.values is None else shape_of(logits.values))


def _catches(case: Case, reports: Iterable[BugReport]) -> Iterator[tuple[str, str]]:
    return (("bug", r.id) for r in reports if any(matches(pattern, case.id) for pattern in r.cases))


def _made_of(case: Case) -> Iterator[tuple[Any, ...]]:
    question = case.question
    yield "clause", case.clause.clause
    for name in ("mode", "dtype", "reduction", "weight_layout", "needs"):
        yield name, getattr(question, name)
    yield from (("option", name) for name in _OPTIONS if getattr(question, name) not in (None, 0.0))
    yield "ignore_index", type(question.ignore_index).__name__
    shape = _shape(case)
    yield "rank", len(shape)
    yield "many classes", max(shape[:2][-1:], default=0) > _LARGE and question.linear is None
    yield "layouts", question.logits.layout, question.target.layout
    yield "target", question.target.dtype, bool(question.target.probabilities)
    for pattern in question.logits.set:
        if not math.isfinite(pattern.value):
            yield "set", str(pattern.value), case.clause.clause, question.weight is not None
    expect = question.expect
    yield "expect", expect.convention, expect.refused_unless_claimed, expect.error.phase if expect.error else ""
    yield from (("answer", answer) for answer in (expect.loss, expect.gradient) if isinstance(answer, str))
