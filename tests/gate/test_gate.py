"""The gate: red for what got worse, in numbers that were seen twice; green for a noisy machine; red for having done nothing."""

import json
from dataclasses import replace

import pytest

from cost_material import BYTES, ENVIRONMENT, line, memory, results, speed, verdict
from suite_runs import impl
from xentcheck import cli
from xentcheck.gate import confirm as second_process
from xentcheck.gate.baseline import GateError, as_text, read_baseline
from xentcheck.gate.baseline import make_baseline as baseline
from xentcheck.gate.compare import BETTER, INCONCLUSIVE, WORSE, compare, markdown
from xentcheck.results import record

BASE = baseline(results(memory(), speed()))[0]


def outcomes(report):
    return [(f.outcome, f.kind) for f in report.findings]


def put(*lines):
    """A second process that measures these, one after another."""
    queue = list(lines)
    return lambda asked: [queue.pop(0)]


# --- exact: verdicts, capabilities, memory


def test_the_same_again_is_green():
    report = compare(results(memory(), speed(seed=1)), BASE)
    assert (outcomes(report), report.is_red(strict=True)) == ([], False)
    assert report.compared == {"verdicts": 1, "capabilities": 1, "memory": 1, "speed": 1}
    assert markdown(report).startswith("## Gate: green\n\n0 worse, 0 better, 0 inconclusive.")


def test_memory_taken_out_of_sight_is_compared_as_far_as_it_is_exact():
    for before, now, expected in (
        (0, 2**30, [(WORSE, "memory")]),
        (2**30, 0, [(BETTER, "memory")]),
        (2**30, 2**30 + 2**24, []),
        (0, 25 * 2**20, []),
    ):
        base = baseline(results(memory(uncounted=before), speed()))[0]
        assert outcomes(compare(results(memory(uncounted=now), speed()), base)) == expected
    del base["implementations"]["mine"]["memory"]["speed/one"]["uncounted"]  # an older baseline
    assert outcomes(compare(results(memory(uncounted=2**30), speed()), base)) == []


@pytest.mark.parametrize("status", ["fail", "error", "deviates", "unsupported", "unavailable", "crash", "timeout"])
def test_a_verdict_that_got_worse_is_red(status):
    report = compare(results(memory(), speed(), verdicts=[verdict(status)]), BASE)
    assert outcomes(report) == [(WORSE, "verdict")]
    assert report.is_red()
    assert "`pytest suite/ --impl path.py:mine --cases plain/one`" in markdown(report)


def test_a_verdict_that_got_better_is_green_and_said():
    base = baseline(results(memory(), speed(), verdicts=[verdict("fail")]))[0]
    report = compare(results(memory(), speed()), base)
    assert (outcomes(report), report.is_red(strict=True)) == ([(BETTER, "verdict")], False)


def test_a_failure_that_is_known_to_the_baseline_is_no_news():
    failing = results(memory(), speed(), verdicts=[verdict("fail"), verdict(aspect="gradient")])
    assert outcomes(compare(failing, baseline(failing)[0])) == []


def test_a_new_case_that_fails_is_red_and_one_that_passes_is_not():
    for status, expected in (("fail", [(WORSE, "verdict")]), ("pass", [])):
        more = results(memory(), speed(), verdicts=[verdict(), verdict(status, "plain/new")])
        assert outcomes(compare(more, BASE)) == expected


def test_a_lost_capability_is_red_and_a_new_one_is_not():
    assert outcomes(compare(results(memory(), speed(), capabilities=["weight"]), BASE)) == [(WORSE, "capability")]
    more = compare(results(memory(), speed(), capabilities=["weight", "vmap", "compile"]), BASE)
    assert (outcomes(more), more.is_red(strict=True)) == ([(BETTER, "capability")], False)


@pytest.mark.parametrize("part", ["forward", "kept", "backward", "retained"])
@pytest.mark.parametrize(("change", "outcome"), [(1, WORSE), (-1, BETTER)])
def test_a_single_byte_is_a_difference(part, change, outcome):
    now = memory(**{part: BYTES[part] + change})
    report = compare(results(now, speed()), BASE)
    assert outcomes(report) == [(outcome, "memory")]
    assert f"{change:+} bytes" in markdown(report)


def test_what_was_measured_and_now_fails_is_red():
    broken = {**memory(), "status": "fail", "message": "expected at most 1 GiB"}
    assert outcomes(compare(results(broken, speed()), BASE)) == [(WORSE, "memory")]


def test_another_question_is_not_compared():
    report = compare(results({**memory(backward=900), "question": "q2"}, speed()), BASE)
    assert outcomes(report) == [(INCONCLUSIVE, "memory")]


# --- speed


