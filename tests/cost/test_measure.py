"""Costs of a case: what is measured only after it is right, what stands in the record instead, and what the plugin does with it."""

import io
import math
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from rich.console import Console

import fakes
import suite_runs
from cost_material import HEADER, ONE, TWO
from suite_runs import ROOT, SUITE
from xentcheck import cli
from xentcheck.cost import measure, memory
from xentcheck.cost.figures import again, figure, summary
from xentcheck.cost.measure import Costs, question
from xentcheck.cost.measurement import MEASURES, PHASES, Measurement, Ratio, as_of_one
from xentcheck.implementation import Deviation, Implementation
from xentcheck.pytest_plugin import cost as plugin_cost
from xentcheck.results import record
from xentcheck.spec import speed_cases
from xentcheck.spec.batch import build
from xentcheck.spec.loader import load_all
from xentcheck.spec.yaml_document import CaseFileError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_rounds")]

NATIVE = Implementation(name="native", cross_entropy=torch.nn.functional.cross_entropy)


def impl(function, **more):
    return Implementation(name=function.__name__, cross_entropy=function, **more)


# --- profiles


def test_the_shipped_speed_cases_are_in_the_profiles_asked_for():
    ids = {case.clause.profile: case for case in speed_cases.load_profiles("all")}
    assert set(ids) == {"quick", "lm", "linear", "segmentation", "tagging", "classification", "sweeps", "cuda"}
    assert {case.clause.profile for case in speed_cases.load_profiles()} == {"quick"}
    assert {case.clause.profile for case in speed_cases.load_profiles("lm, sweeps")} == {"lm", "sweeps"}


def test_the_shapes_that_people_have():
    shapes = {case.question.logits.shape for case in speed_cases.load_speed()}
    assert {(2048, 32000), (512, 128256), (8192, 32000), (8, 21, 256, 256), (16384, 9), (4096, 1000)} <= shapes
    classes = {c.question.logits.shape[1] for c in speed_cases.load_speed() if c.clause.clause == "over-classes"}
    positions = {c.question.logits.shape[0] for c in speed_cases.load_speed() if c.clause.clause == "over-positions"}
    assert {128, 262144} <= classes
    assert {1, 65536} <= positions


def test_every_speed_case_says_what_a_call_may_take():
    assert all(case.question.memory_limit for case in speed_cases.load_speed())


def test_lint_reads_them_too(tmp_path, monkeypatch, capsys):
    (tmp_path / "tiny.yaml").write_text(HEADER + f"  - {{{ONE.replace('memory_limit', 'memory_limt')}}}\n")
    monkeypatch.setattr(speed_cases.load_speed, "__defaults__", (tmp_path,))
    assert cli.main(["lint"]) == 2
    assert "memory_limt: unknown key; did you mean memory_limit?" in capsys.readouterr().err


def test_speed_cases_are_not_part_of_the_specification():
    assert not {c.id for c in load_all()} & {c.id for c in speed_cases.load_speed()}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("lmm", "did you mean lm"),
        (",", "names no profile"),
        ("zzz", r"no such profile or speed case\. Known: .*quick.*all"),
    ],
)
def test_a_profile_that_is_none(names, message):
    with pytest.raises(CaseFileError, match=message):
        speed_cases.load_profiles(names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER.replace("profile: quick\n", "") + f"  - {{{ONE}}}\n", "profile: expected the name"),
        (HEADER + f"  - {{{ONE}, mode: vmap, reduction: none}}\n", "expected mode eager, compile or no_grad"),
        (HEADER + "  - {id: x, why: x, logits: {shape: [5]}}\n", r"logits.shape: expected \(N, C, ...\); found \(5,\)"),
        (
            HEADER + "  - {id: x, why: x, logits: {shape: [6, 5]}, target: {probabilities: random}}\n",
            "target.probabilities: expected classes, .*found probabilities",
        ),
        (HEADER + f"  - {{{ONE}, expect: {{loss: zero}}}}\n", "and no expect"),
        (HEADER + "  - {id: one, logits: {shape: [2, 3]}, memory_limit: lots}\n", "expected a size such as 6 GiB"),
        (HEADER + "  - {id: one, logits: {shape: [2, 3]}, memory_limit: -1}\n", "expected a size such as 6 GiB"),
    ],
)
def test_what_is_no_speed_case(tmp_path, text, message):
    (tmp_path / "tiny.yaml").write_text(text)
    with pytest.raises(CaseFileError, match=message):
        speed_cases.load_speed(tmp_path)


