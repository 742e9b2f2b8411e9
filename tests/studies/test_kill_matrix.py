"""The published kill matrix belongs to the cases and mutants as they are, and the tool that makes it notices what it should."""

import itertools
import json

import pytest

import kill_matrix
from kill_matrix import FOLDER, PAGE, Asking, Store, found_in, matrix_digest
from kill_page import DIGEST, Matrix, page
from xentcheck.implementation import find
from xentcheck.publish.page import WIDEST
from xentcheck.run.examiner import Examiner
from xentcheck.spec.loader import load_all

KILLED = """
import _correct

calls = [0]


def right(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    \"\"\"Nothing is wrong.\"\"\"
    return _correct.loss(input, target, weight, ignore_index, reduction, label_smoothing)


def wrong(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    \"\"\"Twice the loss.

    Link: https://github.com/owner/name/issues/12
    \"\"\"
    return 2 * right(input, target)


def wrong_in_the_third_call(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    \"\"\"Right at first.\"\"\"
    calls[0] += input.shape == (3, 4)  # those that find out at load how it is called have other shapes
    return right(input, target) * (1 + (calls[0] == 3))
"""


@pytest.fixture
def mutants(tmp_path):
    (tmp_path / "_correct.py").write_text((FOLDER / "_correct.py").read_text())
    (tmp_path / "theme.py").write_text('"""A theme."""\n' + KILLED)
    return found_in(tmp_path)


def test_the_published_matrix_is_that_of_the_current_cases_and_mutants():
    published = DIGEST.search(PAGE.read_text())
    assert published, f"{PAGE} holds no digest"
    assert published[1] == matrix_digest(load_all()), "the cases or mutants have changed since: make mutants"


def test_the_digest_follows_the_cases_and_the_mutants(cases, mutants, tmp_path):
    one, two = cases("id: a, logits: {shape: [3, 4]}"), cases("id: a, logits: {shape: [3, 4]}, kills: [wrong]")
    before = matrix_digest(one, tmp_path)
    assert before != matrix_digest(two, tmp_path)
    (tmp_path / "theme.py").write_text(KILLED + "\n")
    assert before != matrix_digest(one, tmp_path)


def test_a_wrong_loss_is_killed_and_state_does_not_outlive_a_case(cases, mutants):
    asking = Asking(mutants.values())
    for case in cases("id: a, logits: {shape: [3, 4]}", "id: b, logits: {shape: [3, 4]}"):
        kills = asking.kills(case)
        assert kills["wrong"] == "loss"
        assert "right" not in kills
        assert kills["wrong_in_the_third_call"] not in (
            "loss",
            "gradient",
            "purity",
        )  # two calls are observed, and the third is a relation's


@pytest.mark.parametrize(
    ("case_id", "files"),
    [
        ("ignored-positions/seed-001-segmentation-mask", ("denominators", "ignoring")),
        ("linear-gradients/bias[float64-none]", ("linear",)),
    ],
)
def test_looking_up_verdicts_gives_those_of_the_suite(case_id, files):
    case = next(c for c in load_all() if c.id == case_id)
    mutants = [m for file in files for m in find(f"{FOLDER / file}.py:*")]
    examiner, expected = Examiner(), {}
    for mutant in mutants:
        verdicts = (examiner.examine(case, aspect, mutant) for aspect in examiner.aspects(case, mutant))
        expected[mutant.name] = next((v.aspect for v in verdicts if not v.status.is_good), "")
    assert any(expected.values())
    assert Asking(m.source for m in mutants).kills(case) == {n: a for n, a in expected.items() if a}


