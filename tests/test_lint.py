"""Each lint fires on a case file that is valid and still broken, and on none of those that ship."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from xentcheck.lint import lint
from xentcheck.spec.loader import load, load_all

MUTANTS = frozenset(
    node.name
    for path in (Path(__file__).parent / "mutants").glob("[!_]*.py")
    for node in ast.parse(path.read_text()).body
    if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
)
HEADER = """clause: {name}
title: {title}
requirement: {requirement}
sources: [{source}]
cases:
"""
GOOD = {
    "name": "small",
    "title": "Small cases",
    "requirement": "The answer is the definition's.",
    "source": "https://example.org",
}
TWO_CLASSES = "logits: {values: [[0, 0]]}, target: {values: [1]}"


@pytest.fixture(scope="module")
def shipped():
    return load_all()


@pytest.mark.slow
def test_shipped_cases_are_clean(shipped):
    assert lint(shipped, MUTANTS) == []


def test_good_case_is_clean(cases):
    good = cases("id: one, logits: {shape: [5, 3]}, ignore_index: -1, target: {ignore: {rows: [0, 3]}}")
    assert lint(good, MUTANTS) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "other"}, "expected a file of the clause's name, other.yaml; found small.yaml"),
        ({"title": "long " * 15}, "title: expected at most 70 characters; found 74"),
        ({"title": "The loss should be right"}, "title: expected a statement of how things are; found 'should'"),
        ({"title": "Test that the loss is right"}, "found 'Test that'"),
        ({"requirement": "It is " + "very " * 60 + "right."}, "requirement: expected at most 240 characters"),
        ({"requirement": "The loss is right. So is the gradient."}, "requirement: expected one sentence"),
        ({"requirement": "The loss is right"}, "requirement: expected one sentence"),
        ({"source": "a book"}, "sources: expected at least one URL"),
    ],
)
def test_clause(write, change, message):
    entries = ("id: one, logits: {shape: [5, 3]}", "id: two, logits: {shape: [5, 3]}")
    path = write(*entries, header=HEADER.format(**GOOD | change))
    (found,) = lint(load(path))  # once for the file, not once for each case
    assert str(found).startswith(f"{path}:1: ")
    assert message in str(found)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("target: {shape: [4]}", "target: expected the shape (5,), or expect.error; found (4,)"),
        ("weight: [1, 2]", "weight: expected 3 class weights, or expect.error; found 2"),
        ("target: {ignore: {rows: [7]}}", "target.ignore.rows: expected indices from -5 to 4; found 7"),
        ("ignore_index: -1", "expected an ignored position; found none"),
        ("target: {ignore: {fraction: 0.01}}", "expected an ignored position; found none"),
        ("target: {ignore: {prefix: 9}}", "expected a position that counts; found none"),
        ("ignore_index: [-1, -2, -3], target: {ignore: {rows: [0, 4]}}", "each ignore value to occur; missing [-3]"),
        ("target: {classes: [0, 1]}", "expected some target in the last class, 2"),
        ("ignore_index: 2, target: {classes: [0], ignore: first}", "expected some target in the last class, 1"),
        ("upstream: 0", "expect.gradient: expected an answer that zero does not satisfy"),
        ("logits: {shape: [5, 1]}", "expect.loss: expected an answer that zero does not satisfy"),
        ("logits: {shape: [5, 3], set: [{classes: target, value: 60}]}", "expect.loss: expected an answer that zero"),
        ("dtype: float16, upstream: 0.00001", "expect.gradient: expected an answer that zero does not satisfy"),
        ("expect: {loss: finite}", "expect.loss: expected an answer that zero does not satisfy"),
        ("expect: {loss: empty-mean}", "expect.loss: empty-mean is the mean over no position; found 5 that count"),
        ("expect: {loss: zero}", "by the definition; found 0.0"),
        ("expect: {loss: nan}", "by the definition; found nan"),
        (f"{TWO_CLASSES}, expect: {{loss: 0.6931}}", "by the definition; found 0.6931"),
        (f"{TWO_CLASSES}, expect: {{gradient: [[0.5, 0.5]]}}", "by the definition at [0, 1]; found"),
        (f"{TWO_CLASSES}, reduction: none, expect: {{loss: [1, 2]}}", "expected the shape (1,); found (2,)"),
        ("kills: [mean-divides-by-everything]", "no wrong loss 'mean-divides-by-everything'; did you mean"),
    ],
)
def test_case(write, body, message):
    shape = "" if "logits" in body else "logits: {shape: [5, 3]}, "
    path = write(f"id: one, {shape}{body}")
    found = [str(mistake) for mistake in lint(load(path), MUTANTS)]
    assert any(message in text for text in found), found
    assert all(text.startswith(f"{path}:6: case small/one: ") for text in found)


@pytest.mark.parametrize(
    "body",
    [
        "ignore_index: -1, target: {ignore: none}",
        "ignore_index: -1, target: {ignore: all}",
        "ignore_index: [-1, -2], target: {ignore: {rows: [0], value: -1}}",
        "ignore_index: -1, target: {values: [0, 1, 2, 0, 1]}",
        "upstream: 0, expect: {gradient: zero}",
        "logits: {shape: [0, 3]}, expect: {loss: empty-mean}",
        "logits: {shape: [5, 1]}, expect: {loss: zero, gradient: zero}",
        "logits: {shape: [5, 3], set: [{classes: [2], value: -inf}]}, target: {classes: [0, 1]}",
        "weight: [0, 0, 0], expect: {loss: unspecified, gradient: unspecified}",
        "target: {values: [0, 1, 2, 0, 3]}, expect: {error: {}}",
        "kills: [mean-divides-by-all-positions]",
    ],
)
def test_what_is_meant_is_taken_as_it_is_said(case, body):
    shape = "" if "logits" in body else "logits: {shape: [5, 3]}, "
    assert lint([case(shape + body)], MUTANTS) == []


def test_a_matrix_speaks_once(cases):
    found = lint(cases("id: one, logits: {shape: [5, 3]}, ignore_index: -1, matrix: {reduction: [mean, sum, none]}"))
    assert len(found) == 1
    assert "case small/one[mean]: target: expected an ignored position" in str(found[0])


def test_kills_are_not_looked_up_without_mutants(case):
    assert lint([case("logits: {shape: [5, 3]}, kills: [no-such-thing]")]) == []


def test_without_answers_only_the_text_is_looked_at(write):
    path = write("id: one, logits: {shape: [5, 3]}, upstream: 0", header=HEADER.format(**GOOD | {"source": "a book"}))
    assert [mistake.key for mistake in lint(load(path), answers=False)] == ["sources"]
    assert [mistake.key for mistake in lint(load(path))] == ["sources", "expect.gradient"]


@pytest.mark.slow
def test_the_command_reads_without_torch_unless_it_is_asked_for_answers(write):
    path = write("id: one, logits: {shape: [5, 3]}, upstream: 0")
    code = (
        "import sys; from xentcheck import cli; status = cli.main(['lint', *sys.argv[1:]]);"
        "print(status, sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    outputs = [
        subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        for arguments in ([], [path], ["--answers", path])
    ]
    assert outputs[0].stdout == "0 []\n"
    assert outputs[1].stdout == "0 []\n"
    assert "cases: 1, problems: 0; --answers" in outputs[1].stderr
    assert outputs[2].stdout.splitlines()[-1] == "1 ['numpy', 'torch']"
    assert "expect.gradient: expected an answer that zero does not satisfy" in outputs[2].stdout
