"""``--explore``: what is drawn can be stored and read back, a rare bug is found and made small, and a right loss is left alone."""

import contextlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, seed, settings

import fakes
from suite_runs import FAKES
from xentcheck.cli import main as xentcheck_command
from xentcheck.explore import known_failures as situations
from xentcheck.explore import search as explore
from xentcheck.explore.strategies import documents, unclear
from xentcheck.implementation import Deviation, Implementation, find
from xentcheck.pytest_plugin import explore as explore_plugin
from xentcheck.results.record import load
from xentcheck.spec import loader
from xentcheck.spec.batch import build
from xentcheck.spec.capabilities import CAPABILITIES

pytestmark = pytest.mark.slow

LOOKALIKES = FAKES.parent / "lookalikes" / "whole.py"
QUIET = settings(
    max_examples=150, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
PLAIN = fakes.rarely_wrong.implementation.capabilities
ALL = PLAIN | {"weight", "ignore_index_list"}


def fake(name, **claims):
    """Claims all that it takes, for what is taken unclaimed is a fault, too."""
    claimed = PLAIN if name == "rarely_wrong" else ALL
    return Implementation(name=name, cross_entropy=getattr(fakes, name), **{"capabilities": claimed, **claims})


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "found"


@pytest.fixture
def one(folder):
    """``one(entry)``: that entry as a stored find of the implementation ``right``; its path."""

    def store(entry, implementation=None):
        implementation = implementation or fake("right")
        case = explore.to_case(entry, implementation, folder / "x.yaml")
        wrong = situations.Verdict(
            "right",
            "found",
            case.id,
            "loss",
            "fail",
            fault=situations.Fault("value", expected="it", found="it was wrong"),
        )
        find = explore.Find(entry, case, wrong, frozenset())
        return explore._store(find, implementation, folder).case.path

    return store


# --- what is drawn


@QUIET
@given(entry=documents())
def test_what_is_drawn_is_what_is_read_back(tmp_path_factory, entry):
    path = tmp_path_factory.getbasetemp() / "drawn.yaml"
    with contextlib.suppress(loader.CaseFileError):
        case = explore.to_case(entry, fake("right"), path)
        named = {"id": case.id.partition("/")[2], **entry}
        path.write_text(f"{yaml.safe_dump(explore.HEADER)}cases:\n{explore.as_yaml(named)}")
        assert loader.load(path) == [case.model_copy(update={"line": 7})]


def drawn(capabilities=frozenset(CAPABILITIES)):
    seen, refused = [], []

    def look(entry):
        try:
            case = explore.to_case(entry, fake("right"), Path("found.yaml"))
            seen.append((entry, case, build(case)))
        except loader.CaseFileError as error:
            refused.append(str(error))

    for number in range(50):
        seed(number)(settings(QUIET, max_examples=explore.AT_ONCE)(given(documents(capabilities))(look)))()
    return seen, refused


# What asks for another form, or for memory.
NOT_DRAWN = {"linear", "memory_limit"}


@pytest.fixture(scope="module")
def everything_drawn():
    return drawn()


def test_nearly_all_that_is_drawn_is_a_clear_question(everything_drawn):
    seen, refused = everything_drawn
    assert len(refused) <= 0.03 * len(seen), refused
    assert sum(bool(unclear(case, batch)) for _, case, batch in seen) <= 0.1 * len(seen)


def test_every_key_and_most_values_of_the_format_are_drawn(everything_drawn):
    seen, _ = everything_drawn
    questions = [case.question for _, case, _ in seen]
    keys = set().union(*(entry for entry, _, _ in seen))
    assert keys == set(loader.Question.model_fields) - {"needs", *NOT_DRAWN}
    assert {q.dtype for q in questions} == {"float64", "float32", "bfloat16", "float16"}
    assert {q.mode for q in questions} >= {
        "eager",
        "no_grad",
        "inference_mode",
        "func_grad",
        "double_backward",
        "twice",
        "autocast",
        "vmap",
        "detached",
        "two_losses",
        "edited",
        "accumulated",
        "deterministic",
    }
    assert {q.logits.layout for q in questions} >= {"contiguous", "strided", "transposed", "offset", "expanded"}
    assert {q.logits.fill for q in questions} == {"normal", "uniform", "constant", "ramp"}
    assert {type(q.normalizer) for q in questions} >= {type(None), int, float}
    assert {"random", "one-hot"} < {str(q.target.probabilities) for q in questions}
    assert {q.target.dtype for q in questions} == {"int64", "int32", "uint8"}
    assert {len(batch.input.shape) for _, _, batch in seen} == {1, 2, 3, 4, 5}
    found = set().union(*(situations.features(case, batch) for _, case, batch in seen))
    wanted = {
        "an ignored row without a softmax",
        "a valid row without a softmax",
        "a target at -inf",
        "an ignored class",
        "no position",
    }
    wanted |= {
        "every position ignored",
        "smoothing 1",
        "a weight of 0",
        "a negative weight",
        "several ignore values",
        "another class at -inf",
    }
    assert found >= wanted | {"smoothing outside [0, 1]", "logits beyond 1e9", "upstream", "a refusal is asked for"}


def test_what_is_not_claimed_is_not_asked():
    little = frozenset({"float32", "reduction_mean", "backward"})
    seen, _ = drawn(little)
    assert len(seen) > 100
    for entry, case, _ in seen:
        options = {"weight", "label_smoothing", "ignore_index", "mode"} & set(entry) - {"mode"}
        assert case.question.dtype == "float32"
        assert not options or case.expects_error or case.question.expect.refused_unless_claimed


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("logits: {shape: [3, 2]}, weight: [0, 0]", "0 / 0"),
        ("logits: {shape: [3, 2]}, weight: [1, -1], target: {values: [0, 1, 1]}", "cancel"),
        ("logits: {values: [[3e38, -3e38]]}", "overflow"),
        (
            "logits: {values: [[nan, 0]]}, target: {values: [0]}, weight: [1, 0]",
            "a weight of 0 in a row without a softmax",
        ),
        ("logits: {shape: [3, 2]}, weight: [1, 0], target: {values: [0, 1, 1]}", ""),
        ("logits: {shape: [3, 2]}, weight: [0, 0], target: {values: [-100, -100, -100]}", ""),
    ],
)
def test_what_has_no_clear_answer_is_told(case, body, says):
    found = unclear(case(body), build(case(body)))
    assert says in found if says else not found


