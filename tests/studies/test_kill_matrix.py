"""The published kill matrix belongs to the cases and mutants as they are, and the tool that makes it notices what it should."""

import json

import pytest

import kill_matrix
from kill_matrix import FOLDER, PAGE, Asking, Store, found_in, matrix_digest
from kill_page import DIGEST, Matrix, page
from xentcheck.implementation import find
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


def wrong_in_the_fifth_call(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    \"\"\"Right at first.\"\"\"
    calls[0] += 1
    return right(input, target) * (1 + (calls[0] == 5))
"""


@pytest.fixture
def mutants(tmp_path):
    (tmp_path / "_correct.py").write_text((FOLDER / "_correct.py").read_text())
    (tmp_path / "theme.py").write_text('"""A theme."""\n' + KILLED)
    return found_in(tmp_path)


def test_the_published_matrix_is_that_of_the_current_cases_and_mutants():
    if not PAGE.exists():
        pytest.skip("not published yet: make mutants")
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
        assert kills["wrong_in_the_fifth_call"] not in (
            "loss",
            "gradient",
            "purity",
        )  # two calls find out what it takes, two are observed, and the fifth is a relation's


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


def test_the_page_counts_and_says_what_is_wrong(cases, mutants):
    entries = cases(
        "id: a, logits: {shape: [3, 4]}, kills: [wrong]", "id: b, logits: {shape: [3, 5]}, kills: [right, nobody]"
    )
    kills = {entries[0].id: {"wrong": "loss"}, entries[1].id: {"wrong": "shift"}}
    matrix = Matrix(entries, mutants, kills, "abc123")
    assert matrix.problems() == [
        "right: survives every case",
        "wrong_in_the_fifth_call: survives every case",
        "wrong_in_the_fifth_call: no case names it in its kills",
        "right: survives small/b, which names it in its kills",
        "nobody: named in the kills of small/b, but there is no such mutant",
    ]
    text = page(matrix)
    assert DIGEST.search(text)[1] == "abc123"
    assert "[owner/name#12](https://github.com/owner/name/issues/12)" in text
    assert "A theme." in text
    assert "loss 1, shift 1" in text


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
