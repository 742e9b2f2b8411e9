"""The reports as golden files, from records written by hand. ``python tests/report_material.py`` writes the golden files anew."""

import re
from dataclasses import replace

import pytest

from report_material import GOLDEN, made, material, pages, questions, results, verdict
from xentcheck import cli
from xentcheck.publish import check as report_check
from xentcheck.publish import page_answers, page_summary, report
from xentcheck.publish.check import between
from xentcheck.publish.page import WIDEST
from xentcheck.results import record
from xentcheck.results.merge import save
from xentcheck.run.verdict import Fault, Verdict
from xentcheck.spec import common_claims


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


@pytest.mark.usefixtures("drawn")
def test_the_plot_is_the_same_each_time_and_has_every_implementation(tmp_path):
    one, two = (pages(tmp_path / name, results()) / "accuracy.svg" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    text = one.read_text()
    assert text.startswith("<?xml")
    assert all(f"<!-- {name} -->" in text for name in ("known", "right", "wrong")), "labels are drawn, and named beside"


def test_a_truncated_run_says_so_on_every_page(tmp_path):
    folder = pages(tmp_path, replace(results(), complete=False))
    silent = {page.name for page in folder.glob("*.md") if "This run did not end" not in page.read_text()}
    assert silent == set()
    assert len(list(folder.glob("*.md"))) == len(list(GOLDEN.iterdir()))


def test_only_a_pass_is_counted_as_one(tmp_path):
    row = next(
        line
        for line in (pages(tmp_path, results()) / "README.md").read_text().splitlines()
        if line.startswith("| `wrong`")
    )
    assert [cell.strip() for cell in row.split("|")[2:6]] == ["0 of 3", "0", "3", "0"]


def test_no_table_is_wider_than_it_may_be():
    many = results()
    claims = many.run["implementations"]
    names = [f"loss-{number}" for number in range(17)]
    verdicts = [
        replace(v, implementation=name, error_units=float(n))
        for n, name in enumerate(names)
        for v in many.verdicts
        if v.implementation == "right"
    ]
    # Each answers another convention, so that none of them is shown together with another.
    verdicts += [verdict(name, f"plain/own-{n}", "loss") for n, name in enumerate(names)]
    run = many.run | {"implementations": dict.fromkeys(names, claims["right"])}
    for name, content in made(record.Results(run, tuple(verdicts))).items():
        for line in content.decode().splitlines():
            if name.endswith(".md") and line.startswith("| "):
                assert len(re.findall(r"(?<!\\)\|", line)) - 1 <= WIDEST, (name, line)


def test_those_with_the_same_outcome_are_shown_as_one():
    whole = results()
    run = whole.run | {
        "implementations": {**whole.run["implementations"], "alike": whole.run["implementations"]["right"]}
    }
    alike = tuple(replace(v, implementation="alike") for v in whole.verdicts if v.implementation == "right")
    shown = record.Results(run, whole.verdicts + alike)
    assert material(shown).names == ["known", "right", "wrong"]
    assert "`right`, `alike`" in made(shown)["README.md"].decode()
    other = (replace(alike[0], status="fail", fault=Fault("value", "loss", 1.0, 2.0)), *alike[1:])
    assert material(replace(shown, verdicts=whole.verdicts + other)).names == ["known", "right", "wrong", "alike"]


def test_scripts_that_no_page_links_are_removed(tmp_path):
    folder = pages(tmp_path)
    (script,) = (folder / "scripts").iterdir()
    assert f"(scripts/{script.name})" in (folder / "deviations.md").read_text()
    earlier = folder / "scripts" / "earlier.py"
    earlier.write_text("")
    assert report_check.pages(made(folder=folder), folder) == [f"{earlier}: no page links it"]
    pages(folder)
    assert list((folder / "scripts").iterdir()) == [script]


# --- published and new


def test_a_published_record_gives_its_pages_byte_for_byte(tmp_path):
    published = record.publish(results(), tmp_path / report.RECORD)
    before = (tmp_path / report.RECORD).read_bytes()
    folder = pages(tmp_path, published)
    assert report_check.pages(made(record.load(tmp_path / report.RECORD), folder), folder) == []
    record.publish(replace(results(), verdicts=results().verdicts[::-1]), tmp_path / report.RECORD)
    assert (tmp_path / report.RECORD).read_bytes() == before


def test_a_damaged_record_is_refused(tmp_path):
    path = tmp_path / report.RECORD
    record.publish(results(), path)
    whole = path.read_bytes()
    for damaged in (whole[:-20], whole[:30], b"no gzip"):
        path.write_bytes(damaged)
        with pytest.raises(record.RecordError, match="no results can be read"):
            record.load(path)


@pytest.mark.parametrize(("old", "new"), [("0 of 3", "1 of 3"), ("2.0", "1.9"), ("Right.", "Right.\n")])
def test_any_other_byte_is_a_difference(tmp_path, old, new):
    folder = pages(tmp_path)
    page = folder / "README.md"
    text = page.read_text()
    assert old in text
    page.write_text(text.replace(old, new, 1))
    (message,) = report_check.pages(made(folder=folder), folder)
    assert message.startswith(f"{page}:")
    assert "what the code produces" in message


def test_a_missing_page_is_a_difference(tmp_path):
    folder = pages(tmp_path)
    (folder / "answers.md").unlink()
    assert report_check.pages(made(folder=folder), folder) == [f"{folder / 'answers.md'}: is missing"]


def test_records_agree_whatever_the_machine_measured():
    other = replace(
        results(),
        run=results().run | {"started": "1999-01-02T03:04:05+00:00", "environment": {"torch": "1.0"}},
        verdicts=tuple(
            replace(
                v,
                error_units=None if v.error_units is None else v.error_units + 0.5,
                fault=v.fault and replace(v.fault, found="other", index=(7,), count=1, units=9.0),
            )
            for v in reversed(results().verdicts)
        ),
    )
    assert report_check.between(results(), other) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda v: replace(v, status="pass", fault=None),
            "known ignored/nan gradient: published deviates (nan); found pass",
        ),
        (
            lambda v: replace(v, fault=replace(v.fault, kind="inf")),
            "known ignored/nan gradient: published deviates (nan); found deviates (inf)",
        ),
        (
            lambda v: replace(v, conventions={"empty_mean": "zero"}),
            "known ignored/nan gradient: published deviates (nan); found deviates (nan) (empty_mean zero)",
        ),
    ],
)
def test_another_status_fault_or_convention_is_a_difference(change, message):
    other = replace(results(), verdicts=tuple(change(v) if v.status == "deviates" else v for v in results().verdicts))
    assert report_check.between(results(), other) == [message]