def test_an_id_stands_once(tmp_path):
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(HEADER + f"  - {{{ONE}}}\n")
    with pytest.raises(CaseFileError, match="the id must be unique"):
        speed_cases.load_speed(tmp_path)


def test_a_tiled_batch_has_no_two_equal_rows(speed_case):

    logits = build(speed_case("id: one, logits: {shape: [64, 4096], fill: tiled, scale: 2}")).input
    assert len(torch.unique(logits, dim=0)) == 64
    assert logits.std() == pytest.approx(2, rel=0.02)


# --- lines


def test_a_line_has_all_that_a_reader_needs(speed_case):
    line = Costs(NATIVE).speed(speed_case(), impl(fakes.right))
    assert (line.status, line.measure, line.profile, line.case) == ("pass", "speed", "quick", "tiny/one")
    assert line.logits.model_dump() == {"shape": (6, 5), "dtype": "float32", "bytes": 120}
    assert Measurement.model_validate_json(line.model_dump_json(by_alias=True)) == line
    for phase in PHASES:
        assert line.timing.ratio(phase).estimate > 0 < line.timing.control(phase).estimate
    assert line.timing.seconds("both") > 0 < line.timing.limit("both")
    assert line.timing.settings.threads == torch.get_num_threads()


def test_native_itself_has_a_control_and_no_ratio(speed_case):
    line = Costs(NATIVE).speed(speed_case(), NATIVE)
    assert line.timing.ratio("both") is None
    assert line.timing.control("both") is not None
    assert line.timing.seconds("both") > 0


