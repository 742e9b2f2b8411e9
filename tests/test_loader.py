"""Case files: what defaults and matrices mean, how scalars are read, and the message for every kind of mistake."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import xentcheck
from xentcheck.spec.case import Case, Upstream
from xentcheck.spec.loader import (
    CASES,
    CATALOGUES,
    CaseFileError,
    digest,
    json_schema,
    load,
    load_all,
    merge,
    select,
    telling_first,
)
from xentcheck.spec.yaml_document import MAX_BYTES, parse, read

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(xentcheck.__file__).parents[1])}
TOP = (
    "clause: small\ntitle: Small\nrequirement: It holds.\nsources: [here]\ncases:\n"  # the first case stands on line 6
)
ONE = "  - {id: one, logits: {shape: [3, 4]}}\n"


def entry(body):
    return f"{TOP}  - {{id: one, logits: {{shape: [3, 4]}}, {body}}}\n"


def logits(body):
    return f"{TOP}  - {{id: one, logits: {{{body}}}}}\n"


@pytest.fixture
def loaded(tmp_path):
    """``loaded(text)``: the cases of a file with that text."""

    def load_text(text):
        path = tmp_path / "small.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load(path)

    return load_text


def ids(cases):
    return [case.id.removeprefix("small/") for case in cases]


def with_defaults(defaults, *entries):
    return TOP.replace("cases:", f"defaults: {{{defaults}}}\ncases:") + "".join(f"  - {{{e}}}\n" for e in entries)


# --- defaults


def test_defaults_fill_in_what_a_case_leaves_out(loaded):
    first, second = loaded(
        with_defaults(
            "dtype: float64, reduction: sum, logits: {shape: [3, 4], scale: 2}, upstream: 3",
            "id: one, logits: {shift: 5}",
            "id: two, dtype: float32, upstream: per-position",
        )
    )
    assert (first.question.dtype, first.question.reduction, first.question.upstream.scalar) == ("float64", "sum", 3)
    assert (first.question.logits.shape, first.question.logits.scale, first.question.logits.shift) == ((3, 4), 2, 5)
    assert (second.question.dtype, second.question.upstream) == ("float32", Upstream(per_position=True))
    assert second.question.logits.shift == 0


@pytest.mark.parametrize(
    ("defaults", "own", "found"),
    [
        (
            "logits: {shape: [3, 4], scale: 2}",
            "logits: {values: [[1, 2]]}",
            {"shape": None, "values": ((1, 2),), "scale": 2},
        ),
        ("logits: {values: [[1, 2]]}", "logits: {shape: [3, 4]}", {"shape": (3, 4), "values": None}),
        ("logits: {file: a.safetensors}", "logits: {shape: [3, 4]}", {"shape": (3, 4), "file": None}),
    ],
)
def test_one_source_of_logits_replaces_another(loaded, defaults, own, found):
    spec = loaded(with_defaults(defaults, f"id: one, {own}"))[0].question.logits
    assert {name: getattr(spec, name) for name in found} == found


@pytest.mark.parametrize(
    ("defaults", "own", "found"),
    [
        ("{classes: [1, 2]}", "{ignore: first}", {"classes": (1, 2), "rows": "first"}),
        ("{ignore: first}", "{classes: [1, 2]}", {"classes": (1, 2), "rows": "first"}),
        ("{ignore: {prefix: 2}}", "{ignore: {suffix: 1}}", {"prefix": None, "suffix": 1}),
        ("{ignore: {prefix: 2, value: 7}}", "{ignore: {suffix: 1}}", {"suffix": 1, "value": 7}),
        ("{ignore: {rows: [1]}}", "{ignore: all}", {"rows": "all"}),
        ("{ignore: all}", "{ignore: {rows: [1]}}", {"rows": (1,)}),
        ("{ignore: all, dtype: int32}", "{values: [1, 2, 3]}", {"ignore": None, "values": (1, 2, 3), "dtype": "int32"}),
        ("{values: [1, 2, 3]}", "{ignore: first}", {"values": None, "rows": "first"}),
    ],
)
def test_alternatives_of_the_target_replace_each_other(loaded, defaults, own, found):
    spec = loaded(with_defaults(f"logits: {{shape: [3, 4]}}, target: {defaults}", f"id: one, target: {own}"))[
        0
    ].question.target
    everything = {**dict(spec), **(dict(spec.ignore) if spec.ignore else {})}
    everything["values"] = spec.values
    assert {name: everything[name] for name in found} == found


def test_merge_does_not_change_what_it_is_given():
    base = {"logits": {"shape": [3, 4]}}
    over = {"logits": {"values": [1]}}
    assert merge(base, over) == {"logits": {"values": [1]}}
    assert base == {"logits": {"shape": [3, 4]}}
    assert over == {"logits": {"values": [1]}}


def test_ignore_values_are_torchs_unless_given(loaded):
    values = [
        case.question.ignore_values
        for case in loaded(entry("matrix: {ignore_index: {a: null, b: 3, c: [1, -1], d: []}}"))
    ]
    assert values == [(-100,), (3,), (1, -1), ()]


# --- matrices and ids


@pytest.mark.parametrize(
    ("matrix", "labels"),
    [
        ("{}", [""]),
        ("{reduction: [mean, sum]}", ["[mean]", "[sum]"]),
        (
            "{dtype: [float32, float64], reduction: [mean, sum]}",
            ["[float32-mean]", "[float32-sum]", "[float64-mean]", "[float64-sum]"],
        ),
        ("{reduction: [mean, sum], dtype: [float32]}", ["[mean-float32]", "[sum-float32]"]),
        ("{logits.shape: [[3, 4], [2, 5, 6]]}", ["[3x4]", "[2x5x6]"]),
        ("{ignore_index: [-100, 0]}", ["[-100]", "[0]"]),
        ("{label_smoothing: [0.1, 1]}", ["[0.1]", "[1]"]),
        ("{expect.refused_unless_claimed: [true, false]}", ["[true]", "[false]"]),
        ("{ignore_index: {outside: -1, inside: 2}}", ["[outside]", "[inside]"]),
        ("{vary: {plain: {}, other: {dtype: float64, reduction: sum}}}", ["[plain]", "[other]"]),
        ("{vary: {a: {reduction: sum}}, dtype: [float64]}", ["[a-float64]"]),
    ],
)
def test_a_matrix_gives_a_case_for_each_combination(loaded, matrix, labels):
    assert ids(loaded(entry(f"matrix: {matrix}"))) == [f"one{label}" for label in labels]


def test_axes_set_their_keys(loaded):
    cases = loaded(
        entry(
            "target: {ignore: first}, matrix: {logits.scale: {small: 1, large: 1e30}, target.ignore: [last], vary: {a: {reduction: sum, logits: {shift: 2}}}}"
        )
    )
    large = cases[1].question
    assert large.logits.shape == (3, 4)
    assert (large.logits.scale, large.logits.shift, large.target.ignore.rows, large.reduction) == (
        1e30,
        2,
        "last",
        "sum",
    )


def test_a_matrix_of_the_defaults_holds_for_every_case(loaded):
    text = TOP.replace("cases:", "defaults: {logits: {shape: [3, 4]}, matrix: {dtype: [float32, float64]}}\ncases:")
    assert ids(loaded(text + "  - {id: one}\n  - {id: two, matrix: {dtype: [bfloat16]}}\n")) == [
        "one[float32]",
        "one[float64]",
        "two[bfloat16]",
    ]


def test_a_mistake_in_all_points_of_a_matrix_is_reported_once(loaded):
    with pytest.raises(CaseFileError) as error:
        loaded(entry("reductoin: sum, matrix: {dtype: [float32, float64]}"))
    (message,) = str(error.value).splitlines()
    assert ":6: case one[float32]: reductoin: unknown key; did you mean reduction?" in message


def test_a_case_knows_its_place_and_its_reasons(loaded):
    case = loaded(TOP + ONE + "  - id: two\n    why: for this\n    kills: [a, b]\n    logits: {shape: [2, 2]}\n")[1]
    assert (case.line, case.why, case.kills, case.path.name) == (7, "for this", ("a", "b"), "small.yaml")
    assert case.clause.requirement == "It holds."


@pytest.mark.parametrize(
    ("body", "aspects"),
    [
        ("reduction: mean", ("loss", "gradient", "shape", "purity")),
        ("mode: no_grad", ("loss", "shape", "purity")),
        ("mode: inference_mode", ("loss", "shape", "purity")),
        ("expect: {error: {}}", ("rejection", "purity")),
        ("expect: {refused_unless_claimed: true}", ("loss", "gradient", "shape", "rejection", "purity")),
    ],
)
def test_aspects_follow_from_the_case(loaded, body, aspects):
    assert loaded(entry(body))[0].aspects == aspects


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("small", ["one[mean]", "one[sum]", "one-more"]),
        ("small/one", ["one[mean]", "one[sum]"]),
        ("small/one[sum]", ["one[sum]"]),
        ("small/one*", ["one[mean]", "one[sum]", "one-more"]),
        ("*[mean]", ["one[mean]"]),
        ("*m?re", ["one-more"]),
        ("*[sum], small/one-more", ["one[sum]", "one-more"]),
        ("small/on", []),
        ("[sum]", []),
        ("SMALL", []),
    ],
)
def test_patterns_select(loaded, pattern, found):
    cases = loaded(entry("matrix: {reduction: [mean, sum]}") + "  - {id: one-more, logits: {shape: [3, 4]}}\n")
    assert ids(select(cases, pattern)) == found


# --- scalars


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(
            ("no", "no"),
            ("off", "off"),
            ("yes", "yes"),
            ("On", "On"),
            ("y", "y"),
            ("true", True),
            ("false", False),
            ("True", "True"),
        ),
        *(
            ("1e30", 1e30),
            ("-1E-3", -1e-3),
            (".5", 0.5),
            ("-.5", -0.5),
            ("5.", 5.0),
            ("+7", 7),
            ("-0.0", -0.0),
            ("1.5e+3", 1500.0),
        ),
        *(
            ("010", 10),
            ("-100", -100),
            ("1_000", "1_000"),
            ("0x10", "0x10"),
            ("12:30:00", "12:30:00"),
            ("2026-01-01", "2026-01-01"),
        ),
        *(
            ("-inf", "-inf"),
            ("inf", "inf"),
            ("nan", "nan"),
            (".inf", ".inf"),
            ("null", None),
            ("~", None),
            ("", None),
            ("none", "none"),
            ("'5'", "5"),
        ),
    ],
)
def test_scalars_are_those_of_yaml_1_2(tmp_path, text, value):
    path = tmp_path / "scalar.yaml"
    path.write_text(f"key: {text}\n")
    found = read(path).value["key"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("inf", math.inf),
        ("+inf", math.inf),
        ("-inf", -math.inf),
        ("-Inf", -math.inf),
        ("nan", math.nan),
        ("1e30", 1e30),
        ("3", 3.0),
    ],
)
def test_words_for_numbers(loaded, word, value):
    found = loaded(logits(f"shape: [3, 4], scale: {word}"))[0].question.logits.scale
    assert str(found) == str(value)


def test_lines_of_every_value(tmp_path):
    path = tmp_path / "lines.yaml"
    path.write_text("a: 1\nb:\n  - x\n  - c: {d: 2,\n      e: 3}\n")
    lines = read(path).lines
    assert {where: lines[where] for where in (("a",), ("b",), ("b", 0), ("b", 1, "c"), ("b", 1, "c", "e"))} == {
        ("a",): 1,
        ("b",): 2,
        ("b", 0): 3,
        ("b", 1, "c"): 4,
        ("b", 1, "c", "e"): 5,
    }


@pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML is built without libyaml")
def test_libyaml_reads_what_pyyaml_reads():
    for path in CASES.rglob("*.yaml"):
        fast, plain = (parse(path.read_text(), path, parser) for parser in (yaml.CSafeLoader, yaml.SafeLoader))
        assert fast == plain


def test_aliases_are_values(loaded):
    cases = loaded(
        TOP.replace("cases:", "defaults: {weight: &w [1, 2]}\ncases:")
        + "  - {id: one, logits: {shape: [3, 2], set: [{classes: [0], value: 1}]}, weight: *w}\n"
    )
    assert cases[0].question.weight == (1, 2)


# --- mistakes

KEYS = "Expected one of: dtype, expect, id, ignore_index, kills, label_smoothing, linear, logits, matrix, memory_limit, mode, needs, normalizer, padded_to, reduction, target, upstream, weight, weight_layout, why"
DEEP = "[" * 30 + "1" + "]" * 30
MISTAKES = {
    # no YAML that can be used
    "not YAML": (TOP + "  - {id: one\n  - [", [":7: not valid YAML: "]),
    "a tab": (TOP + "\t- x\n", [":6: not valid YAML: found character", "indent with spaces, not tabs"]),
    "an open quote": (TOP + "  - {id: 'one}\n", [":7: not valid YAML"]),
    "a control character": (TOP + "  - {id: one\x07}\n", [":6: expected printable text; found the character '\\x07'"]),
    "empty": ("", [":1: expected a case file; found an empty document"]),
    "only a comment": ("# nothing\n", [":1: expected a case file; found an empty document"]),
    "two documents": (TOP + ONE + "---\n" + TOP + ONE, [":7: expected one document; found another one"]),
    "not UTF-8": (TOP.encode() + b"  - {id: one, why: \xff}\n", [":6: expected UTF-8 text; found the byte 0xff"]),
    "UTF-16": ((TOP + ONE).encode("utf-16"), ["expected UTF-8 text"]),
    "too big": (TOP + ONE + "#" * MAX_BYTES, [f"expected at most 1,000,000 bytes; large data belongs in a safetensors file; found {len(TOP + ONE) + MAX_BYTES:,}"]),
    "too deep": (logits(f"values: {DEEP}"), [":6: expected at most 24 levels of nesting; found more"]),
    "far too deep": ("[" * 60_000, [":1: ", "nesting"]),
    "an alias of itself": (TOP + "  - &a {id: one, logits: *a}\n", [":6: alias *a comes before the end of its anchor, or has none"]),
    "an unknown alias": (TOP + "  - {id: one, logits: *nowhere}\n", [":6: alias *nowhere comes before the end of its anchor, or has none"]),
    "a repeated key": (TOP + "  - id: one\n    logits: {shape: [3, 4]}\n    dtype: float32\n    logits: {shape: [1, 2]}\n", [":9: key 'logits' is given twice; the first is on line 7"]),
    "a repeated key at the top": (TOP.replace("title: Small\n", "title: Small\ntitle: Other\n") + ONE, [":3: key 'title' is given twice; the first is on line 2"]),
    "a list as key": (TOP + "  - {[1, 2]: 3}\n", [":6: expected a plain word as key; found another value"]),
    "a tag for code": (entry("why: !!python/object/apply:os.system [echo]"), [":6: ", "python/object/apply:os.system"]),
    "a tag for an object": (TOP + "  - {id: one, logits: !!python/object:os.path {shape: [3, 4]}}\n", [":6: ", "python/object:os.path"]),
    "a tag for a name": (entry("why: !!python/name:os.system ''"), [":6: ", "python/name:os.system"]),
    "an unknown tag": (entry("why: !thing x"), [":6: tag '!thing' is not allowed; expected a plain value"]),
    "an unknown tag on a mapping": (TOP + "  - {id: one, logits: !thing {shape: [3, 4]}}\n", [":6: tag '!thing' is not allowed"]),
    "an unknown tag on a list": (logits("shape: !thing [3, 4]"), [":6: tag '!thing' is not allowed"]),
    "no int under its tag": (entry("why: !!int abc"), [":6: tag '!!int' is not allowed; expected a plain value"]),
    "no float under its tag": (entry("why: !!float abc"), [":6: tag '!!float' is not allowed; expected a plain value"]),
    "no bool under its tag": (entry("why: !!bool abc"), [":6: tag '!!bool' is not allowed; expected a plain value"]),
    "no time under its tag": (entry("why: !!timestamp abc"), [":6: "]),
    "more digits than Python reads": (logits(f"shape: [{'9' * 5000}, 4]"), [":6: "]),
    # the top level
    "a list at the top": ("- a\n", [":1: expected a mapping with the keys clause, title, requirement, sources, cases; found a list"]),
    "a word at the top": ("hello\n", [":1: expected a mapping", "found 'hello'"]),
    "a key missing at the top": (TOP.replace("requirement: It holds.\n", "") + ONE, [":1: requirement: required, but missing"]),
    "a misspelt key at the top": (TOP.replace("requirement", "requirment") + ONE, [":3: requirment: unknown key; did you mean requirement? Expected one of: cases, clause, defaults, profile, requirement, sources, title"]),
    "a clause with spaces": (TOP.replace("clause: small", "clause: Small one") + ONE, [":1: clause: expected ", "found 'Small one'"]),
    "a title that is a number": (TOP.replace("title: Small", "title: 3") + ONE, [":2: title: expected a string; found 3"]),
    "no source": (TOP.replace("[here]", "[]") + ONE, [":4: sources: expected ", "expected a list of 1 or more; found an empty list"]),
    "sources that are not a list": (TOP.replace("[here]", "here") + ONE, [":4: sources: expected ", "found 'here'"]),
    "no cases": (TOP.replace("cases:\n", ""), [":1: cases: expected a list of cases; found nothing"]),
    "cases without a case": (TOP, [":5: cases: expected a list of cases; found nothing"]),
    "cases as a mapping": (TOP.replace("cases:\n", "cases: {one: 1}\n"), [":5: cases: expected a list of cases; found a mapping"]),
    "defaults as a list": (TOP.replace("cases:", "defaults: [1]\ncases:") + ONE, [":5: defaults: expected a mapping; found a list"]),
    "a misspelt key of the defaults": (TOP.replace("cases:", "defaults:\n  dtype: float64\n  reducton: sum\ncases:") + ONE, [":7: case one: reducton: unknown key; did you mean reduction?"]),
    # a case
    "a case that is a word": (TOP + "  - one\n", [":6: id: expected a mapping with a readable id; found 'one'"]),
    "a case that is nothing": (TOP + "  -\n", [":6: id: expected a mapping with a readable id; found nothing"]),
    "a case without id": (TOP + "  - {logits: {shape: [3]}}\n", [":6: id: expected a mapping with a readable id"]),
    "an id that is a number": (TOP + "  - {id: 3, logits: {shape: [3]}}\n", [":6: ", "id: expected", "found 3"]),
    "a bad id": (TOP + "  - {id: One_case, logits: {shape: [3]}}\n", [":6: case One_case: id: expected ", "found 'One_case'"]),
    "a repeated id": (TOP + ONE + ONE.replace("one", "two") + ONE, [":8: case one: id: must be unique; it is already used on line 6"]),
    "no logits": (TOP + "  - {id: one}\n", [":6: case one: logits: required, but missing"]),
    "no source of logits": (logits(""), [":6: case one: logits: expected exactly one of shape, values, file; found none of them"]),
    "two sources of logits": (logits("shape: [3, 4], values: [[1, 2]]"), [":6: case one: logits: expected exactly one of shape, values, file; found shape, values"]),
    "a misspelt key": (entry("labelsmoothing: 0.1"), [f":6: case one: labelsmoothing: unknown key; did you mean label_smoothing? {KEYS}"]),
    "a key like no other": (entry("zzzz: 1"), [f":6: case one: zzzz: unknown key. {KEYS}"]),
    "a misspelt key of the logits": (TOP + "  - id: one\n    logits:\n      shpae: [3, 4]\n", [":8: case one: logits.shpae: unknown key; did you mean shape? Expected one of: dtype, file, fill, layout, scale, set, shape, shift, values"]),
    "a misspelt key of a pattern": (logits("shape: [3, 4], set: [{value: 1}, {valeu: 1}]"), [":6: case one: logits.set.1.value: required, but missing", "logits.set.1.valeu: unknown key; did you mean value? Expected one of: classes, rows, value"]),
    "a misspelt key of the target": (entry("target: {igonre: all}"), ["case one: target.igonre: unknown key; did you mean ignore?"]),
    "a misspelt key of ignore": (entry("target: {ignore: {row: [1]}}"), ["case one: target.ignore.row: unknown key; did you mean rows? Expected one of: every, fraction, prefix, rows, suffix, value"]),
    "a misspelt key of the upstream": (entry("upstream: {scaler: 2}"), ["case one: upstream.scaler: unknown key; did you mean scalar?"]),
    "a misspelt key of expect": (entry("expect: {los: zero}"), ["case one: expect.los: unknown key; did you mean loss?"]),
    "a misspelt key of error": (entry("expect: {error: {phse: call}}"), ["case one: expect.error.phse: unknown key; did you mean phase?"]),
    "an unknown dtype": (entry("dtype: float31"), [":6: case one: dtype: expected 'float64', 'float32', 'bfloat16' or 'float16'; found 'float31'"]),
    "an unknown mode": (entry("mode: eagre"), ["case one: mode: expected 'eager', ", "found 'eagre'"]),
    "an unknown layout": (logits("shape: [3, 4], layout: transpose"), ["case one: logits.layout: expected ", "found 'transpose'"]),
    "an unknown fill": (logits("shape: [3, 4], fill: gaussian"), ["logits.fill: expected 'normal', 'uniform', 'constant', 'ramp' or 'tiled'; found 'gaussian'"]),
    "an unknown target dtype": (entry("target: {dtype: int65}"), ["target.dtype: expected 'int64', ", "found 'int65'"]),
    "an unknown capability": (entry("needs: [double_backwards]"), ["case one: needs.0: expected ", "found 'double_backwards'"]),
    "an unknown word for rows": (logits("shape: [3, 4], set: [{rows: some, value: 1}]"), ["logits.set.0.rows: expected ", "'ignored', 'valid' or 'all'", "found 'some'"]),
    "an unknown word for classes": (logits("shape: [3, 4], set: [{classes: some, value: 1}]"), ["logits.set.0.classes: expected ", "'target', 'others' or 'all'", "found 'some'"]),
    "an unknown word for ignore": (entry("target: {ignore: frist}"), ["target.ignore: expected ", "'all', 'none', 'first' or 'last'", "found 'frist'"]),
    "an unknown expectation": (entry("expect: {loss: zeros}"), ["expect.loss: expected 'reference', 'nan', 'inf', 'zero', 'empty-mean', 'finite' or 'unspecified'", "found 'zeros'"]),
    "an unknown phase": (entry("expect: {error: {phase: forward}}"), ["expect.error.phase: expected 'call' or 'backward'; found 'forward'"]),
    "an unknown convention": (entry("expect: {convention: int16_target}"), ["expect.convention: expected 'int32_target'; found 'int16_target'"]),
    "an unknown upstream": (entry("upstream: units"), ["case one: upstream: expected ", "found 'units'"]),
    "a shape that is a word": (logits("shape: big"), ["logits.shape: expected ", "found 'big'"]),
    "a negative shape": (logits("shape: [3, -4]"), ["logits.shape.1: expected at least 0; found -4"]),
    "half a class": (logits("shape: [3, 4.5]"), ["logits.shape.1: expected an integer", "found 4.5"]),
    "a word among the values": (logits("values: [[1, two]]"), ["logits.values.0.1: expected a number, inf, -inf or nan; found 'two'"]),
    "a truth value among numbers": (logits("shape: [3, 4], scale: true"), ["logits.scale: expected a number, inf, -inf or nan; found True"]),
    "an ignore value that is a word": (entry("ignore_index: first"), ["case one: ignore_index: expected an integer", "found 'first'"]),
    "an ignore value that is not an int": (entry("ignore_index: 1.5"), ["case one: ignore_index: expected an integer", "found 1.5"]),
    "an ignore value of a list that is not an int": (entry("ignore_index: [1, x]"), ["case one: ignore_index.1: expected an integer", "found 'x'"]),
    "a weight that is a word": (entry("weight: heavy"), ["case one: weight: expected ", "'random'", "found 'heavy'"]),
    "a weight of words": (entry("weight: [1, x]"), ["case one: weight.1: expected a number, inf, -inf or nan; found 'x'"]),
    "smoothing above 1": (entry("label_smoothing: 1.5"), [":6: case one: label_smoothing: expected a number in [0, 1], or expect.error; found 1.5"]),
    "smoothing below 0": (entry("label_smoothing: -0.1"), ["label_smoothing: expected a number in [0, 1], or expect.error; found -0.1"]),
    "smoothing that is NaN": (entry("label_smoothing: nan"), ["label_smoothing: expected a number in [0, 1], or expect.error; found nan"]),
    "smoothing that is a word": (entry("label_smoothing: lots"), ["label_smoothing: expected a number", "found 'lots'"]),
    "an unknown reduction": (entry("reduction: average"), [":6: case one: reduction: expected mean, sum or none, or expect.error; found 'average'"]),
    "ignoring without a value": (entry("ignore_index: [], target: {ignore: all}"), [":6: case one: target.ignore: expected an ignore value; found an empty list as ignore_index"]),
    "two choices of what is ignored": (entry("target: {ignore: {prefix: 1, suffix: 1}}"), ["target.ignore: expected exactly one of rows, prefix, suffix, every, fraction; found prefix, suffix"]),
    "no choice of what is ignored": (entry("target: {ignore: {}}"), ["target.ignore: expected exactly one of rows, prefix, suffix, every, fraction; found none of them"]),
    "more than everything": (entry("target: {ignore: {fraction: 1.5}}"), ["target.ignore.fraction: expected at most 1; found 1.5"]),
    "every zeroth": (entry("target: {ignore: {every: 0}}"), ["target.ignore.every: expected at least 1; found 0"]),
    "literal targets that ignore": (entry("target: {values: [1, 2, 3], ignore: all}"), ["case one: target: expected either values or file, which show what is ignored, or else classes and ignore; found ignore, values"]),
    "two sources of the upstream": (entry("upstream: {scalar: 1, per_position: true}"), ["upstream: expected exactly one of scalar, per_position, values; found scalar, per_position"]),
    "vmap with a mean": (entry("mode: vmap"), [":6: case one: mode: expected reduction: none and no upstream with vmap, which calls the loss once per position; found reduction: mean"]),
    "vmap with an upstream": (entry("mode: vmap, reduction: none, upstream: 2"), ["case one: mode: expected reduction: none and no upstream with vmap, which calls the loss once per position; found an upstream"]),
    "a reason that is a number": (entry("why: 3"), ["case one: why: expected a string; found 3"]),
    "kills that are not a list": (entry("kills: one"), ["case one: kills: expected ", "found 'one'"]),
    # matrices
    "a matrix that is a list": (entry("matrix: [1, 2]"), [":6: case one: matrix: expected a mapping from keys to lists of values; found a list"]),
    "an axis without values": (entry("matrix: {reduction: []}"), ["case one: matrix.reduction: expected a list of different values, or a mapping from labels to values"]),
    "an axis with a value twice": (entry("matrix: {reduction: [sum, mean, sum]}"), ["case one: matrix.reduction: expected a list of different values"]),
    "an axis that is a word": (entry("matrix: {reduction: sum}"), ["case one: matrix.reduction: expected a list of different values"]),
    "an axis of a misspelt key": (TOP + "  - id: one\n    logits: {shape: [3, 4]}\n    matrix:\n      dtype: [float32]\n      reducton: [sum]\n", [":10: case one[float32-sum]: reducton: unknown key; did you mean reduction?"]),
    "an axis with a wrong value": (TOP + "  - id: one\n    logits: {shape: [3, 4]}\n    matrix:\n      dtype: [float32, float31]\n", [":9: case one[float31]: dtype: expected ", "found 'float31'"]),
    "a dotted axis of a misspelt key": (entry("matrix: {logits.shpe: [[3]]}"), ["case one[3]: logits.shpe: unknown key; did you mean shape?"]),
    "vary that is not a mapping": (entry("matrix: {vary: {a: 1}}"), ["case one: matrix.vary.a: expected a mapping with keys of a case; found 1"]),
    "vary of a misspelt key": (entry("matrix: {vary: {a: {dtyp: float64}}}"), ["case one[a]: dtyp: unknown key; did you mean dtype?"]),
    "too large a matrix": (entry(f"matrix: {{ignore_index: {list(range(50))}, logits.scale: {list(range(41))}}}"), [":6: case one: matrix: expected at most 2000 cases and 200,000 values in a file; found more"]),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_place(loaded, tmp_path, mistake):
    text, fragments = MISTAKES[mistake]
    with pytest.raises(CaseFileError) as error:
        loaded(text)
    message = str(error.value)
    assert message.startswith(str(tmp_path / "small.yaml") + ":")
    for fragment in fragments:
        assert fragment in message


def test_every_mistake_of_a_file_is_named_at_once(loaded):
    with pytest.raises(CaseFileError) as error:
        loaded(
            TOP.replace("title: Small\n", "")
            + "  - {id: one, logits: {shape: [3, 4]}, dtype: x}\n  - {id: two, logits: {shape: [3, 4]}, mode: y}\n"
        )
    found = [(mistake.line, mistake.case, mistake.key) for mistake in error.value.mistakes]
    assert found == [(1, "", "title"), (5, "one", "dtype"), (6, "two", "mode")]
    assert len(str(error.value).splitlines()) == 3


def test_a_union_complains_where_the_value_came_furthest(loaded):
    with pytest.raises(CaseFileError) as error:
        loaded(entry("weight: [1, x]"))
    assert [mistake.key for mistake in error.value.mistakes] == ["weight.1"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_put_into_our_words(loaded, mistake):
    with pytest.raises(CaseFileError) as error:
        loaded(MISTAKES[mistake][0])
    assert "Input should" not in str(error.value)


def test_a_mistake_in_the_defaults_is_named_on_its_own_line(loaded):
    with pytest.raises(CaseFileError, match=r"small.yaml:7: case one: logits.shpe: unknown key"):
        loaded(TOP.replace("cases:", "defaults:\n  logits:\n    shpe: [3, 4]\ncases:") + "  - {id: one}\n")


def test_what_is_out_of_range_may_be_asked_where_an_error_is_expected(loaded):
    for body in ("label_smoothing: 1.5", "reduction: average"):
        assert loaded(entry(f"{body}, expect: {{error: {{}}}}"))[0].expects_error


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CaseFileError, match=r"absent.yaml: cannot be read: No such file"):
        load(tmp_path / "absent.yaml")


def test_no_file_is_read_twice_as_the_same_case(tmp_path):
    (tmp_path / "a.yaml").write_text(TOP + ONE)
    (tmp_path / "b.yaml").write_text(TOP + "  - {id: zero, logits: {shape: [3]}}\n" + ONE)
    with pytest.raises(
        CaseFileError,
        match=r"b.yaml:7: case small/one: the id must be unique; it is already used at .*a.yaml:6",
    ):
        load_all(tmp_path)


def test_the_cases_of_several_folders(tmp_path):
    for name, text in (("a", ONE), ("b", ONE.replace("one", "two"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "small.yaml").write_text(TOP + text)
    assert ids(load_all(tmp_path / "b", tmp_path / "a")) == ["two", "one"]
    with pytest.raises(CaseFileError, match="case small/one: the id must be unique"):
        load_all(tmp_path / "a", tmp_path / "a")


def test_a_folder_without_cases(tmp_path):
    with pytest.raises(CaseFileError, match="expected case files"):
        load_all(tmp_path)


def test_nothing_in_a_file_is_executed(loaded, tmp_path):
    marker = tmp_path / "executed"
    for text in (
        f"why: !!python/object/apply:os.system ['touch {marker}']",
        f"why: !!python/object/new:os.system ['touch {marker}']",
    ):
        with pytest.raises(CaseFileError):
            loaded(entry(text))
    assert not marker.exists()


GOOD = with_defaults(
    "logits: {shape: [3, 4], set: [{rows: ignored, value: -inf}]}, target: {ignore: {rows: [1]}}, upstream: per-position",
    "id: one, weight: [1, 2, .5, 1e3], ignore_index: [1, -1], matrix: {dtype: [float32, bfloat16], reduction: [mean, none]}",
    "id: two, logits: {values: [[1, 2], [nan, 3]]}, target: {values: [0, 1]}, expect: {loss: 1.5, gradient: [[0, 0], [0, 0]]}",
)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_damage_is_a_mistake_in_words_or_harmless(tmp_path_factory, data):
    text, path = GOOD, tmp_path_factory.getbasetemp() / "damaged.yaml"
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text) - 1))
        length = data.draw(st.integers(0, 6))
        piece = data.draw(
            st.sampled_from(
                [
                    "",
                    "x",
                    "-",
                    ":",
                    "{",
                    "[",
                    "]",
                    "}",
                    "'",
                    "&a ",
                    "*a",
                    "!!int ",
                    "!x ",
                    "\n",
                    " ",
                    ", ",
                    "null",
                    "1e999",
                    "-1",
                    "true",
                    "#",
                    "\x00",
                    "é",
                ]
            )
        )
        text = text[:start] + piece + text[start + length :]
    path.write_text(text)
    message = ""
    try:
        assert all(isinstance(case, Case) for case in load(path))
    except CaseFileError as error:
        message = str(error)
    assert not message or message.startswith(str(path))


# --- the digest


@pytest.fixture
def captured(tmp_path, loaded):
    import numpy as np

    def cases(values=(1.0, 2.0), body="reduction: sum"):
        save_file({"logits": np.array([values]), "target": np.array([1])}, tmp_path / "step.safetensors")
        return loaded(
            f"{TOP}  - {{id: file, logits: {{file: step.safetensors}}, target: {{file: step.safetensors}}}}\n  - {{id: one, logits: {{shape: [3, 4]}}, {body}}}\n"
        )

    return cases


def test_the_digest_is_the_same_for_the_same_questions(captured):
    cases = captured()
    assert digest(cases) == digest(reversed(cases))
    assert digest(cases) == digest(captured(body="why: another reason, reduction: sum, kills: [x]"))
    assert len(digest(cases)) == 16


@pytest.mark.parametrize(
    "body",
    [
        "reduction: mean",
        "reduction: sum, expect: {loss: zero}",
        "reduction: sum, label_smoothing: 0",
        "reduction: sum, logits: {shape: [3, 5]}",
    ],
)
def test_the_digest_changes_with_a_question(captured, loaded, body):
    before = digest(captured())
    if "logits" in body:
        assert digest(loaded(f"{TOP}  - {{id: one, {body}}}\n")) != digest(loaded(entry("reduction: sum")))
    else:
        assert digest(captured(body=body)) != before


def test_the_digest_changes_with_a_captured_file_a_name_and_the_number_of_cases(captured, loaded):
    cases = captured()
    before = digest(cases)
    assert digest(cases[1:]) != before
    assert digest(captured((1.0, 2.5))) != before
    assert digest(loaded(entry("reduction: sum"))) != digest(
        loaded(entry("reduction: sum").replace("id: one", "id: other"))
    )


def test_a_digest_over_a_missing_file_names_it(captured, tmp_path):
    cases = captured()
    (tmp_path / "step.safetensors").unlink()
    with pytest.raises(CaseFileError, match=r"case small/file: .*step.safetensors"):
        digest(cases)


# --- the schema

SHIPPED = sorted(p for p in CASES.rglob("*.yaml") if p.name not in CATALOGUES)


def test_the_schema_that_is_shipped_is_the_models():
    shipped = json.loads((CASES / "schema.json").read_text())
    assert shipped == json_schema(), "make it anew: xentcheck schema > cases/schema.json"


def test_there_are_case_files():
    assert SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_a_shipped_file_follows_the_schema_for_editors(path: Path):
    validator = jsonschema.Draft202012Validator(json_schema())
    mistakes = [
        f"{'.'.join(map(str, e.absolute_path))}: {e.message}"[:200] for e in validator.iter_errors(read(path).value)
    ]
    assert not mistakes


def test_the_schema_refuses_what_the_loader_refuses(tmp_path):
    validator = jsonschema.Draft202012Validator(json_schema())
    path = tmp_path / "small.yaml"
    for mistake in (
        "a misspelt key",
        "an unknown dtype",
        "a misspelt key of the target",
        "no source",
        "an unknown word for ignore",
        "an unknown upstream",
        "a shape that is a word",
        "cases as a mapping",
    ):
        path.write_text(MISTAKES[mistake][0])
        assert not validator.is_valid(read(path).value), mistake


def test_the_schema_takes_every_short_form(tmp_path):
    validator = jsonschema.Draft202012Validator(json_schema())
    path = tmp_path / "small.yaml"
    for body in (
        "upstream: unit",
        "upstream: per-position",
        "upstream: 3.5",
        "upstream: [1, 2, 3]",
        "target: {ignore: all}",
        "target: {ignore: {rows: all}}",
        "weight: random",
        "weight: [1, inf]",
        "ignore_index: [1, 2]",
        "expect: {loss: [1, inf]}",
    ):
        path.write_text(entry(body))
        assert load(path)
        assert [e.message for e in validator.iter_errors(read(path).value)] == [], body


# --- start-up


def test_reading_cases_imports_neither_torch_nor_numpy():
    modules = "loader, speed_cases, bug_reports, patterns, case, yaml_document"
    code = f"import sys; from xentcheck.spec import {modules}; loader.load_all(); print({{'torch', 'numpy'}} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert found.stdout == "set()\n"


def test_capture_is_imported_when_it_is_asked_for():
    code = "import sys; from xentcheck import capture; print(callable(capture), 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert found.stdout == "True True\n"


def test_small_and_telling_cases_are_asked_first():
    cases = load_all()
    ordered = telling_first(cases)
    assert sorted(c.id for c in ordered) == sorted(c.id for c in cases)
    assert [c.clause.clause for c in ordered[:3]] == ["plain-values"] * 3
    assert ordered[-1].question.logits.file or max(ordered[-1].question.logits.shape) > 64