def test_verdicts_implementations_and_cases_that_only_one_record_has_are_differences():
    whole = results()
    less = replace(whole, verdicts=whole.verdicts[1:])
    first = "known ignored/nan loss"
    assert report_check.between(whole, less) == [f"1 verdict published, but not in this run; the first: {first}"]
    assert report_check.between(less, whole) == [f"1 verdict in this run, but not published; the first: {first}"]
    claims = {name: c for name, c in whole.run["implementations"].items() if name != "wrong"}
    fewer = replace(whole, run=whole.run | {"implementations": claims})
    assert report_check.between(whole, fewer) == ["wrong: is published, but not in this run"]
    (message,) = report_check.between(whole, replace(whole, run=whole.run | {"cases": "4567"}))
    assert "0123" in message
    assert "4567" in message


def test_of_many_differences_the_first_are_named_and_the_others_counted():
    many = [verdict("right", f"plain/{n:02}", "loss") for n in range(report_check.MOST + 5)]
    failed = [replace(v, status="fail") for v in many]
    found = report_check.between(*(replace(results(), verdicts=tuple(part)) for part in (many, failed)))
    assert len(found) == report_check.MOST + 1
    assert found[0].startswith("right plain/00 loss")
    assert found[-1] == "and 5 further differences"


# --- the excerpt on the front page