def test_a_slow_down_is_red_once_a_second_process_says_so_too():
    report = compare(results(memory(), speed(1.25)), BASE, put(speed(1.24, seed=2)))
    assert outcomes(report) == [(WORSE, "speed")]
    assert report.is_red()
    text = markdown(report)
    assert "1.25 (" in text
    assert "; then 1.24 (" in text
    assert "pytest 'suite/test_speed.py::test_speed[mine:speed/one]' --impl path.py:mine --profile quick" in text


def test_a_slow_down_that_is_not_seen_twice_is_inconclusive():
    report = compare(results(memory(), speed(1.25)), BASE, put(speed(1.0)))
    assert (outcomes(report), report.is_red(), report.is_red(strict=True)) == ([(INCONCLUSIVE, "speed")], False, True)
    assert "not confirmed" in markdown(report)


def test_without_a_second_process_nothing_is_called_slow():
    report = compare(results(memory(), speed(2.0)), BASE)
    assert (outcomes(report), report.is_red()) == ([(INCONCLUSIVE, "speed")], False)


@pytest.mark.parametrize("bad", [{"control": 1.04}, {"control": 0.93}, {"control_noise": 0.3}])
def test_a_control_that_is_not_one_makes_it_inconclusive(bad):
    noisy = speed(2.0, **bad)
    report = compare(results(memory(), noisy), BASE, put(noisy, noisy))
    assert (outcomes(report), report.is_red()) == ([(INCONCLUSIVE, "speed")], False)
    assert "control" in markdown(report)


def test_a_noisy_process_is_followed_by_two_that_agree():
    noisy = speed(1.0, control_noise=0.3)
    report = compare(results(memory(), noisy), BASE, put(speed(1.3), speed(1.3, seed=3)))
    assert outcomes(report) == [(WORSE, "speed")]
    assert outcomes(compare(results(memory(), noisy), BASE, put(speed(1.0)))) == []


def test_small_differences_are_none():
    for ratio in (0.97, 1.03, 1.05):
        assert outcomes(compare(results(memory(), speed(ratio)), BASE)) == []


def test_faster_is_better():
    assert outcomes(compare(results(memory(), speed(0.7)), BASE)) == [(BETTER, "speed")]


def test_on_another_machine_only_the_crudest_slow_down_is_said():
    elsewhere = ENVIRONMENT | {"cpu": "another CPU"}
    for ratio, expected in ((1.5, []), (3.0, [(WORSE, "speed")])):
        now = results(memory(), speed(ratio), environment=elsewhere)
        report = compare(now, BASE, put(speed(ratio, seed=5)))
        assert outcomes(report) == expected
        assert "another CPU" in markdown(report)


def test_other_threads_are_another_measurement():
    now = speed(2.0)
    now["settings"] = {"threads": 8}
    report = compare(results(memory(), now), BASE, put(now, now))
    assert outcomes(report) == [(INCONCLUSIVE, "speed")]
    assert "8 threads" in markdown(report)


def test_a_second_process_that_cannot_measure_leaves_it_inconclusive():
    def broken(lines):
        raise GateError("there is no such file")

    report = compare(results(memory(), speed(1.5)), BASE, broken)
    assert outcomes(report) == [(INCONCLUSIVE, "speed")]
    assert "there is no such file" in markdown(report)


def test_false_alarms_and_catches_of_noise_that_is_known():
    """100 gates on the same code and on 25 % more, every process with noise of its own."""
    for ratio, expected in ((1.0, 0), (1.25, 100)):
        red = 0
        for seed in range(100):
            now = results(memory(), speed(ratio, noise=0.04, seed=3 * seed))
            more = put(speed(ratio, noise=0.04, seed=3 * seed + 1), speed(ratio, noise=0.04, seed=3 * seed + 2))
            red += compare(now, BASE, more).is_red()
        assert red == expected


# --- doing nothing is red


@pytest.mark.parametrize(
    ("costs", "verdicts", "problem"),
    [
        ([speed()], [verdict()], "holds the memory of mine; this run measured none"),
        ([memory()], [verdict()], "holds the speed of mine; this run measured none"),
        ([memory(), speed()], [], "holds the verdicts on mine; this run reached none"),
    ],
)
def test_what_was_not_done_is_red(costs, verdicts, problem):
    report = compare(results(*costs, verdicts=verdicts), BASE)
    assert report.is_red()
    assert problem in markdown(report)


def test_an_unknown_implementation_and_a_truncated_run_are_red():
    other = compare(results(memory(name="other"), name="other", verdicts=[verdict(name="other")]), BASE)
    assert "nothing to compare" in markdown(other)
    assert other.is_red()
    assert compare(results(memory(), speed(), complete=False), BASE).is_red()