@pytest.mark.parametrize(
    ("function", "status", "message"),
    [
        (fakes.off_by_a_thousandth, "fail", "expected a loss of"),
        (fakes.zero_gradient, "fail", "expected a gradient of"),
        (fakes.overwrites_input, "fail", "left|leaves its arguments"),
        (fakes.raises, "error", "RuntimeError: the kernel is out of order"),
        (fakes.skips, "error", "Skipped: no kernels here"),
        (fakes.leaves, "error", "found SystemExit: 0"),
        (fakes.returns_none, "error", "expected a loss and a gradient"),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_what_is_wrong_gets_its_failure_in_place_of_figures(speed_case, function, status, message):
    measuring, case = Costs(NATIVE), speed_case()
    for line in (measuring.speed(case, impl(function)), measuring.memory(case, impl(function))):
        assert line.status == status
        assert re.search(message, line.message)
        assert (line.timing, line.memory) == (None, None)
    assert measuring.speed(case, impl(fakes.right)).status == "pass", "the next one is not harmed"


def test_what_is_not_claimed_or_not_here(speed_case):
    measuring = Costs(NATIVE)
    small = impl(fakes.right, capabilities=frozenset({"float32"}))
    assert measuring.speed(speed_case(), small).status == "unsupported"
    away = impl(fakes.right, unavailable="no such library")
    assert measuring.memory(speed_case(), away).status == "unavailable"
    if not torch.cuda.is_available():
        line = Costs(NATIVE, "cuda").speed(speed_case(), impl(fakes.right))
        assert (line.status, line.message) == ("unavailable", "no cuda device here")


def test_what_only_a_gpu_can_take_is_not_begun_on_a_cpu(monkeypatch):
    monkeypatch.setattr(measure, "build", lambda case: pytest.fail("a batch was made"))
    (case, *_) = speed_cases.load_profiles("cuda")
    for device, said in (("cpu", "measured on a CUDA device only, by --device cuda"), ("cuda", "no cuda device here")):
        if device == "cpu" or not torch.cuda.is_available():
            line = Costs(NATIVE, device).memory(case, NATIVE)
            assert (line.status, line.message) == ("unavailable", said)


def test_a_known_deviation_gets_no_figure_either_and_hides_no_other(speed_case):
    of_loss, of_gradient = (
        Deviation("tiny/one", aspect=aspect, observed="a thousandth more", fault="value", link="x")
        for aspect in ("loss", "gradient")
    )
    line = Costs(NATIVE).speed(speed_case(), impl(fakes.off_by_a_thousandth, deviations=(of_loss, of_gradient)))
    assert line.status == "deviates"
    assert line.timing is None
    line = Costs(NATIVE).speed(speed_case(), impl(fakes.off_by_a_thousandth, deviations=(of_loss,)))
    assert line.status == "fail"
    assert line.message.startswith("expected a gradient of")
    line = Costs(NATIVE).speed(speed_case(), impl(fakes.off_by_a_thousandth))
    assert [m.split(" of ")[0] for m in line.message.split("; ") if m.startswith("expected")] == [
        "expected a loss",
        "expected a gradient",
    ]


@pytest.mark.parametrize(
    ("known", "said"),
    [({"fault": "nan"}, ""), ({"fault": "value", "max_units": 100}, "a deviation is known up to 100 units")],
)
def test_what_is_worse_than_the_known_deviation_fails(speed_case, known, said):
    both = tuple(
        Deviation("tiny/one", aspect=aspect, observed="a thousandth more", link="x", **known)
        for aspect in ("loss", "gradient")
    )
    line = Costs(NATIVE).speed(speed_case(), impl(fakes.off_by_a_thousandth, deviations=both))
    assert line.status == "fail"
    assert "units where 3 are allowed" in line.message
    assert line.message.endswith(said)


def eats(input, target, **options):
    torch.empty(2**40, dtype=torch.uint8)
    return fakes.right(input, target, **options)


def test_the_limit_of_a_case_stops_what_would_eat_the_machine(speed_case):
    line = Costs(NATIVE).memory(speed_case(), impl(eats))
    assert line.status == "fail"
    assert "expected at most 1 GiB beside the input" in line.message


def test_the_least_limit_holds(speed_case):
    measuring = Costs(NATIVE, limit=2**20)
    assert measuring._allowed(speed_case()) == 2**20
    assert Costs(NATIVE, limit=2**50)._allowed(speed_case()) <= 2**30


def test_arrays_are_checked_and_measured(speed_case):
    arrays = Implementation(name="arrays", loss_and_gradient=fakes.arrays)
    line = Costs(NATIVE).speed(speed_case("id: two, logits: {shape: [6, 5], fill: tiled}"), arrays)
    assert line.status == "pass", line.message
    assert list(line.timing.rounds["candidate"]) == ["both"]


LINEAR = "logits: {shape: [8, 5]}, linear: {features: 3, bias: true}"


def test_a_linear_layer_stands_before_what_is_not_fused(speed_case):
    seen = []

    def watched(input, target, **options):
        seen.append((tuple(input.shape), set(options)))
        return fakes.right(input, target, **options)

    measuring, case = Costs(NATIVE), speed_case(f"id: head, {LINEAR}")
    fused = Implementation(name="fused", linear_cross_entropy=fakes.fused)
    for implementation in (NATIVE, impl(watched), fused):
        for line in (measuring.memory(case, implementation), measuring.speed(case, implementation)):
            assert line.status == "pass", line.message
            assert line.logits.model_dump() == {"shape": (8, 5), "dtype": "float32", "bytes": 160}
            assert line.timing is None or line.timing.limit("both") is None
    assert ((8, 5), set()) in seen
    wrong = Implementation(name="wrong", linear_cross_entropy=lambda h, v, t, **o: fakes.fused(h, v.detach(), t, **o))
    assert measuring.speed(case, wrong).status == "error"


def test_a_layer_that_rounds_its_logits_is_not_laid_at_the_door_of_the_loss(speed_case):
    case = speed_case(f"id: half, {LINEAR}, dtype: bfloat16")
    line = Costs(NATIVE).speed(case, impl(fakes.right))
    assert (line.status, line.message[:9]) == ("unsupported", "not fused")
    assert Costs(NATIVE).speed(case, Implementation(name="f", linear_cross_entropy=fakes.fused)).timing


def test_a_forward_pass_alone(speed_case):
    """Without a gradient there is one time, and nothing is kept."""
    seen = []

    def watched(input, target, **options):
        seen.append(torch.is_grad_enabled())
        return fakes.right(input, target, **options)

    measuring = Costs(NATIVE)
    case = speed_case("id: alone, logits: {shape: [6, 5], fill: tiled}, mode: no_grad")
    line = measuring.speed(case, impl(watched))
    assert not any(seen)
    assert {phase for lane in line.timing.rounds.values() for phase in lane} == {"forward"}
    assert line.timing.whole == "forward"
    assert list(line.timing.first) == ["forward"]
    assert measuring.memory(case, NATIVE).memory.kept == 4
    arrays = measuring.speed(case, Implementation(name="arrays", loss_and_gradient=fakes.arrays))
    assert list(arrays.timing.rounds["candidate"]) == ["forward"]
    console = Console(width=200, record=True, file=io.StringIO())
    summary([line], console)
    assert re.search(r"tiny/alone +watched +\S.* within", console.export_text())


def test_what_is_known_to_overwrite_the_logits_gets_fresh_ones_for_each_step(speed_case, monkeypatch):
    """As a kernel does that puts the gradient in their place; native beside it still sees the logits."""
    firsts = []

    def in_place(input, target, upstream, **options):
        firsts.append(float(input[0, 0]))
        loss, gradient = fakes.arrays(input.clone(), target, upstream, **options)
        input.copy_(torch.as_tensor(gradient))
        return loss, input

    def watched(input, target, **options):
        seen.append(float(input.detach()[0, 0]))
        return fakes.right(input, target, **options)

    seen = []
    known = Deviation("*", aspect="purity", observed="other logits", fault="changed", link="x", certain=False)
    measuring = Costs(replace(NATIVE, cross_entropy=watched))
    monkeypatch.setattr(
        measuring._elsewhere, "slow_down", lambda case, here: Ratio(1.0, 1.0, 1.0)
    )  # it is watched here
    knows, does_not = (
        Implementation(name=name, loss_and_gradient=in_place, deviations=deviations)
        for name, deviations in (("knows", (known,)), ("does_not", ()))
    )
    case = speed_case("id: two, logits: {shape: [6, 5], fill: tiled}")
    lines = measuring.speed(case, knows), measuring.memory(case, knows)
    assert [line.status for line in lines] == ["pass"] * 2, [line.message for line in lines]
    assert lines[0].overwrites
    logits = set(build(case).input[:, 0].tolist())
    assert set(firsts + seen) <= logits
    step, prepare = measuring.training_step(case, knows)
    for _ in range(2):
        prepare()
        step()
    assert set(firsts) <= logits
    assert not measuring.speed(case, impl(fakes.right)).overwrites
    assert "found input changed" in measuring.speed(case, does_not).message


@pytest.mark.parametrize("name", ["target", "weight"])
def test_who_changes_the_question_fails_alone(speed_case, name):
    def changes(input, target, **options):
        {"target": target, **options}[name][0] = 1
        return fakes.right(input, target, **options)

    case = speed_case("id: two, logits: {shape: [6, 5], fill: tiled}, target: {ignore: first}, weight: random")
    measuring = Costs(NATIVE)
    line = measuring.memory(case, impl(changes))
    assert line.status == "fail"
    assert f"found {name} changed" in line.message
    assert measuring.memory(case, NATIVE).status == "pass"


def test_who_changes_the_upstream_gradient_fails_alone(speed_case):
    def changes(input, target, upstream, **options):
        found = fakes.arrays(input, target, upstream.clone(), **options)
        upstream.fill_(5)
        return found

    case = speed_case("id: two, logits: {shape: [6, 5], fill: tiled}, upstream: 2")
    measuring = Costs(NATIVE)
    line = measuring.memory(case, Implementation(name="changes", loss_and_gradient=changes))
    assert (line.status, "found upstream changed" in line.message) == ("fail", True)
    assert measuring.memory(case, NATIVE).status == "pass"


def test_the_copy_for_what_overwrites_the_logits_is_not_held_against_it(speed_case):
    def in_place(input, target, upstream, **options):
        return 0.0, input.zero_()

    known = Deviation("*", aspect="purity", observed="other logits", fault="changed", link="x")
    implementation = Implementation(name="frugal", loss_and_gradient=in_place, deviations=(known,))
    case = speed_case("id: large, logits: {shape: [2048, 16000]}, target: {ignore: all}, reduction: sum")
    line = Costs(NATIVE, limit=64 * 2**20).memory(case, implementation)
    assert line.status == "pass", line.message
    assert line.memory.forward < 2**20


def test_too_much_memory_only_when_it_is_measured_is_a_failure(speed_case, monkeypatch):
    def takes(*arguments):
        raise memory.OverLimit("expected at most 3 bytes")

    monkeypatch.setattr(memory, "measure", takes)
    line = Costs(NATIVE).memory(speed_case(), impl(fakes.right))
    assert (line.status, line.message) == ("fail", "expected at most 3 bytes")


def test_the_question_names_the_exact_case(speed_case):
    assert question(speed_case()) == question(speed_case())
    assert question(speed_case()) != question(speed_case(TWO))


# --- numbers for people


@pytest.mark.parametrize(
    ("found", "control", "text"),
    [
        (Ratio(1.5, 1.4, 1.6), Ratio(1.0, 0.99, 1.01), "1.5 (1.4 to 1.6)"),
        (Ratio(1.523, 1.519, 1.530), Ratio(1.0, 0.99, 1.01), "1.52 (1.52 to 1.53)"),
        (Ratio(1.02, 1.01, 1.03), Ratio(1.0, 0.96, 1.01), "~"),
        (Ratio(1.2, 0.9, 1.6), Ratio(1.0, 0.99, 1.01), "~"),
        (Ratio(0.98, 0.97, 0.99), Ratio(1.0, 0.97, 1.05), "~"),
        (Ratio(12.3, 9.2, 20.1), None, "12 (9 to 20)"),
    ],
)
def test_a_ratio_has_the_digits_that_its_interval_supports(found, control, text):
    assert figure(found, control) == text


def test_the_table_has_a_failure_in_place_of_a_time(speed_case):
    measuring = Costs(NATIVE)
    lines = [measuring.speed(speed_case(), impl(f)) for f in (fakes.right, fakes.zero_gradient)]
    console = Console(width=200, record=True, quiet=True)
    summary([*lines, measuring.memory(speed_case(), impl(fakes.right))], console)
    assert again(lines[0]) == ("pytest suite/test_speed.py --impl right --profile tiny/one")


# --- the plugin


def test_a_run_measures_prints_and_records(run_tiny, tmp_path):
    status, screen = run_tiny("--impl", suite_runs.impl("right", "refuses_label_smoothing"), "--results", tmp_path)
    assert status == 0, screen
    assert "cost: profile quick, 2 cases, about" in screen
    table = screen.split("xentcheck: cost")[1]
    assert "tiny/one" in table
    results = record.load(tmp_path)
    assert results.complete
    keys = {(c.measure, c.implementation, c.case) for c in results.costs}
    assert keys == {
        (m, i, c)
        for m in ("speed", "memory")
        for i in ("right", "refuses_label_smoothing")
        for c in ("tiny/one", "tiny/two")
    }
    assert all(len(c.timing.rounds["native"]["both"]) >= 8 for c in results.costs if c.measure == "speed")


def test_a_wrong_loss_fails_its_measurements(run_tiny):
    status, screen = run_tiny("--impl", suite_runs.impl("zero_gradient"))
    assert status == 1
    assert "expected a gradient of" in screen.split("xentcheck: cost")[0]
    assert "again      pytest suite/test_" in screen


def test_memory_comes_first_and_each_case_together(run_tiny):
    _, screen = run_tiny("--impl", suite_runs.impl("right"), "--collect-only", "-q")
    order = [line.split("::")[1] for line in screen.splitlines() if "::test_" in line]
    assert [name.split("[")[0] for name in order] == ["test_memory", "test_speed"] * 2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--benchmark-skip"], "--benchmark-skip"),
        (["-p", "no:benchmark"], "pytest-benchmark is switched off"),
        (["--cases", "small.yaml"], "--cases selects others"),
    ],
)
def test_when_nothing_is_measured(run_tiny, tmp_path, write, options, reason):
    path = write("id: one, logits: {shape: [3, 4]}")
    _, screen = run_tiny("--impl", suite_runs.impl("right"), *[str(path) if o == "small.yaml" else o for o in options])
    assert f"cost: not measured ({reason}" in screen
    assert "test_speed" not in screen
    assert "xentcheck: cost" not in screen


