"""Every reported bug is caught: wrong losses that reproduce it fail in a case that its row names, or the row says why none can."""

import pytest

from kill_matrix import loaded
from test_lint import MUTANTS
from test_mutants import CASES, faults
from test_mutants import MUTANTS as SOURCES
from xentcheck import cli
from xentcheck.run.examiner import Examiner
from xentcheck.spec import bug_reports
from xentcheck.spec.patterns import matches
from xentcheck.spec.yaml_document import CaseFileError

pytestmark = pytest.mark.slow

THEMES = bug_reports.load()
REPORTS = [report for theme in THEMES for report in theme.reports]
CAUGHT = {
    report.id: [c for c in CASES if not c.is_huge and any(matches(pattern, c.id) for pattern in report.cases)]
    for report in REPORTS
    if report.cases
}
# Those that a case of their report names are held to it by test_mutants.py.
OTHERS = [
    (report.id, name)
    for report in REPORTS
    for name in report.mutants
    if name not in {kill.replace("-", "_") for case in CAUGHT[report.id] for kill in case.kills}
]


@pytest.mark.parametrize(("report", "name"), OTHERS)
def test_a_mutant_of_a_report_is_killed_by_a_case_of_it(report, name):
    examiner, mutant = Examiner(), loaded(SOURCES[name])[0]
    assert any(faults(case, mutant, examiner) for case in CAUGHT[report])


def test_each_report_that_is_caught_has_a_mutant_and_a_case_that_can_be_asked():
    reports = {report.id: report for report in REPORTS}
    assert [id for id, cases in CAUGHT.items() if not (reports[id].mutants and cases)] == []


def test_the_shipped_table_has_nothing_to_mend():
    assert bug_reports.lint(THEMES, CASES, MUTANTS) == []


def test_the_table_is_complete():
    assert len(REPORTS) == 179
    # Reported on a CPU, and about the answer of a loss: what no case catches is about something else.
    missed = {report.id for report in REPORTS if report.where == "cpu" and not report.cases}
    assert missed == {"VAL-19", "NP-15", "FL-21", "XF-04", "XF-25", "XF-29", "XF-30"}


ROW = """themes:
- prefix: AB
  title: Things
  reports:
  - id: AB-01
    project: P
    links: [https://example.org/1]
    symptom: It was wrong.
    where: cpu
    cases: [plain-values/classification]
    mutants: [weights_applied_twice]
"""


@pytest.fixture
def table(tmp_path):
    """``table(old, new)``: a table of one row, with one text in it replaced."""

    def write(old="", new=""):
        path = tmp_path / "bugs.yaml"
        assert old in ROW
        path.write_text(ROW.replace(old, new))
        return path

    return write


def test_a_good_row_is_taken(table):
    assert bug_reports.lint(bug_reports.load(table()), CASES, MUTANTS) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("AB-01", "AB-02", "AB-02: expected the ids of AB in order"),
        ("plain-values/classification", "plain-values/clasification", "did you mean plain-values/classification"),
        ("weights_applied_twice", "weights_applied_thrice", "did you mean weights_applied_twice"),
        ("It was wrong.", "It was wrong", "symptom: expected a sentence"),
    ],
)
def test_lint(table, old, new, message):
    (found,) = bug_reports.lint(bug_reports.load(table(old, new)), CASES, MUTANTS)
    assert message in str(found)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    cases: [plain-values/classification]\n", "", "expected either cases that catch the bug or why_not"),
        ("    mutants: [weights_applied_twice]\n", "", "expected cases and the mutants"),
        (
            "    where: cpu\n",
            "    where: cpu\n    why_not: No.\n",
            "expected either cases that catch the bug or why_not",
        ),
        ("    where: cpu\n", "    where: cpu\n    needs: gpu\n", "expected cases or needs, which is what would reach"),
        ("where: cpu", "where: moon", "bugs.yaml:9: "),
        ("links: [https://example.org/1]", "links: []", "bugs.yaml:7: "),
        ("id: AB-01", "id: one", "bugs.yaml:5: "),
    ],
)
def test_a_row_that_says_too_little_or_too_much_is_refused(table, old, new, message):
    with pytest.raises(CaseFileError, match=r"bugs\.yaml:\d+: ") as caught:
        bug_reports.load(table(old, new))
    assert message in str(caught.value)


def test_the_command_checks_the_table_as_well(monkeypatch, table, capsys):
    broken = bug_reports.load(table("plain-values/classification", "no-such-case"))
    monkeypatch.setattr(bug_reports, "load", lambda: broken)
    assert cli.main(["lint"]) == 1
    assert "no case matches 'no-such-case'" in capsys.readouterr().out