def test_a_baseline_without_anything_compares_nothing():
    empty = baseline(results(verdicts=()))[0]
    assert compare(results(verdicts=()), empty).is_red()


# --- baselines


def test_a_baseline_holds_no_seconds():
    text = as_text(BASE)
    assert "second" not in text
    assert BASE["implementations"]["mine"]["speed"]["speed/one"]["ratio"][0] == pytest.approx(1, abs=0.01)
    assert json.loads(text) == BASE


def test_the_ratios_of_several_runs_are_taken_together():
    low, middle, high = (speed(r, noise=0.001) for r in (0.95, 1.0, 1.08))
    ratio = baseline(results(low, high, middle))[0]["implementations"]["mine"]["speed"]["speed/one"]["ratio"]
    assert ratio == [pytest.approx(v, abs=0.005) for v in (1.0, 0.95, 1.08)]


def test_a_ratio_that_the_control_does_not_bear_out_is_left_out():
    value, left_out = baseline(results(memory(), speed(control=1.2)))
    assert value["implementations"]["mine"]["speed"] == {}
    assert "measure again on a quieter machine" in left_out[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no baseline can be read"),
        ("{", "expected a baseline in JSON"),
        ("{}", "expected a baseline of format 1"),
    ],
)
def test_what_is_no_baseline(tmp_path, content, message):
    path = tmp_path / "baseline.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(GateError, match=message):
        read_baseline(path)


def test_long_lists_are_cut_and_pipes_escaped():
    many = [verdict("fail", f"plain/{n}") for n in range(60)]
    text = markdown(compare(results(memory(), speed(), verdicts=[replace(v, reason="a|b") for v in many]), BASE))
    assert "and 20 more" in text
    assert "a\\|b" in text


# --- the command line and pytest


def test_the_commands(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    monkeypatch.setattr(second_process, "measure_again", put())
    record.save(results(memory(), speed()), tmp_path / "good")
    record.save(results(memory(kept=101), speed()), tmp_path / "bad")
    where = str(tmp_path / "baseline.json")
    assert cli.main(["baseline", str(tmp_path / "good"), "--to", where]) == 0
    assert cli.main(["gate", str(tmp_path / "good"), where]) == 0
    assert cli.main(["gate", str(tmp_path / "bad"), where]) == 1
    out = capsys.readouterr().out
    assert "## Gate: green" in out
    assert "kept 100 bytes (100)" in out
    assert (tmp_path / "summary.md").read_text() == out.split("\n", 1)[1].replace(
        "## Gate: red", "\n## Gate: red"
    ) + "\n"
    assert cli.main(["gate", str(tmp_path / "bad"), str(tmp_path / "absent.json")]) == 2


def test_a_run_with_a_gate(run_tiny, quick_rounds, tmp_path):
    right = impl("right")
    status, _ = run_tiny("--impl", right, "--results", tmp_path / "one")
    assert status == 0
    where = tmp_path / "baseline.json"
    cli.main(["baseline", str(tmp_path / "one"), "--to", str(where)])
    value = json.loads(where.read_text())
    value["implementations"]["right"]["speed"] = {}  # two rounds of nothing say nothing
    where.write_text(json.dumps(value))
    status, screen = run_tiny("--impl", right, "--gate", where)
    assert status == 0, screen
    assert "## Gate: green" in screen
    value["implementations"]["right"]["memory"]["tiny/one"]["kept"] -= 4
    where.write_text(json.dumps(value))
    status, screen = run_tiny("--impl", right, "--gate", where)
    assert status == 1
    assert "## Gate: red" in screen
    status, screen = run_tiny("--impl", right, "--gate", where, "--benchmark-skip")
    assert status == 1, "measuring nothing is red"
    assert "this run measured none of it" in screen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gate", "/nowhere.json"], "no baseline can be read"),
        (["--strict-perf"], "--strict-perf says how strict"),
    ],
)
def test_a_gate_that_cannot_be(run_tiny, options, message):
    status, screen = run_tiny("--impl", impl("right"), *options)
    assert status == 4
    assert message in screen


def test_a_second_process_measures_the_same(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    asked = line("speed", "quick/few-classes", "maskedce") | {"source": "maskedce"}
    (again,) = second_process.measure_again([asked])
    assert (again["implementation"], again["case"], again["status"]) == ("maskedce", "quick/few-classes", "pass")
    assert len(again["rounds"]["candidate"]["both"]) >= 8


def test_a_second_process_that_finds_no_implementation():
    with pytest.raises(GateError, match="could not be measured a second time"):
        second_process.measure_again([line("speed", "quick/few-classes") | {"source": "nobody"}])