def test_disabled_benchmarks_are_no_measurements(run_tiny, tmp_path):
    _, screen = run_tiny("--impl", suite_runs.impl("right"), "--benchmark-disable", "--results", tmp_path)
    assert "2 passed, 2 skipped" in screen
    assert {c.measure for c in record.load(tmp_path).costs} == {"memory"}


def test_what_is_measured_already_is_not_measured_again(run_tiny, tmp_path):
    run_tiny("--impl", suite_runs.impl("right"), "--results", tmp_path)
    path = tmp_path / record.NAME
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]))  # without its end and the last measurement
    _, screen = run_tiny("--impl", suite_runs.impl("right"), "--results", tmp_path, "--resume")
    assert "1 passed, " in screen
    assert record.load(tmp_path).complete
    assert len(record.load(tmp_path).costs) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--memory-limit", "lots"], "--memory-limit: expected a size such as '6 GiB'; found 'lots'")],
)
def test_options_that_say_nothing(run_tiny, options, message):
    status, screen = run_tiny("--impl", suite_runs.impl("right"), *options)
    assert status == 4
    assert message in screen


def test_the_expected_time_is_said_for_people():
    assert plugin_cost.about(0.2) == "about 1 seconds"
    assert plugin_cost.about(100) == "about 2 minutes"
    for case in speed_cases.load_profiles("all"):
        for kind in MEASURES:
            assert 0 < plugin_cost.expected_seconds(kind, case, "cuda") < 6000
            assert (plugin_cost.expected_seconds(kind, case) == 0) == (case.clause.profile == "cuda")
    total = sum(plugin_cost.expected_seconds(m, c) for m in MEASURES for c in speed_cases.load_profiles())
    assert total * 2 < 60, "the quick profile takes a minute for two implementations"
    assert math.isfinite(total)