def test_what_was_found_out_is_found_again_and_a_torn_line_is_not(cases, tmp_path):
    one, two, three = cases(*(f"id: {i}, logits: {{shape: [3, {n}]}}" for i, n in (("a", 4), ("b", 5), ("c", 6))))
    store = Store(tmp_path / "folder" / "cases.jsonl", ["wrong"])
    store.append(one, {"wrong": "loss"})
    path = tmp_path / "folder" / "cases.jsonl"
    path.write_bytes(path.read_bytes() + b'{"key": "12')
    store.append(two, {})
    assert store.load([one, two, three]) == {one.id: {"wrong": "loss"}, two.id: {}}
    assert Store(path, ["wrong", "another"]).load([one, two, three]) == {}
    assert [json.loads(line)["case"] for line in path.read_text().splitlines() if line.endswith("}")] == [
        one.id,
        two.id,
    ]


@pytest.fixture
def small_matrix(cases, mutants):
    """Three cases, the largest first, and three mutants, of which two are killed."""
    entries = cases(
        "id: a, logits: {shape: [30, 4]}, kills: [wrong]",
        "id: b, logits: {shape: [3, 5]}, kills: [right, nobody]",
        "id: c, logits: {values: [[1, 2, 3]]}, kills: [wrong_in_the_third_call]",
    )
    kills = {"small/a": {"wrong": "loss", "wrong_in_the_third_call": "shift"}, "small/b": {"wrong": "shift"}}
    return Matrix(entries, mutants, kills, "abc123")


def test_a_matrix_knows_what_is_wrong(small_matrix):
    assert small_matrix.problems() == [
        "right: survives every case",
        "right: survives small/b, which names it in its kills",
        "nobody: named in the kills of small/b, but there is no such mutant",
        "wrong_in_the_third_call: survives small/c, which names it in its kills",
        "small/c: kills no mutant",
    ]


def test_the_page_says_what_kills_a_mutant_and_what_a_case_kills(small_matrix):
    lines = page(small_matrix).splitlines()
    assert "### theme" in lines
    assert "A theme." in lines
    link = "[owner/name#12](https://github.com/owner/name/issues/12)"
    assert f"| `wrong` | Twice the loss. {link} | 2 | `small/b` | loss 1, shift 1 |" in lines
    assert "| `wrong_in_the_third_call` | Right at first. | 1 | `small/a` | shift 1 |" in lines
    assert "| `right` | Nothing is wrong. | 0 | none | nothing |" in lines
    by_relations = lines[lines.index("## Bugs that only relations catch") :]
    assert "| `wrong_in_the_third_call` | shift 1 | `small/a` |" in by_relations
    for row in ("`a` | 1 | 2 | `wrong_in_the_third_call`", "`b` | 1 | 1 | ", "`c` | 1 | 0 | "):
        assert f"| {row} |" in lines
    assert "| entries that kill nothing | 1 |" in lines
    assert "| mutants that only one entry of the case files kills | 1 |" in lines
    assert DIGEST.fullmatch(lines[-1])[1] == "abc123"


def headers(text):
    """The first line of each table, and each heading but those of themes."""
    lines = text.splitlines()
    found = {line for line, following in itertools.pairwise(lines) if following.startswith("| ---")}
    return found | {line for line in lines if line.startswith(("# ", "## "))}


def test_the_published_page_is_laid_out_as_the_code_does_it_and_fits_a_reader(small_matrix):
    published = PAGE.read_text()
    assert headers(published) == headers(page(small_matrix))
    assert len(published.encode()) < 100_000
    assert max(line.count("|") for line in headers(published)) - 1 <= WIDEST


def test_an_entry_that_kills_nothing_is_a_problem(cases, mutants):
    (case,) = cases("id: a, logits: {shape: [3, 4]}")
    assert "small/a: kills no mutant" in Matrix([case], mutants, {case.id: {}}, "").problems()


def test_a_selection_leaves_the_page_alone(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(kill_matrix, "STORE", tmp_path / "cases.jsonl")
    known = {}
    monkeypatch.setattr(kill_matrix, "run", lambda cases, *_: {case.id: known for case in cases})
    arguments = ["--cases", "plain-values", "--to", str(tmp_path / "page.md")]
    assert kill_matrix.main(arguments) == 0
    assert not (tmp_path / "page.md").exists()
    assert "mutants are killed by" in capsys.readouterr().out
