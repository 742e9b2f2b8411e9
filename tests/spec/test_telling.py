"""``--cases telling``: few cases, and everything is asked."""

import pytest

from xentcheck.reference.truth import relevant_conventions
from xentcheck.spec import bug_reports, loader
from xentcheck.spec.batch import build
from xentcheck.spec.bug_reports import BugReport
from xentcheck.spec.capabilities import CAPABILITIES, CONVENTIONS
from xentcheck.spec.needs import capabilities_needed
from xentcheck.spec.patterns import matches
from xentcheck.spec.telling import telling

GRADES = {"sums", "half_rounding"}  # of accuracy: every case of many terms or of a half type asks for them


@pytest.fixture(scope="module")
def everything():
    return loader.telling_first(loader.load_all())


@pytest.fixture(scope="module")
def chosen(everything):
    return telling(everything)


def test_every_clause_and_every_reported_bug_is_asked(everything, chosen):
    assert 80 <= len(chosen) <= 130
    assert {c.clause.clause for c in chosen} == {c.clause.clause for c in everything}
    for report in (report for theme in bug_reports.load() for report in theme.reports if report.cases):
        assert any(matches(pattern, case.id) for pattern in report.cases for case in chosen), report.id


def test_every_convention_and_every_capability_is_asked(chosen):
    conventions, capabilities = set(), set()
    for case in chosen:
        batch = build(case)
        conventions |= relevant_conventions(batch) | {case.question.expect.convention}
        capabilities |= capabilities_needed(case, batch)
        if case.question.dtype in ("bfloat16", "float16") and "shape" in case.aspects:
            conventions.add("half_loss_dtype")
    assert conventions - GRADES >= CONVENTIONS.keys() - GRADES
    assert capabilities == CAPABILITIES.keys()


def test_the_smallest_case_with_the_most_that_is_new_comes_first(cases):
    large, small, other, twin = cases(
        "id: large, logits: {shape: [50, 100]}, dtype: float16, reduction: sum",
        "id: small, logits: {shape: [3, 4]}, dtype: float16",
        "id: other, logits: {shape: [9, 4]}, reduction: sum",
        "id: twin, logits: {shape: [5, 4]}, reduction: sum",
    )
    assert telling([large, small, other, twin], []) == [small, twin]
    report = BugReport.model_validate(
        {"id": "AB-01", "project": "x", "links": ["https://a.example"], "symptom": "x.", "where": "cpu"}
        | {"cases": [other.id], "mutants": ["x"]}
    )
    assert telling([large, small, other, twin], [report]) == [small, other]