def test_the_last_of_several_measurements_holds(speed_case):
    lines = [Costs(NATIVE).memory(speed_case(), NATIVE) for _ in range(2)]
    assert as_of_one(lines) == {("native", "tiny/one", "memory"): lines[1]}


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal of its own")
def test_a_terminal_shows_what_is_measured_and_how_long_it_takes():
    ours, theirs = os.openpty()
    node = "suite/test_memory.py::test_memory[maskedce:quick/few-classes]"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", node, "--impl", "maskedce"]
    environment = {**os.environ, "PYTHONPATH": str(SUITE), "TERM": "xterm", "COLUMNS": "120"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=theirs, stderr=theirs)
    os.close(theirs)
    screen = b""
    while True:
        try:
            screen += os.read(ours, 4096)
        except OSError:  # its end
            break
    os.close(ours)
    assert process.wait() == 0, screen.decode()
    assert b"memory of maskedce on quick/few-classes; about 1 seconds left" in screen


def test_speed_cases_are_listed(capsys):
    assert cli.main(["cases", "quick"]) == 0
    assert "quick/pixels" in capsys.readouterr().out.splitlines()


def test_tests_of_the_same_name_elsewhere_are_not_ours(monkeypatch, tmp_path, run_tiny):
    (tmp_path / "test_memory.py").write_text("def test_mine():\n    pass\n")
    plugins = [o for name in ("conformance", "cost") for o in ("-p", f"xentcheck.pytest_plugin.{name}")]
    alone = "--import-mode=importlib"  # the suite has a module of that name,
    monkeypatch.setitem(sys.modules, "test_memory", None)  # which runs before this one may have imported,
    del sys.modules["test_memory"]  # and those after it are to find as it was
    _, screen = run_tiny("--impl", suite_runs.impl("right"), "--benchmark-skip", alone, *plugins, path=tmp_path)
    assert "1 passed" in screen
