"""The pages on other libraries as golden files, from a record written by hand. ``python tests/field_material.py`` writes the golden files anew."""

import re
import shutil
from dataclasses import replace

import pytest

from field_material import GOLDEN, PAGES, field, made, row, rows
from report_material import material, results
from xentcheck import cli
from xentcheck.field import combine
from xentcheck.field import rows as rows_of
from xentcheck.publish import check, page_choose, report
from xentcheck.publish.findings import findings
from xentcheck.publish.page import WIDEST
from xentcheck.publish.page_implementation import pages as implementation_pages
from xentcheck.results import record
from xentcheck.spec import common_claims


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_as_published(page):
    assert made()[page].decode() == (GOLDEN / page).read_text()


def test_no_page_is_too_large_or_too_wide():
    many = {f"lib_{number}": rows()["lib_two"] for number in range(40)}
    many = {
        name: replace(one, verdicts=tuple(replace(v, implementation=name) for v in one.verdicts))
        for name, one in many.items()
    }
    for name, content in made(many).items():
        assert len(content) < 100_000, name
        for line in content.decode().splitlines():
            if name.endswith(".md") and line.startswith("| "):
                assert len(re.findall(r"(?<!\\)\|", line)) - 1 <= WIDEST, (name, line)


def test_every_link_leads_somewhere():
    pages = made()
    for name, content in pages.items():
        if name in PAGES:
            for target in re.findall(r"\]\((?!http)([^)#]+\.md)", content.decode()):
                folder = "implementations/" if "/" in name else ""
                path = (folder + target).replace("implementations/../", "")
                assert path in pages or path.startswith("../docs/"), (name, target)


def test_the_gravest_comes_first_and_the_adapters_and_torchs_own_last():
    found = findings(field(), "lib_one")
    assert [(str(one.example.case), one.is_librarys) for one in found] == [
        ("plain/mean", True),
        ("ignored/nan", True),
        ("plain/mean", True),
        ("all-ignored/mean", False),
    ]
    assert found[0].units == 1e6
    assert found[1].text == "a mask that is too small"
    (one,) = findings(field(), "lib_two")
    assert one.is_torchs


def test_what_an_adapter_answers_is_no_merit_of_its_library():
    right = rows()["lib_two"].verdicts[0]
    masked = row(replace(right, implementation="lib_masked", by_adapter=True), adapter_does=["mask"])
    masked = replace(masked, claims={**masked.claims, "capabilities": ["backward", "float32"]})
    shown = field({**rows(), "lib_masked": masked})
    assert page_choose.padding(shown, "lib_masked") == (0, 0)
    assert page_choose.padding(shown, "lib_two") == (1, 1)
    text = page_choose.page(material(), shown)
    (sentence,) = [line for line in text.splitlines() if line.startswith("These ignore nothing by themselves")]
    assert "[`lib_masked`](implementations/lib_masked.md)" in sentence
    assert "lib_two" not in sentence


def test_a_name_cannot_lead_out_of_the_folder():
    shown = field({"../../etc/x": row(*(replace(v, implementation="../../etc/x") for v in rows()["lib_two"].verdicts))})
    assert list(implementation_pages(shown, material())) == ["implementations/etc-x.md"]


def test_rows_come_back_from_the_published_record_as_they_were(tmp_path):
    record.publish(combine(rows()), tmp_path / report.FIELD)
    found = rows_of(record.load(tmp_path / report.FIELD))
    assert {name: one.claims for name, one in found.items()} == {name: one.claims for name, one in rows().items()}
    assert {v.key for one in found.values() for v in one.verdicts} == {
        v.key for one in rows().values() for v in one.verdicts
    }


def test_the_command_makes_the_pages_of_both_records_and_checks_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common_claims, "load", lambda: ())
    folder = tmp_path / "reports"
    record.publish(results(), folder / report.RECORD)
    assert cli.main(["report", "--to", str(folder)]) == 0
    assert not (folder / "field.md").exists()
    record.publish(combine(rows()), folder / report.FIELD)
    assert cli.main(["report", "--to", str(folder), "--check"]) == 1
    assert "field.md: is missing" in capsys.readouterr().err
    assert cli.main(["report", "--to", str(folder)]) == 0
    assert "(field.md)" in (folder / "README.md").read_text()
    assert cli.main(["report", "--to", str(folder), "--check"]) == 0
    page = folder / "implementations" / "lib_one.md"
    page.write_text(page.read_text().replace("4 are wrong", "3 are wrong"))
    shutil.copy(page, folder / "implementations" / "lib_earlier.md")
    assert cli.main(["report", "--to", str(folder), "--check"]) == 1
    said = capsys.readouterr().err
    assert "lib_one.md:5: is not what the code produces" in said
    assert "lib_earlier.md: no page links it" in said
    assert check.pages({}, tmp_path) == []