def test_an_excerpt_is_made_anew_between_its_marks_only(tmp_path):
    page = tmp_path / "FRONT.md"
    page.write_text(f"before\n{page_summary.EXCERPT[0]}\nan earlier table\n{page_summary.EXCERPT[1]}\nafter\n")
    text = page_summary.with_excerpt(material(), page)
    assert re.fullmatch(r"before\n<!-- .*? -->\n\n\| implementation .*\n\n<!-- .*? -->\nafter\n", text, re.DOTALL)
    assert "earlier" not in text


def test_a_page_without_marks_is_refused(tmp_path):
    page = tmp_path / "FRONT.md"
    page.write_text("nothing")
    with pytest.raises(record.RecordError, match="expected the marks"):
        page_summary.with_excerpt(material(), page)


def test_evidence_that_the_run_does_not_bear_out_is_named():
    assert page_answers.unverified(questions(), material()) == []
    better = replace(
        results(),
        verdicts=tuple(replace(v, status="pass") if v.status == "deviates" else v for v in results().verdicts),
    )
    assert page_answers.unverified(questions(), material(better)) == [
        "answers.yaml: seed 000: known ignored/nan: expected deviates, found pass"
    ]
    without = replace(results(), verdicts=tuple(v for v in results().verdicts if v.case != "plain/mean"))
    assert page_answers.unverified(questions(), material(without)) == [
        "answers.yaml: seed 000: right plain/mean: expected pass, found not run"
    ]


def test_the_shipped_answers_name_cases_that_exist():
    from xentcheck.spec.loader import load_all

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
    save(run, tmp_path / "results")
    assert cli.main(["report", str(tmp_path / "results"), "--to", str(tmp_path / "pages")]) == 0
    assert "wrote" in capsys.readouterr().out
    assert cli.main(["report", str(tmp_path / "results"), "--to", str(tmp_path / "pages"), "--check"]) == 0
    (tmp_path / "pages" / "README.md").write_text("something else")
    assert cli.main(["report", str(tmp_path / "results"), "--to", str(tmp_path / "pages"), "--check"]) == 1
    assert "is not what the code produces" in capsys.readouterr().err
    other = replace(run, verdicts=tuple(replace(v, status="fail", fault=Fault("value")) for v in run.verdicts))
    save(other, tmp_path / "other")
    assert cli.main(["report", str(tmp_path / "other"), "--to", str(tmp_path / "pages"), "--check"]) == 1
    assert "published pass; found fail (value)" in capsys.readouterr().err


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
        save(part, tmp_path / name)
    assert cli.main(["merge", str(tmp_path / "known"), str(tmp_path / "right"), "--to", str(tmp_path / "both")]) == 0
    merged = record.load(tmp_path / "both")
    assert merged.complete
    assert {v.implementation for v in merged.verdicts} == {"known", "right"}


@pytest.mark.parametrize(
    ("certain", "aspect", "agree"), [(False, "loss", True), (True, "loss", False), (False, "gradient", False)]
)
def test_a_deviation_that_is_not_certain_may_show_or_not(certain, aspect, agree):
    deviation = {"cases": ["plain/*"], "aspect": aspect, "observed": "x", "fault": "value", "certain": certain}
    run = {"cases": "c", "implementations": {"known": {"version": "1", "capabilities": [], "deviations": [deviation]}}}
    one, other = (
        record.Results(run, (Verdict("known", "plain", "plain/mean", "loss", status),))
        for status in ("pass", "deviates")
    )
    assert (between(one, other) == []) is agree
    failing = record.Results(run, (Verdict("known", "plain", "plain/mean", "loss", "fail"),))
    assert between(one, failing)
