"""Records and implementations of others: no code that they name is run, and no text of theirs reaches a terminal or a page as anything but
text."""

import re
from dataclasses import replace

import pytest

from report_material import LEAK, pages, results
from xentcheck.publish import command
from xentcheck.results.markdown import cell, table, visible
from xentcheck.run.verdict import Fault
from xentcheck.spec import loader

CASE = "ignored-positions/seed-001-unlabelled"
# Colours and a title for a terminal, an end of text and of line, cells, code, HTML, and a link that runs something.
HOSTILE = "a\x1b[31mb\x00c\x9bd\u202ee\rf\ng | h ` i <script>alert(1)</script> [j](javascript:alert(2)) k"

SPY = """
from pathlib import Path
Path({!r}).write_text("it ran")


def loss(input, target):
    return input.sum()
"""


@pytest.mark.parametrize(
    "form", ["{folder}/spy.py:loss", "{folder}/spy.py:*", "spy:loss", "native,{folder}/spy.py:loss"]
)
def test_no_code_that_a_record_names_is_loaded(tmp_path, monkeypatch, form):
    (tmp_path / "spy.py").write_text(SPY.format(str(tmp_path / "ran")))
    monkeypatch.syspath_prepend(tmp_path)
    name = form.format(folder=tmp_path)
    claims = {**results().run["implementations"]["known"], "deviations": [{**LEAK, "cases": [CASE]}]}
    wrong = replace(results().verdicts[1], implementation=name, case=CASE, clause="ignored-positions")
    record = replace(results(), run={**results().run, "implementations": {name: claims}}, verdicts=(wrong,))
    script = command._script(loader.load_all(), record)
    assert script(name, CASE) == ""
    pages(tmp_path / "pages", record)
    assert not (tmp_path / "ran").exists()


def test_a_script_is_made_for_what_ships_with_the_suite():
    claims = results().run["implementations"]["known"]
    record = replace(results(), run={**results().run, "implementations": {"native": claims}})
    assert "loss_function" in command._script(loader.load_all(), record)("native", CASE)


def assert_harmless(text):
    """As a page: no control characters, no HTML outside code, no link but to http(s) or into the pages."""
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    outside = re.sub(r"(?<!\\)(`+)(?!`).+?(?<!`)\1(?!`)", "", text)
    assert "<script" not in outside
    assert not re.search(r"\]\(\W*javascript", outside)


@pytest.mark.parametrize("page", ["README.md", "conformance.md", "deviations.md", "accuracy.md", "conventions.md"])
def test_a_page_of_a_hostile_record_is_only_text(tmp_path, page):
    name, claims = f"name {HOSTILE}", results().run["implementations"]["known"]
    deviation = {"cases": ["ignored/nan"], "observed": HOSTILE, "reason": HOSTILE, "link": "javascript:alert(3)"}
    hostile = {**claims, "version": HOSTILE, "description": HOSTILE, "deviations": [{**LEAK, **deviation}]}
    twin = {**hostile, "deviations": []}
    fault = Fault("raised", expected="a loss", found=f"RuntimeError in the call: {HOSTILE}")
    loss, gradient, _, half, *_ = (replace(v, implementation=name) for v in results().verdicts)
    found = (replace(loss, status="error", fault=fault), gradient, replace(half, reason=HOSTILE))
    same = tuple(replace(v, implementation=f"twin {HOSTILE}") for v in (loss, loss))
    claimed = {name: hostile, f"twin {HOSTILE}": twin, f"other {HOSTILE}": twin}
    record = replace(results(), run={**results().run, "implementations": claimed}, verdicts=(*found, *same))
    text = (pages(tmp_path, record) / page).read_text()
    assert r"\x1b[31mb\x00c\x9bd\u202ee" in text or page == "conventions.md"
    assert_harmless(text)
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("\x1b]0;title\x07\x00\r\x7f\x9b", r"\x1b]0;title\x07\x00\r\x7f\x9b"),
        ("a\nb", "a b"),
        ("a | b", r"a \| b"),
        ("`a | <b>`", r"`a \| <b>`"),
        ("<b>", "&lt;b>"),
        ("<!-- x", "&lt;!-- x"),
        ("torch <3", "torch <3"),
        ("a ` <b>", "a &#96; &lt;b>"),
        ("``a ` <b>`` <b>", "``a ` <b>`` &lt;b>"),
        (r"\`<b>`", r"\&#96;&lt;b>&#96;"),  # the first backtick opens no code
        ("[a](https://b.example)", "[a](https://b.example)"),
        ("[a](#b), [a](scripts/b.py), [a](../cases/c.yaml)", "[a](#b), [a](scripts/b.py), [a](../cases/c.yaml)"),
        ("[a](javascript:b)", "[a&#93;(javascript:b)"),
        ("[a]( JavaScript:b)", "[a&#93;( JavaScript:b)"),
        ("[a](&#106;avascript:b)", "[a&#93;(&#106;avascript:b)"),
        ("[a](data:text/html,b)", "[a&#93;(data:text/html,b)"),
        ("[a](<javascript:b>)", "[a&#93;(&lt;javascript:b>)"),
        ("\u202eabc\u2028", r"\u202eabc\u2028"),
        ("\ud800", r"\ud800"),
    ],
)
def test_a_cell(text, shown):
    assert cell(text) == shown


def test_a_column_is_cleaned_as_its_cells_are():
    assert table([{"a | <b>": 1}]).splitlines()[0] == r"| a \| &lt;b> |"


def test_a_long_text_is_cut():
    text = visible("x" * 10_000_000)
    assert len(text) < 5000
    assert text.endswith("x ... and 9996000 more characters")
