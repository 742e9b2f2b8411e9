"""The reports as golden files, from records written by hand. ``python tests/test_report.py`` writes the golden files anew."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from xentcheck import bug_reports, cli, common_claims, record, report
from xentcheck.case import Case, Clause, Question
from xentcheck.loader import CASES
from xentcheck.verdict import Fault, Verdict

GOLDEN = Path(__file__).parent / "golden"
CLAUSES = {
    "ignored": Clause(
        clause="ignored",
        title="Ignored",
        requirement="Ignored positions count for nothing.",
        sources=("https://a.example/1",),
    ),
    "plain": Clause(
        clause="plain",
        title="Plain",
        requirement="The loss is the definition's.",
        sources=("https://b.example/2", "https://b.example/3"),
    ),
}
LEAK = {
    "cases": ["ignored/nan"],
    "aspect": "gradient",
    "observed": "NaN gradients",
    "fault": "nan",
    "reason": "0 * NaN is NaN.",
    "link": "https://c.example/4",
    "torch": "<3",
    "max_units": None,
}
STALE = {**LEAK, "cases": ["ignored/elsewhere"], "observed": "something that was not run"}


def verdict(
    implementation, case, aspect, status="pass", units=None, reason="", fault=None, dtype="float32", **conventions
):
    return Verdict(
        implementation, case.split("/")[0], case, aspect, status, units, fault, reason, None, dtype, conventions
    )


def results():
    def claims(description, deviations=(), **conventions):
        return {
            "version": "1.0",
            "description": description,
            "capabilities": ["backward", "float32"],
            "conventions": conventions,
            "deviations": list(deviations),
        }

    run = {
        "kind": "run",
        "format": record.FORMAT,
        "edition": "1",
        "cases": "0123",
        "selection": "all",
        "started": "2026-01-02T03:04:05+00:00",
        "environment": {"torch": "2.0", "gpu": None, "threads": 2, "allocator": {}},
        "implementations": {
            "known": claims("Wrong in a known way.", [LEAK, STALE], empty_mean="nan"),
            "right": claims("Right."),
            "wrong": claims("Wrong | new."),
        },
    }
    verdicts = [
        verdict("known", "ignored/nan", "loss", units=0.25),
        verdict(
            "known",
            "ignored/nan",
            "gradient",
            "deviates",
            fault=Fault("nan", "gradient", 0.0, math.nan, (0, 0), is_ignored=True),
        ),
        verdict("known", "plain/mean", "loss", units=1.5, empty_mean="nan"),
        verdict("known", "plain/half", "loss", "unsupported", reason="not claimed: bfloat16", dtype="bfloat16"),
        verdict("right", "ignored/nan", "loss", units=0.5),
        verdict("right", "ignored/nan", "gradient", units=0.0),
        verdict("right", "plain/mean", "loss", units=2.0, empty_mean="zero"),
        verdict("right", "plain/half", "loss", units=0.125, dtype="bfloat16", half_loss_dtype="input"),
        verdict(
            "wrong",
            "ignored/nan",
            "loss",
            "error",
            fault=Fault("raised", expected="a loss", found="RuntimeError in the call: a | b"),
        ),
        verdict("wrong", "ignored/nan", "gradient", "crash", reason="worker died"),
        verdict(
            "wrong",
            "plain/mean",
            "loss",
            "fail",
            40.0,
            fault=Fault("value", "loss", 1.0, 2.0, units=40.0, worst_units=40.0, allowed_units=3.0, count=1, total=1),
        ),
        verdict(
            "wrong",
            "plain/half",
            "loss",
            "unexpected-pass",
            0.5,
            "this is a known deviation, and it holds; delete x.py:1",
            dtype="bfloat16",
        ),
    ]
    return record.Results(run, tuple(verdicts))


def cases():
    question = Question.model_validate({"logits": {"shape": [2, 3]}})
    return [
        Case(id=i, clause=CLAUSES[i.split("/")[0]], question=question, path=CASES / f"{i.split('/')[0]}.yaml", line=1)
        for i in ("ignored/nan", "plain/mean", "plain/half")
    ]


def questions():
    evidence = [
        {"case": "ignored/nan", "implementation": "known", "status": "deviates", "shows": "NaN in an ignored row"},
        {"case": "plain/mean", "implementation": "right", "shows": "the mean"},
    ]
    claim = {
        "claim": "Ignored rows are harmless.",
        "verdict": "half true",
        "answer": "Only finite\nones.",
        "evidence": evidence,
    }
    return (common_claims.Topic.model_validate({"seed": "000", "question": "Are they?", "claims": [claim]}),)


def bugs():
    caught = {"cases": ["ignored/nan", "plain"], "mutants": ["nan_leaks", "no_maximum"]}
    rows = [
        {"id": "AB-01", "where": "cpu", "note": "One of two.", **caught},
        {"id": "AB-02", "where": "gpu", "needs": "linear", "why_not": "It has weights | of its own."},
        {"id": "AB-03", "where": "gpu", **caught},
    ]
    common = {"project": "Some", "links": ["https://github.com/a/b/issues/1", "https://d.example/2"]}
    rows = [{**common, "symptom": f"Wrong as {row['id']}.", **row} for row in rows]
    return (bug_reports.Theme.model_validate({"prefix": "AB", "title": "Things and more", "reports": rows}),)


def pages(folder, shown):
    report.write(
        shown, cases(), questions(), bugs(), lambda implementation, case: f"print('{implementation}, {case}')\n", folder
    )
    return folder


@pytest.mark.parametrize(
    "page",
    ["README.md", "conformance.md", "deviations.md", "accuracy.md", "conventions.md", "answers.md", "wild-bugs.md"],
)
def test_a_page_is_as_published(tmp_path, page):
    assert (pages(tmp_path, results()) / page).read_text() == (GOLDEN / page).read_text()


def test_pages_of_other_commands_are_named_where_they_are(tmp_path):
    before = (pages(tmp_path, results()) / "README.md").read_text()
    (tmp_path / "speed.md").write_text("")
    assert "(speed.md)" not in before
    after = (pages(tmp_path, results()) / "README.md").read_text()
    assert "(speed.md)" in after
    assert "(gate.md)" not in after


def test_the_plot_is_the_same_each_time_and_has_every_implementation(tmp_path):
    one, two = (pages(tmp_path / name, results()) / "accuracy.svg" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert one.read_text().startswith("<?xml")


def test_a_truncated_run_says_so_on_every_page(tmp_path):
    folder = pages(tmp_path, replace(results(), complete=False))
    for page in folder.glob("*.md"):
        assert "This run did not end" in page.read_text(), page.name


def test_only_a_pass_is_counted_as_one(tmp_path):
    row = next(
        line
        for line in (pages(tmp_path, results()) / "README.md").read_text().splitlines()
        if line.startswith("| `wrong`")
    )
    assert [cell.strip() for cell in row.split("|")[2:8]] == ["0", "3", "0", "0", "0", "0 of 3"]


def test_published_pages_agree_with_themselves_but_for_digits_times_and_environment(tmp_path):
    made, published = pages(tmp_path / "made", results()), pages(tmp_path / "published", results())
    page = published / "README.md"
    page.write_text(
        page.read_text()
        .replace("2026-01-02", "1999-01-02")
        .replace("torch 2.0", "torch 1.0")
        .replace("2.0 units", "1.9 units")
    )
    assert report.differences(made, published) == []


@pytest.mark.parametrize(
    ("old", "new"), [("| 0        | 3 ", "| 1        | 2 "), ("known", "unknown"), ("0 of 3", "1 of 3")]
)
def test_any_other_difference_is_named(tmp_path, old, new):
    made, published = pages(tmp_path / "made", results()), pages(tmp_path / "published", results())
    page = published / "README.md"
    assert old in page.read_text()
    page.write_text(page.read_text().replace(old, new, 1))
    (message,) = report.differences(made, published)
    assert message.startswith(f"{page}: is not what the code produces")


def test_a_missing_page_is_a_difference(tmp_path):
    made, published = pages(tmp_path / "made", results()), pages(tmp_path / "published", results())
    (published / "answers.md").unlink()
    assert report.differences(made, published) == [f"{published / 'answers.md'}: expected, but not there"]


def test_an_excerpt_is_made_anew_between_its_marks_only(tmp_path):
    page = tmp_path / "FRONT.md"
    page.write_text(f"before\n{report.EXCERPT[0]}\nan earlier table\n{report.EXCERPT[1]}\nafter\n")
    text = report.with_excerpt(results(), page)
    assert re.fullmatch(r"before\n<!-- .*? -->\n\n\| implementation .*\n\n<!-- .*? -->\nafter\n", text, re.DOTALL)
    assert "earlier" not in text


def test_a_page_without_marks_is_refused(tmp_path):
    page = tmp_path / "FRONT.md"
    page.write_text("nothing")
    with pytest.raises(record.RecordError, match="expected the marks"):
        report.with_excerpt(results(), page)


def test_evidence_that_the_run_does_not_bear_out_is_named():
    assert common_claims.unverified(questions(), results()) == []
    better = replace(
        results(),
        verdicts=tuple(replace(v, status="pass") if v.status == "deviates" else v for v in results().verdicts),
    )
    assert common_claims.unverified(questions(), better) == [
        "answers.yaml: seed 000: known ignored/nan: expected deviates, found pass"
    ]
    without = replace(results(), verdicts=tuple(v for v in results().verdicts if v.case != "plain/mean"))
    assert common_claims.unverified(questions(), without) == [
        "answers.yaml: seed 000: right plain/mean: expected pass, found not run"
    ]


def test_the_shipped_answers_name_cases_that_exist():
    from xentcheck.loader import load_all

    known = {case.id for case in load_all()}
    assert {e.case for a in common_claims.load() for c in a.claims for e in c.evidence} <= known


# --- the command line


def test_reports_from_a_folder_of_results(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(common_claims, "load", lambda: ())
    run = replace(
        results(),
        verdicts=tuple(replace(v, case="ignored-positions/seed-001-unlabelled") for v in results().verdicts[4:6]),
        run={**results().run, "implementations": {"right": results().run["implementations"]["right"]}},
    )
    record.save(run, tmp_path / "results")
    assert cli.main(["report", str(tmp_path / "results"), "--to", str(tmp_path / "pages")]) == 0
    assert "wrote" in capsys.readouterr().out
    assert cli.main(["report", str(tmp_path / "results"), "--to", str(tmp_path / "pages"), "--check"]) == 0
    (tmp_path / "pages" / "README.md").write_text("something else")
    assert cli.main(["report", str(tmp_path / "results"), "--to", str(tmp_path / "pages"), "--check"]) == 1
    assert "is not what the code produces" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["repro", "ignored-positions/seed-001-unlabeled", "--impl", "native"],
            "did you mean ignored-positions/seed-001-unlabelled",
        ),
        (["repro", "ignored-positions/seed-001-unlabelled", "--impl", "nativ"], "did you mean native"),
        (
            ["repro", "ignored-positions/seed-001-unlabelled", "--impl", "native,nll"],
            "expected one implementation; found 2",
        ),
        (["report", "/nowhere"], "no results can be read"),
        (["lint", "/nowhere.yaml"], "cannot be read"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_message(arguments, message, capsys):
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_cases_are_listed(capsys):
    assert cli.main(["cases", "empty-batch"]) == 0
    assert all(line.startswith("empty-batch/") for line in capsys.readouterr().out.splitlines())
    assert cli.main(["cases", "no-such-clause"]) == 1


def test_shards_merge_into_one_file(tmp_path):
    whole = results()
    for name in ("known", "right"):
        part = replace(
            whole,
            run={**whole.run, "implementations": {name: whole.run["implementations"][name]}},
            verdicts=tuple(v for v in whole.verdicts if v.implementation == name),
        )
        record.save(part, tmp_path / name)
    assert cli.main(["merge", str(tmp_path / "known"), str(tmp_path / "right"), "--to", str(tmp_path / "both")]) == 0
    merged = record.load(tmp_path / "both")
    assert merged.complete
    assert {v.implementation for v in merged.verdicts} == {"known", "right"}


if __name__ == "__main__":
    pages(GOLDEN, results())
    (GOLDEN / "accuracy.svg").unlink()