# --- what is found


@pytest.fixture(scope="module")
def rare(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rare")
    return explore.explore(fake("rarely_wrong"), 250, 0, [], folder), folder


def test_a_rare_bug_is_found_and_shrunk_to_what_it_needs(rare):
    result, folder = rare
    assert [situations.kind(f.verdict) for f in result.finds] == [("loss", "value")]
    (find,) = result.finds
    assert set(find.entry) == {"logits", "target", "ignore_index", "label_smoothing"}
    batch = build(find.case)
    assert batch.input.numel() <= 4
    assert batch.target[-1] == batch.options["ignore_index"]
    assert [p.stem for p in folder.iterdir()] == [find.case.id.partition("/")[2]], "what it was before is gone"
    assert result.examples == 250


def test_what_is_stored_is_known_the_next_time(rare):
    result, folder = rare
    again = explore.explore(fake("rarely_wrong"), 250, 0, [], folder)
    assert again.finds == []
    assert set(again.known) == {result.finds[0].case.id}


def test_several_bugs_are_told_apart(folder):
    def several(input, target, *, reduction="mean", label_smoothing=0.0, **options):
        loss = fakes.right(input, target, reduction=reduction, label_smoothing=label_smoothing, **options)
        if label_smoothing == 1:
            return loss * torch.nan
        return loss.unsqueeze(0) if reduction == "none" and len(target) > 3 else loss

    result = explore.explore(
        Implementation(name="several", cross_entropy=several, capabilities=ALL), 100, 0, [], folder
    )
    found = {situations.kind(f.verdict): f for f in result.finds}
    # What else there is shows the same two from other sides: a loss of the wrong shape cannot be added up, for instance.
    assert {("loss", "nan"), ("loss", "shape")} <= found.keys()
    others = [f for f in result.finds if f.verdict.aspect != "reductions"]  # which ask for reduction none as well
    assert all(f.entry.get("label_smoothing") == 1 or f.entry.get("reduction") == "none" for f in others)
    nan, shape = found["loss", "nan"], found["loss", "shape"]
    assert nan.entry["label_smoothing"] == 1.0
    assert shape.entry["reduction"] == "none"
    assert build(shape.case).target.numel() == 4


def test_a_right_loss_is_left_alone(folder):
    (lookalike,) = find(f"{LOOKALIKES}:log_sum_exp_minus_target_logit")
    result = explore.explore(lookalike, 150, 1, [], folder)
    assert result.finds == []
    assert not result.known
    assert not folder.exists()
    assert result.unsupported < 30


def test_a_loss_that_changes_its_mind_is_found_all_the_same(folder):
    result = explore.explore(fake("another_with_every_call"), 50, 0, [], folder)
    assert result.finds
    assert len(list(folder.iterdir())) == len({f.case.id for f in result.finds})


def test_a_failure_of_the_suite_itself_is_a_find(folder, monkeypatch):
    examine = situations.Examiner.examine

    def breaks(self, case, aspect, implementation):
        if case.question.dtype == "float64":
            raise ZeroDivisionError("in the judge")
        return examine(self, case, aspect, implementation)

    monkeypatch.setattr(situations.Examiner, "examine", breaks)
    result = explore.explore(fake("right"), 60, 0, [], folder)
    assert {f.verdict.message for f in result.finds} == {
        "expected a verdict; found a failure of the suite itself: ZeroDivisionError: in the judge"
    }
    assert {f.entry["dtype"] for f in result.finds} == {"float64"}


def test_an_interrupted_search_keeps_what_it_found(folder):
    with pytest.raises(KeyboardInterrupt):
        explore.explore(fake("interrupted_while_shrinking"), 150, 0, [], folder)
    (path,) = folder.iterdir()
    (case,) = loader.load(path)
    assert len(build(case).target) >= 5


def test_a_find_that_needs_less_takes_the_place_of_one_that_needs_more(folder):
    search = explore._Search(fake("off_by_a_thousandth"), folder, 0, lambda _: None)
    for entry in ({**ENTRY, "reduction": "sum"}, {**ENTRY, "label_smoothing": 0.5}, ENTRY):
        search.first = None
        found = search._first_new(entry, *search._clear(entry))
        search.first = search.smallest = explore._store(found, search.implementation, folder)
        search._keep(search.smallest)
    assert [f.entry for f in search.result.finds] == [ENTRY]
    assert [p.stem for p in folder.iterdir()] == [search.result.finds[0].case.id.partition("/")[2]]


# --- what is known


NAN = dict(aspect="gradient", observed="NaN", fault="nan", link="https://example.org")


def test_a_known_deviation_explains_other_batches_with_the_same_features(cases, folder):
    shipped = cases(
        "id: one, logits: {shape: [4, 3], set: [{rows: ignored, value: nan}]}, target: {ignore: first}, weight: random, dtype: bfloat16"
    )
    leaky = fake(
        "ignored_nan_reaches_gradient",
        deviations=(Deviation("small/one", **NAN),),
        capabilities=(ALL | {"non_finite"}) - {"ignore_index_list"},
    )
    known = situations.of_deviations(leaky, shipped)
    assert known == [], "it cannot be asked in this dtype"
    shipped = cases(
        "id: one, logits: {shape: [4, 3], set: [{rows: ignored, value: nan}]}, target: {ignore: first}, weight: random, dtype: float64, reduction: sum"
    )
    (known,) = situations.of_deviations(leaky, shipped)
    assert known.features == {"an ignored position", "an ignored row without a softmax"}, (
        "the weights, the dtype and the reduction are not needed"
    )
    result = explore.explore(leaky, 100, 0, [known], folder)
    assert result.known["small/one"] > 0
    assert ("gradient", "nan") not in {situations.kind(f.verdict) for f in result.finds}
    without = explore.explore(leaky, 50, 0, [], folder / "without")
    assert ("gradient", "nan") in {situations.kind(f.verdict) for f in without.finds}


def test_a_larger_error_than_the_known_one_is_new(case):
    verdict = situations.Verdict("x", "c", "c/a", "loss", "fail", error_units=50.0, fault=situations.Fault("value"))
    known = situations.Situation("loss", "value", frozenset({"bfloat16"}), 120.0, "c/b")
    seen = frozenset({"bfloat16", "weights"})
    explains = situations.explanation
    assert explains([known], verdict, seen) == "c/b"
    assert explains([known], verdict, frozenset({"weights"})) is None
    assert explains([situations.replace(known, max_units=20.0)], verdict, seen) is None
    assert explains([known], situations.replace(verdict, aspect="gradient"), seen) is None
    assert explains([known], situations.replace(verdict, error_units=None), seen) is None


# --- what becomes of a find


def test_two_known_faults_in_one_batch_are_known():
    """The judge names the first wrong value and the worst error, which may belong to different faults."""
    rounding = situations.Situation("gradient", "value", frozenset({"bfloat16"}), 200.0, "c/rounding")
    nan = situations.Situation("gradient", "nan", frozenset({"an ignored row without a softmax"}), math.inf, "c/nan")
    verdict = situations.Verdict("x", "c", "c/a", "gradient", "fail", error_units=None, fault=situations.Fault("value"))
    both = frozenset({"bfloat16", "an ignored row without a softmax"})
    assert situations.explanation([rounding, nan], verdict, both) == "c/rounding"
    assert situations.explanation([rounding, nan], verdict, frozenset({"bfloat16"})) is None
    assert situations.explanation([nan], verdict, both) is None


def test_a_relation_is_broken_for_the_reason_that_the_answer_itself_is_wrong():
    nan = situations.Situation("gradient", "nan", frozenset(), math.inf, "c/nan")
    own, relation, broken = (
        situations.Verdict("x", "c", "c/a", aspect, "fail", fault=situations.Fault(fault))
        for aspect, fault in (("gradient", "nan"), ("splitting", "value"), ("splitting", "harness"))
    )
    assert situations.first_new([nan], [own, relation], frozenset()) == (None, "c/nan")
    assert situations.first_new([nan], [relation], frozenset()) == (relation, "")
    assert situations.first_new([], [own, relation], frozenset()) == (own, "")
    assert situations.first_new([nan], [own, broken], frozenset()) == (broken, "c/nan")


ENTRY = {"logits": {"values": [[0, 1], [2, 3]]}, "target": {"values": [0, 1]}}


def test_a_find_that_is_mended_is_fixed(one):
    found = explore.replay(one(ENTRY), fake("right"), [])
    assert found.status == "fixed"
    assert "passes now" in found.message


def test_a_find_that_is_not_is_failing(one):
    assert explore.replay(one(ENTRY), fake("off_by_a_thousandth"), []).status == "failing"


def test_a_find_that_a_deviation_explains_now_is_known(one):
    known = situations.Situation("loss", "value", frozenset(), math.inf, "c/a")
    also = situations.Situation("gradient", "value", frozenset(), math.inf, "c/a")
    assert explore.replay(one(ENTRY), fake("off_by_a_thousandth"), [known]).status == "failing", (
        "its gradient is wrong, too"
    )
    assert explore.replay(one(ENTRY), fake("off_by_a_thousandth"), [known, also]).status == "known"


@pytest.mark.parametrize(
    "change", [("values: [0, 1]", "values: [0, 1, 1, 5, 7]"), ("logits:", "logit:"), ("cases:", "cases: [")]
)
def test_a_find_that_is_no_case_any_more_is_gone(one, change):
    path = one({**ENTRY, "logits": {**ENTRY["logits"], "set": [{"rows": [1], "value": 0}]}})
    path.write_text(
        path.read_text().replace("rows: [1]", "rows: [7]")
        if "values" in change[0]
        else path.read_text().replace(*change)
    )
    found = explore.replay(path, fake("right"), [])
    assert found.status == "gone"
    assert "no longer a valid case: " in found.message
    assert str(path) in found.message


def test_finds_belong_to_one_implementation(one, folder):
    paths = {name: one(ENTRY, fake("right", version="1")) if name == "right" else None for name in ("right",)}
    longer = Implementation(name="right_too", cross_entropy=fakes.right)
    other = one(ENTRY, longer)
    assert explore.stored(fake("right"), folder) == [paths["right"]]
    assert explore.stored(longer, folder) == [other]


# --- in pytest's terms


@pytest.fixture
def run(run, monkeypatch, tmp_path):
    """``run(option, ...)``: the exit status and the screen of ``pytest suite/ option ...`` with a specification of one case."""
    shipped = tmp_path / "shipped.yaml"
    header = {**explore.HEADER, "clause": "small", "cases": [{"id": "one", **ENTRY}]}
    shipped.write_text(yaml.safe_dump(header))
    cases = loader.load(shipped)
    monkeypatch.setattr(loader, "load_all", lambda: cases)
    monkeypatch.setenv("COLUMNS", "150")
    return run


def test_from_finding_to_a_script(run, rare, tmp_path, capsys):
    """Found, shown and stored; asked again first; run by --cases; turned into a script; and no part of the results."""
    results, name = tmp_path / "results", f"{FAKES}:rarely_wrong"
    status, screen = run("--impl", name, "--explore", 250, "--results", results)
    assert status == 1
    (path,) = (results / "found").iterdir()
    (same,) = rare[1].iterdir()
    assert (path.name, path.read_text()) == (same.name, same.read_text()), "the same seed draws the same cases"
    assert f"found/{path.stem}   loss   rarely_wrong" in screen
    assert f"pytest suite/ --impl {name} --cases {path}" in screen
    shown = yaml.safe_load(
        screen.split("nothing special")[-1]
        .split("what it needs:")[-1]
        .partition("\n\n")[2]
        .partition("\n===")[0]
        .partition("\n---")[0]
    )
    assert shown[0]["ignore_index"] == yaml.safe_load(path.read_text())["cases"][0]["ignore_index"], (
        "ready to be pasted"
    )
    assert "rarely_wrong: cases drawn: 250, " in screen
    assert "new kinds of failure: 1;" in screen
    assert {v.case for v in load(results).verdicts} == {"small/one"}
    assert load(results).complete

    status, screen = run("--impl", name, "--explore", 20, "--results", results, "--collect-only", "-q")
    order = [line.partition("::")[2] for line in screen.splitlines() if "::" in line]
    assert order[0] == f"test_explore[{path.stem}]"
    assert order[-1] == "test_explore[rarely_wrong]"
    status, screen = run("--impl", name, "--explore", 20, "--results", results)
    assert status == 1
    assert f"{path.stem}: failing: expected a loss of" in screen
    assert "new kinds of failure: 0;" in screen

    status, screen = run("--impl", name, "--cases", path)
    assert status == 1
    assert f"found/{path.stem}   loss" in screen

    capsys.readouterr()
    assert xentcheck_command(["repro", f"found/{path.stem}", "--impl", name, "--cases", str(path)]) == 0
    script = capsys.readouterr().out
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True
    ).stdout
    expected, found = (
        float(line.rpartition(" ")[2]) for line in out.splitlines() if line.startswith(("expected loss", "found loss"))
    )
    assert found == pytest.approx(1.5 * expected)

    path.write_text(path.read_text().replace("logits", "logit"))
    status, screen = run("--impl", name, "--explore", 1, "--results", results)
    assert status == 0
    assert f"{path.stem}: gone: no longer a valid case: " in screen


