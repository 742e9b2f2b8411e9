"""Case files that are wrong, damaged or made to do harm: each gets one clear message, in bounded time and memory."""

from __future__ import annotations

import os
import signal
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from xentcheck.spec.batch import build
from xentcheck.spec.case import Case
from xentcheck.spec.loader import MAX_CASES_PER_FILE, digest, load
from xentcheck.spec.mistakes import MAX_MISTAKES, CaseFileError, UsageError
from xentcheck.spec.settings import folder, read_settings

TOP = "clause: small\ntitle: Small\nrequirement: It holds.\nsources: [here]\ncases:\n"
ONE = "  - {id: one, logits: {shape: [3, 4]}}\n"
DIGITS = "9" * 400
BYTES = 200_000_000
SECONDS = 60  # a guard against what never ends; nothing here takes one


def entry(body: str) -> str:
    return f"{TOP}  - {{id: one, logits: {{shape: [3, 4]}}, {body}}}\n"


def logits(body: str) -> str:
    return f"{TOP}  - {{id: one, logits: {{{body}}}}}\n"


def defaults(value: str) -> str:
    return TOP.replace("cases:", f"defaults: {value}\ncases:") + ONE


def top(key: str, value: str) -> str:
    lines = [f"{key}: {value}" if line.startswith(f"{key}:") else line for line in TOP.splitlines()]
    return "\n".join(lines) + "\n" + ONE