def test_without_the_option_nothing_is_drawn(run):
    status, screen = run("--impl", f"{FAKES}:right")
    assert status == 0
    assert "exploration" not in screen
    assert "11 passed" in screen, "the aspects and relations of the one case"


def test_a_run_that_only_explored_can_be_reported(run, tmp_path, monkeypatch):
    status, screen = run("--impl", f"{FAKES}:right", "--explore", 1, "--results", tmp_path, "-k", "explore")
    assert status == 0, screen
    monkeypatch.undo()  # the report shows the real cases
    assert xentcheck_command(["report", str(tmp_path), "--to", str(tmp_path / "reports")]) == 1, "it is no complete run"
    assert "This run did not end" in (tmp_path / "reports" / "README.md").read_text()


def test_an_interrupt_leaves_the_find(run, tmp_path):
    status, _ = run(
        "--impl", f"{FAKES}:interrupted_while_shrinking", "--explore", 500, "--results", tmp_path, "-k", "explore"
    )
    assert status == 2
    (path,) = (tmp_path / "found").iterdir()
    assert loader.load(path)


def test_workers_say_what_they_found(run, tmp_path):
    status, screen = run(
        "--impl",
        f"{FAKES}:off_by_a_thousandth,{FAKES}:right",
        "--explore",
        8,
        "--results",
        tmp_path,
        "-n",
        "2",
        "-k",
        "explore",
    )
    assert status == 1, screen
    assert "right: cases drawn: 8, " in screen
    assert "off_by_a_thousandth: cases drawn: 8, " in screen
    assert list((tmp_path / "found").glob("off-by-a-thousandth-*.yaml"))


@pytest.mark.parametrize("count", ["0", "-3"])
def test_a_count_that_is_none_is_a_usage_error(run, count):
    status, screen = run("--impl", "native", f"--explore={count}")
    assert status == 4
    assert f"--explore {count}: expected the number of cases to draw, 1 or more" in screen


def test_without_hypothesis_it_says_what_to_install(run, monkeypatch):
    monkeypatch.setattr(explore_plugin, "find_spec", lambda name: None)
    status, screen = run("--impl", "native", "--explore", "5")
    assert status == 4
    assert "--explore needs Hypothesis, which is not installed: pip install hypothesis" in screen


def test_exploring_needs_an_implementation(run):
    status, screen = run("--explore", 5)
    assert status == 4
    assert "the suite needs --impl" in screen


def test_a_place_that_cannot_be_written_is_told(run, tmp_path):
    (tmp_path / "found").write_text("a file where the folder should be")
    status, screen = run(
        "--impl", f"{FAKES}:off_by_a_thousandth", "--explore", 50, "--results", tmp_path, "-k", "explore"
    )
    assert status == 1
    assert "no find can be stored here" in screen


def test_the_progress_line_is_for_terminals(monkeypatch):
    shown = []
    reporter = type("Reporter", (), {"isatty": True, "rewrite": lambda self, text, **_: shown.append(text)})()
    capture = type("Capture", (), {"global_and_fixture_disabled": lambda self: contextlib.nullcontext()})()
    plugins = {"terminalreporter": reporter, "capturemanager": capture}
    manager = type("Manager", (), {"get_plugin": lambda self, name: plugins[name]})()
    options = {"results": Path("r")}
    config = type("Config", (), {"pluginmanager": manager, "getoption": lambda self, name: options[name]})()
    clock = iter(range(100))
    monkeypatch.setattr(explore_plugin.time, "monotonic", lambda: next(clock))
    show = explore_plugin.Exploring(config)._progress(200)
    show(explore.Exploration("native", 0, examples=40))
    assert shown == ["exploring native: 40 of 200, 0 new, 1 s"]
    reporter.isatty = False
    explore_plugin.Exploring(config)._progress(200)(explore.Exploration("native", 0, examples=60))
    assert len(shown) == 1


def test_the_digest_of_an_id_depends_on_the_question_alone():
    right = fake("right")
    ids = {
        explore.to_case({**ENTRY, **more}, right, Path("x.yaml")).id for more in ({}, {"why": "because"}, {"id": "old"})
    }
    assert len(ids) == 1
    assert json.dumps(sorted(CAPABILITIES))  # the ids do not depend on what an implementation claims