def laughs(levels: int) -> str:
    """A few lines of aliases that stand for 9 ** levels values."""
    lines = ["v0: &v0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"v{i}: &v{i} [{', '.join([f'*v{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


@pytest.fixture(autouse=True)
def bounded():
    """Ends a test that hangs, and fails one that takes too much memory."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"no answer after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    assert peak < BYTES


@pytest.fixture
def mistake(tmp_path):
    """``mistake(text)``: the message about a file with that text, without the folder."""

    def message_of(text: str | bytes) -> str:
        path = tmp_path / "small.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(CaseFileError) as error:
            load(path)
        return str(error.value).replace(f"{tmp_path}{os.sep}", "")

    return message_of


TEXT = "expected one line of 1 to 1000 printable characters"
INTEGER = "expected an integer of 64 bits"
SIZE = "numbers in a tensor; found"
LABELS = "expected labels of 1 to 100 letters, digits and _ . + -, in a mapping from labels to values"
# The text of the file, the line of the mistake, and how the message goes on after it.
ROWS: dict[str, tuple[str | bytes, int | None, str]] = {
    # numbers
    "smoothing of 400 digits": (entry(f"label_smoothing: {DIGITS}"), 6, "case one: label_smoothing: expected a number that float64 can hold; found an integer beyond its range"),
    "a scale of 400 digits": (logits(f"shape: [3, 4], scale: {DIGITS}"), 6, "case one: logits.scale: expected a number that float64 can hold"),
    "a weight of 400 digits": (entry(f"weight: [1, {DIGITS}, 1, 1]"), 6, "case one: weight.1: expected a number that float64 can hold"),
    "an upstream of 400 digits": (entry(f"upstream: {DIGITS}"), 6, "case one: upstream: expected a number that float64 can hold"),
    "a normalizer of 400 digits": (entry(f"normalizer: {{tensor: {DIGITS}}}"), 6, f"case one: normalizer.tensor: {INTEGER} or a number that float64 can hold"),
    "a memory limit of 400 digits": (entry(f"memory_limit: {DIGITS} GiB"), 6, "case one: memory_limit: expected a size such as 6 GiB; found '999"),
    "a memory limit of 400 digits of bytes": (entry(f"memory_limit: {DIGITS}"), 6, "case one: memory_limit: expected a size such as 6 GiB; found 999"),
    "5,000 digits": (entry(f"ignore_index: {'9' * 5000}"), 6, "expected at most 1,000 digits; found 5,000"),
    "a float beyond float64": (entry("label_smoothing: 1e999"), 6, "expected a number that float64 can hold, or inf; found 1e999"),
    "an integer that float64 rounds": (entry("upstream: 9007199254740993"), 6, "case one: upstream: expected a number that float64 holds exactly, such as 1e30; found 9007199254740993"),
    "an ignore value of 65 bits": (entry("ignore_index: 9223372036854775808"), 6, f"case one: ignore_index: {INTEGER} or a list; found 9223372036854775808"),
    "infinity as an ignore value": (entry("ignore_index: .inf"), 6, f"case one: ignore_index: {INTEGER} or a list; found '.inf'"),
    "infinity as YAML 1.1 writes it": (entry("label_smoothing: .inf"), 6, "case one: label_smoothing: expected a number, inf, -inf or nan; found '.inf'"),
    "NaN in a shape": (logits("shape: [nan, 4]"), 6, f"case one: logits.shape.0: {INTEGER}; found 'nan'"),
    "a shape that is true": (logits("shape: true"), 6, "case one: logits.shape: expected a list; found True"),
    "true in a shape": (logits("shape: [true, 4]"), 6, f"case one: logits.shape.0: {INTEGER}; found True"),
    "a float in a shape": (logits("shape: [3, 4.0]"), 6, f"case one: logits.shape.1: {INTEGER}; found 4.0"),
    "a string in a shape": (logits("shape: ['3', 4]"), 6, f"case one: logits.shape.0: {INTEGER}; found '3'"),
    "an underscore in a shape": (logits("shape: [1_000, 4]"), 6, f"case one: logits.shape.0: {INTEGER}; found '1_000'"),
    "true as an ignore value": (entry("ignore_index: true"), 6, f"case one: ignore_index: {INTEGER} or a list; found True"),
    "a string among ignore values": (entry("ignore_index: [1, '2']"), 6, f"case one: ignore_index.1: {INTEGER}; found '2'"),
    "a float among rows": (entry("target: {ignore: {rows: [1.0]}}"), 6, f"case one: target.ignore.rows.0: {INTEGER}; found 1.0"),
    "a prefix that is true": (entry("target: {ignore: {prefix: true}}"), 6, f"case one: target.ignore.prefix: {INTEGER}; found True"),
    "a fraction that is a string": (entry("target: {ignore: {fraction: '0.5'}}"), 6, "case one: target.ignore.fraction: expected a number, inf, -inf or nan; found '0.5'"),
    "a fraction that is true": (entry("target: {ignore: {fraction: true}}"), 6, "case one: target.ignore.fraction: expected a number, inf, -inf or nan; found True"),
    "a date": (entry("ignore_index: 2026-01-01"), 6, f"case one: ignore_index: {INTEGER} or a list; found '2026-01-01'"),
    "a sexagesimal integer": (entry("ignore_index: 1:30"), 6, f"case one: ignore_index: {INTEGER} or a list; found '1:30'"),
    "an octal integer": (entry("ignore_index: 0o17"), 6, f"case one: ignore_index: {INTEGER} or a list; found '0o17'"),
    "1 for true": (entry("reduction: none, upstream: {per_position: 1}"), 6, "case one: upstream.per_position: expected true or false; found 1"),
    "yes for true": (entry("expect: {refused_unless_claimed: yes}"), 6, "case one: expect.refused_unless_claimed: expected true or false; found 'yes'"),
    "a normalizer that nothing survives": (entry("normalizer: 1e20"), 6, "case one: normalizer: expected a number up to 2 ** 53, or expect.error; found 1e+20"),
    "a normalizer that is NaN": (entry("normalizer: {tensor: nan}"), 6, "case one: normalizer: expected a number up to 2 ** 53, or expect.error; found nan"),
    # sizes
    "a shape of 4e12": (logits("shape: [1000000000000, 4]"), 6, f"case one: logits.shape: expected at most 268,435,456 {SIZE} 4,000,000,000,000"),
    "1e9 tiled": (logits("shape: [1000000000], fill: tiled"), 6, f"case one: logits.shape: expected at most 268,435,456 {SIZE} 1,000,000,000"),
    "1e10 tiled in a speed case": (top("sources", "[here]\nprofile: quick").replace(ONE, "  - {id: one, logits: {shape: [100000, 100000], fill: tiled}}\n"), 7, f"case one: logits.shape: expected at most 2,147,483,648 {SIZE} 10,000,000,000"),
    "a target of 1e12": (entry("target: {shape: [1000000000000]}, expect: {error: {}}"), 6, f"case one: target.shape: expected at most 268,435,456 {SIZE} 1,000,000,000,000"),
    "1e12 features": (entry("linear: {features: 1000000000000}"), 6, f"case one: linear.features: expected at most 268,435,456 {SIZE} 4,000,000,000,000"),
    "70 dimensions": (logits(f"shape: {[1] * 70}"), 6, "case one: logits.shape: expected a list of at most 8; found a list"),
    "nine levels of numbers": (logits(f"values: {'[' * 9}1{']' * 9}"), 6, "case one: logits.values: expected at most 8 levels of lists; found more"),
    "101 patterns": (logits(f"shape: [3, 4], set: [{'{value: 1}, ' * 101}]"), 6, "case one: logits.set: expected a list of at most 100; found a list"),
    "a matrix of 1e9 points": (entry("matrix: {" + ", ".join(f"{key}: {list(range(1000))}" for key in ("ignore_index", "logits.scale", "logits.shift")) + "}"), 6, "case one: matrix: expected at most 2000 cases and 200,000 values in a file; found more"),
    "a matrix of long lists": (entry("matrix: {weight: {" + ", ".join(f"w{i}: {[1] * 900}" for i in range(40)) + f"}}, logits.shift: {list(range(50))}}}"), 6, "case one: matrix: expected at most 2000 cases and 200,000 values in a file; found more"),
    "one entry too many": (TOP + "".join(f"  - {{id: c{i}, logits: {{shape: [3]}}}}\n" for i in range(MAX_CASES_PER_FILE + 1)), 6 + MAX_CASES_PER_FILE, f"case c{MAX_CASES_PER_FILE}: matrix: expected at most 2000 cases"),
    "80,000 keys": (TOP + "  - {id: one, " + ", ".join(f"k{i}: 1" for i in range(80_000)) + "}\n", 6, "expected at most 50,000 values; found more; large data belongs in a safetensors file"),
    "60,000 numbers": (entry(f"weight: [{'1,' * 60_000}1]"), 6, "expected at most 50,000 values; found more"),
    "a bomb of aliases": (laughs(9), 5, "expected at most 50,000 values; found more"),
    "a long word of digits": (entry(f"label_smoothing: {'1' * 500_000}x"), 6, "case one: label_smoothing: expected a number, inf, -inf or nan; found '1111"),
    # literal values
    "a target of half a class": (entry("target: {values: [0, 1, 0.5]}"), 6, "case one: target.values: expected integers that int64 can hold; found 0.5"),
    "a target of NaN": (entry("target: {values: [0, 1, nan]}"), 6, "case one: target.values: expected integers that int64 can hold; found nan"),
    "a target that wraps": (entry("target: {dtype: uint8, values: [0, 1, 256]}"), 6, "case one: target.values: expected integers that uint8 can hold; found 256"),
    "a target that is not a truth value": (entry("target: {dtype: bool, values: [0, 1, 2]}"), 6, "case one: target.values: expected integers that bool can hold; found 2"),
    "a target of 65 bits": (entry("target: {values: [0, 1, 9223372036854775808]}"), 6, "case one: target.values: expected integers that int64 can hold"),
    "values beside a file": (entry("target: {values: [0, 1, 2], file: a}"), 6, "case one: target: expected either values or file; found both"),
    "no classes": (entry("target: {classes: []}"), 6, "case one: target.classes: expected a list of 1 or more; found an empty list"),
    "no rows": (logits("shape: [3, 4], set: [{rows: [], value: 1}]"), 6, "case one: logits.set.0.rows: expected a list of 1 or more"),
    "ragged logits": (logits("values: [[1, 2], [3]]"), 6, "case one: logits.values.1: expected parts of the same shape; found (2,) and (1,)"),
    "a number beside a list": (f"{TOP}  - id: one\n    logits:\n      values:\n        - [1, 2]\n        - 3\n", 10, "case one: logits.values.1: expected parts of the same shape; found (2,) and ()"),
    "a bias of the wrong length": (entry("linear: {features: 2, bias: [1, 2]}"), 6, "case one: linear.bias: expected the shape (4,); found (2,)"),
    "hidden states of the wrong shape": (entry("linear: {features: 2, hidden: [[1, 2]]}"), 6, "case one: linear.hidden: expected the shape (3, 2); found (1, 2)"),
    "a linear matrix that is a number": (entry("linear: {features: 2, matrix: 0}"), 6, "case one: linear.matrix: expected the shape (4, 2); found ()"),
    # what does not go together
    "an error beside a loss": (entry("expect: {error: {}, loss: zero}"), 6, "case one: expect: expected error alone, since a call that raises gives no answer; found error, loss"),
    "an error beside a convention": (entry("expect: {error: {}, convention: int32_target}"), 6, "case one: expect: expected error alone, since a call that raises gives no answer; found convention, error"),
    "no regular expression": (entry("expect: {error: {match: '('}}"), 6, "case one: expect.error.match: expected a text, or texts with | between them"),
    "a regular expression that never ends": (entry("expect: {error: {match: '(a+)+$'}}"), 6, "case one: expect.error.match: expected a text, or texts with | between them"),
    "a match for everything": (entry("expect: {error: {match: 'range|'}}"), 6, "case one: expect.error.match: expected a text, or texts with | between them"),
    "defaults of 0": (defaults("0"), 5, "defaults: expected a mapping; found 0"),
    "defaults of false": (defaults("false"), 5, "defaults: expected a mapping; found False"),
    "an empty list of defaults": (defaults("[]"), 5, "defaults: expected a mapping; found an empty list"),
    "a default id": (defaults("{id: two}"), 5, "defaults.id: expected keys that cases can share; found id, which each case has for itself"),
    "a merge key": (defaults("&d {dtype: float64}").replace("id: one", "id: one, <<: *d"), 7, "case one: <<: unknown key"),
    "a matrix of 0": (entry("matrix: 0"), 6, "case one: matrix: expected a mapping from keys to lists of values; found 0"),
    "a matrix of false": (entry("matrix: false"), 6, "case one: matrix: expected a mapping from keys to lists of values; found False"),
    "a matrix of ids": (entry("matrix: {id: [a, b]}"), 6, "case one: matrix.id: expected a key of the question, such as dtype or logits.shape; found 'id'"),
    "a matrix of what it kills": (entry("matrix: {kills: {a: [a], b: [b]}}"), 6, "case one: matrix.kills: expected a key of the question"),
    "a matrix in a matrix": (entry("matrix: {vary: {a: {matrix: {}}}}"), 6, "case one: matrix.vary.a: expected keys of the question; found matrix"),
    "an id that varies": (entry("matrix: {vary: {a: {id: b}}}"), 6, "case one: matrix.vary.a: expected keys of the question; found id"),
    "an axis with many dots": (entry(f"matrix: {{{'a.' * 400}a: [1]}}"), 6, "case one: matrix.a.a.a"),
    # names and texts
    "a label with a line break": (entry('matrix: {dtype: {"a\\nb": float32}}'), 6, f"case one: matrix.dtype: {LABELS}; found 'a\\nb'"),
    "a label with an escape": (entry('matrix: {dtype: {"\\e[31m": float32}}'), 6, f"case one: matrix.dtype: {LABELS}; found '\\x1b[31m'"),
    "an empty label": (entry('matrix: {dtype: {"": float32}}'), 6, f"case one: matrix.dtype: {LABELS}; found ''"),
    "a label with a comma": (entry("matrix: {dtype: {'a,b': float32}}"), 6, f"case one: matrix.dtype: {LABELS}; found 'a,b'"),
    "a mapping as label": (entry("matrix: {upstream: [{scalar: 2}]}"), 6, f"case one: matrix.upstream: {LABELS}; found \"{{'scalar': 2}}\""),
    "a label of 5,000 characters": (TOP + "  - id: one\n    logits: {shape: [3, 4]}\n    matrix:\n      dtype:\n        ? " + "a" * 5000 + "\n        : float32\n", 9, f"case one: matrix.dtype: {LABELS}"),
    "an empty title": (top("title", '""'), 2, f"title: {TEXT}; found ''"),
    "a blank title": (top("title", '"  "'), 2, f"title: {TEXT}; found '  '"),
    "a title of 5,000 characters": (top("title", "x" * 5000), 2, f"title: {TEXT}; found 5,000 characters"),
    "a title with a line break": (top("title", '"a\\nb"'), 2, f"title: {TEXT}; found 'a\\nb'"),
    "a title with an escape": (top("title", '"\\e[31m"'), 2, f"title: {TEXT}; found '\\x1b[31m'"),
    "a title with a null character": (top("title", '"a\\0b"'), 2, f"title: {TEXT}; found 'a\\x00b'"),
    "a title that turns the line around": (top("title", '"\\u202eabc"'), 2, f"title: {TEXT}; found '\\u202eabc'"),
    "a source with a line break": (top("sources", '["a\\nb"]'), 4, f"sources.0: {TEXT}"),
    "a clause with a line break": (top("clause", '"small\\n"'), 1, "clause: expected one line of 1 to 200 printable characters"),
    "an id with a line break": (TOP + '  - {id: "one\\n", logits: {shape: [3]}}\n', 6, "case one\\n: id: expected one line of 1 to 200 printable characters"),
    "an id of 5,000 characters": (TOP + f"  - {{id: {'a' * 5000}, logits: {{shape: [3]}}}}\n", 6, f"case {'a' * 97}...: id: expected one line of 1 to 200 printable characters; found 5,000 characters"),
    "a reason with an escape": (entry('why: "\\e]0;x\\a"'), 6, f"case one: why: {TEXT}"),
    "a mutant with a line break": (entry('kills: ["a\\nb"]'), 6, f"case one: kills.0: {TEXT}"),
    "a file with a null character": (logits('file: "a\\0b"'), 6, f"case one: logits.file: {TEXT}"),
    "a file without a name": (logits('file: ""'), 6, f"case one: logits.file: {TEXT}"),
    "a reduction with a line break": (entry('reduction: "a\\nb", expect: {error: {}}'), 6, f"case one: reduction: {TEXT}"),
    "a profile with a space": (top("sources", "[here]\nprofile: a b"), 5, "profile: expected lower-case letters and digits, in words with dashes between them; found 'a b'"),
    # YAML
    "bytes that are not UTF-8": (TOP.encode() + b"  - {id: one, why: \xe9}\n", 6, "expected UTF-8 text; found the byte 0xe9"),
    "a null character": (TOP + "  - \0\n", 6, "expected printable text; found the character '\\x00'"),
    "a tab": (TOP + "\t- one\n", 6, "not valid YAML: found character"),
    "two documents": (TOP + ONE + "---\n" + TOP, 7, "expected one document; found another one"),
    "nothing": ("", 1, "expected a case file; found an empty document"),
    "an alias in its own anchor": (logits("values: &a [1, *a]"), 6, "alias *a comes before the end of its anchor, or has none"),
    "an alias as key": (TOP + "  - {id: &x one, *x : 2}\n", 6, "expected a plain word as key; found another value"),
    "a list as key": (TOP + "  - {[1]: 2}\n", 6, "expected a plain word as key; found another value"),
    "a tag": (entry("why: !!str 3"), 6, "tag '!!str' is not allowed; expected a plain value"),
    "a key twice": (entry("dtype: float32, dtype: float64"), 6, "key 'dtype' is given twice; the first is on line 6"),
    "30 levels": (logits(f"values: {'[' * 30}1{']' * 30}"), 6, "expected at most 24 levels of nesting; found more"),
    "100,000 levels": ("{a: " * 100_000, 1, "expected at most 24 levels of nesting; found more"),
    "a list of lists": ("- - - a\n", 1, "expected a mapping with the keys clause, title, requirement, sources, cases; found a list"),
    "a list for a mapping": (entry("expect: [1]"), 6, "case one: expect: expected a mapping; found a list"),
    "nothing for a mapping": (TOP + "  - {id: one, logits: }\n", 6, "case one: logits: expected a mapping; found nothing"),
    "a number for a mapping": (entry("target: 3"), 6, "case one: target: expected a mapping; found 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_malformed_file_gets_one_message_with_its_place(mistake, name):
    text, line, expected = ROWS[name]
    (message,) = mistake(text).splitlines()
    assert message.startswith(f"small.yaml:{line}: {expected}")
    assert len(message) < 1000
    assert message.isprintable()


@pytest.mark.parametrize(
    "text",
    [
        TOP + "  - {id: one, logits: {shape: [3]}, " + ", ".join(f"k{i}: 1" for i in range(20_000)) + "}\n",
        TOP + "".join(f"  - {{id: c{i}, logts: {{shape: [3]}}}}\n" for i in range(5_000)),
        TOP + ONE * 5_000,
        TOP + "  - 1\n" * 20_000,
        entry(f"matrix: {{logits.shift: {list(range(2000))}}}, " + ", ".join(f"k{i}: 1" for i in range(90))),
    ],
    ids=["keys", "entries", "ids", "numbers", "points"],
)
def test_a_long_list_of_mistakes_is_cut(mistake, text):
    *shown, last = mistake(text).splitlines()
    assert len(shown) == MAX_MISTAKES
    assert last.endswith(" more mistakes")
    assert int(last.split()[0].replace(",", "")) > 0
    assert sum(map(len, shown)) < 20_000


@pytest.mark.slow
def test_all_mistakes_are_counted(mistake):
    text = entry(", ".join(f"k{i}: 1" for i in range(20_000)))
    assert mistake(text).splitlines()[-1] == "19,980 more mistakes"


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    (tmp_path / "small.yaml").write_bytes(b"\xef\xbb\xbf" + (TOP + ONE).encode())
    assert [case.id for case in load(tmp_path / "small.yaml")] == ["small/one"]


def test_an_expectation_replaces_the_other_kind_of_the_defaults(tmp_path):
    text = TOP.replace("cases:", "defaults: {logits: {shape: [3, 4]}, expect: {loss: zero, gradient: zero}}\ncases:")
    (tmp_path / "small.yaml").write_text(
        text + "  - {id: one, expect: {error: {}}}\n  - {id: two, expect: {loss: nan}}\n"
    )
    error, loss = (case.question.expect for case in load(tmp_path / "small.yaml"))
    assert (error.error is not None, error.loss, error.gradient) == (True, "reference", "reference")
    assert (loss.loss, loss.gradient) == ("nan", "zero")


def test_a_class_of_64_bits_is_not_rounded(tmp_path):
    value = 2**63 - 1
    (tmp_path / "small.yaml").write_text(entry(f"ignore_index: {value}, target: {{values: [0, {value}, 1]}}"))
    assert build(load(tmp_path / "small.yaml")[0]).target.tolist() == [0, value, 1]


# --- files that a case names


@pytest.fixture
def named(tmp_path):
    """``named(file, body)``: the message about a case whose logits or target come from a file. The digest must give it as well."""

    def message_of(file: str, body: str = "logits: {file: FILE}", only_build: bool = False) -> str:
        path = tmp_path / "small.yaml"
        path.write_text(f"{TOP}  - {{id: one, {body.replace('FILE', file)}}}\n")
        (case,) = load(path)
        for ask in (build,) if only_build else (build, lambda case: digest([case])):
            with pytest.raises(CaseFileError) as error:
                ask(case)
            message = str(error.value).replace(f"{tmp_path}{os.sep}", "")
            assert message.startswith("small.yaml:6: case small/one: ")
        return message.removeprefix("small.yaml:6: case small/one: ")

    return message_of


def test_a_pipe_a_device_and_a_folder_are_not_read(named, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    pipe = "expected a regular file; found a pipe, a socket or a device"
    assert named("pipe") == f"logits.file: pipe: {pipe}"
    assert named("link") == f"logits.file: link: {pipe}"
    assert named("/dev/zero") == f"logits.file: /dev/zero: {pipe}"
    assert named("folder") == "logits.file: folder: expected a regular file; found a folder"
    for body in ("logits: {shape: [3, 4]}, target: {file: FILE}",):
        assert named("pipe", body) == f"target.file: pipe: {pipe}"


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_a_case_file_that_is_no_file(tmp_path, kind):
    path = Path("/dev/zero") if kind == "device" else tmp_path / "small.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(CaseFileError, match=f"^{path}: cannot be read: expected a regular file; found a "):
        load(path)


def test_a_file_that_is_absent_or_beyond_all_bounds(named, tmp_path):
    assert named("absent") == "logits.file: absent: cannot be read: No such file or directory"
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)  # takes no space
    assert "expected a safetensors file of 8 to 8,589,934,592 bytes; found 1,099,511,627,776" in named("large")
    with (tmp_path / "header").open("wb") as file:
        file.write((10**8).to_bytes(8, "little"))
        file.truncate(2**30)
    assert named("header") == "logits.file: header: expected a safetensors file; found one that does not begin like one"


@pytest.mark.parametrize("content", [b"", b"not a safetensors file", b"\xff" * 64], ids=["empty", "text", "garbage"])
def test_a_file_of_no_tensors(named, tmp_path, content):
    (tmp_path / "step").write_bytes(content)
    assert named("step").startswith("logits.file: step: expected a safetensors file")


def test_a_damaged_header(named, tmp_path):
    (tmp_path / "step").write_bytes((4).to_bytes(8, "little") + b"{]}\n")
    assert named("step", only_build=True).startswith("logits.file: step: expected a safetensors file; found Error")


LOGITS, TARGET = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([3, -100, 0])


@pytest.mark.parametrize(
    "dtype",
    [torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64, torch.float64, torch.bfloat16],
    ids=["int64", "bool", "float8", "complex64", "float64", "bfloat16"],
)
def test_logits_of_another_dtype_are_not_cast(named, tmp_path, dtype):
    save_file({"logits": LOGITS.to(dtype)}, tmp_path / "step")
    message = named("step", only_build=True)
    assert message.startswith("logits.file: step: expected a tensor of dtype float32, as the case says; found ")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32, torch.uint8, torch.bool], ids=str)
def test_a_target_of_another_dtype_is_not_cast(named, tmp_path, dtype):
    save_file({"target": TARGET.clamp(min=0).to(dtype)}, tmp_path / "step")
    message = named("step", "logits: {shape: [3, 4]}, target: {file: FILE}", only_build=True)
    assert message.startswith("target.file: step: expected a tensor of dtype int64, as the case says; found ")


def test_a_file_without_the_tensor_names_those_that_it_has(named, tmp_path):
    save_file({"scores": LOGITS, "a\nb": TARGET}, tmp_path / "step")
    message = named("step", only_build=True)
    assert message == "logits.file: step: expected a tensor named logits; found a\\nb, scores"


def test_a_drawn_class_that_the_dtype_cannot_hold(named):
    for target in ("dtype: int8", "dtype: uint8, ignore: first", "dtype: bool"):
        message = named("", f"logits: {{shape: [300, 300]}}, target: {{{target}}}", only_build=True)
        assert message.startswith(f"target: expected classes and ignore values that {target.split()[1].strip(',')} can")


# --- settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tool]\nxentcheck = 3\n", "tool.xentcheck: expected a table with the keys cases, implementations; found 3"),
        ("[tool.xentcheck]\ncases = 3\n", "tool.xentcheck.cases: expected the path of a folder; found 3"),
        ('[tool.xentcheck]\ncases = "a\\u0000b"\n', "tool.xentcheck.cases: expected a folder; found none at "),
        ("a = " + "[" * 100_000, "expected TOML: "),
    ],
    ids=["number", "path", "null", "deep"],
)
def test_settings_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(UsageError) as error:
        read_settings(tmp_path)
    assert message in str(error.value)


def test_a_folder_of_nobody():
    with pytest.raises(UsageError, match=r"^--cases: expected a folder; found ~nobody-of-this-name: "):
        folder(Path("~nobody-of-this-name"), "--cases")


def test_settings_beside_other_tools(tmp_path):
    (tmp_path / "pyproject.toml").write_text("tool = 3\n")
    assert read_settings(tmp_path).cases is None


# --- damage at random

GOOD = (
    "clause: small\ntitle: Small\nrequirement: It holds.\nsources: [here]\n"
    "defaults: {logits: &l {shape: [3, 4], set: [{rows: ignored, value: -inf}]}, upstream: per-position}\ncases:\n"
    "  - {id: one, weight: [1, 2, .5, 1e3], ignore_index: [1, -1], target: {ignore: {rows: [1]}},\n"
    "     matrix: {dtype: [float32, bfloat16], vary: {a: {reduction: none}, b: {label_smoothing: 0.1}}}}\n"
    "  - {id: two, logits: {values: [[1, 2], [nan, 3]]}, target: {values: [0, 1]}, expect: {loss: 1.5}, why: it is so}\n"
    "  - {id: three, logits: {file: step}, target: {file: step}, normalizer: {tensor: 3}, expect: {error: {match: a|b}}}\n"
    "  - {id: four, logits: {shape: [2, 3]}, linear: {features: 2, bias: [1, 2, 3], hidden: [[1, 2], [3, 4]]}}\n"
)
PIECES = (
    *("", "x", "-", ":", "{", "[", "]", "}", "'", '"', "&a ", "*l", "!!int ", "!x ", "\n", " ", ", ", "#", "? ", "- ", "---\n", "<<: *l, "),
    *("null", "true", "1e999", "-1", "1.0", "0", "1_000", "1:30", "2026-01-01", ".inf", "nan", DIGITS, "\x00", "\t", "é", "\u202e", "\ufeff"),
    *("[" * 40, "id: x, ", "matrix: {}, ", "99999999999, ", "shape: [99999, 99999, 99999], ", "fill: tiled, ", "every: 1, "),
)  # fmt: skip


@pytest.mark.slow
@settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # fmt: skip
@given(data=st.data())
def test_any_damage_is_a_mistake_with_its_place_or_harmless(tmp_path, data):
    text, path = GOOD, tmp_path / "small.yaml"
    for _ in range(data.draw(st.integers(1, 4))):
        start, length = data.draw(st.integers(0, len(text) - 1)), data.draw(st.integers(0, 12))
        text = text[:start] + data.draw(st.sampled_from(PIECES)) + text[start + length :]
    raw = text.encode()
    if data.draw(st.integers(0, 9)) == 0:
        at = data.draw(st.integers(0, len(raw) - 1))
        raw = raw[:at] + data.draw(st.binary(min_size=1, max_size=3)) + raw[at:]
    path.write_bytes(raw)
    try:
        cases = load(path)
        assert all(isinstance(case, Case) for case in cases)
        for case in cases:
            build(case)
    except CaseFileError as error:
        for line in str(error).splitlines():
            assert line.startswith(f"{path}:"), line
            assert line.removeprefix(f"{path}:").partition(":")[0].isdecimal()
            assert line.isprintable()
