"""The gate: red for what is missing or got worse, in numbers that were seen twice; green for a noisy machine; red for having done nothing."""

import json
import re
from dataclasses import replace

import pytest

from cost_material import BYTES, ENVIRONMENT, QUESTIONS, broken, memory, results, speed, verdict
from suite_runs import impl
from xentcheck import cli
from xentcheck.gate.baseline import GateError, as_text, make_baseline, read_baseline
from xentcheck.gate.compare import BETTER, INCONCLUSIVE, MISSING, WORSE, compare
from xentcheck.gate.confirm import measurer
from xentcheck.gate.selection import Selection
from xentcheck.gate.summary import markdown
from xentcheck.results.merge import save
from xentcheck.spec.mistakes import UsageError


def baseline(results, *before):
    return make_baseline(results, *before)[0]


BASE = baseline(results(memory(), speed()))


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
    assert report.compared == {"verdicts": 1, "memory": 1, "speed": 1}
    assert markdown(report).startswith("## Gate: green\n\n0 missing, 0 worse, 0 better, 0 inconclusive.")


def test_memory_taken_out_of_sight_is_compared_as_far_as_it_is_exact():
    for before, now, expected in (
        (0, 2**30, [(WORSE, "memory")]),
        (2**30, 0, [(BETTER, "memory")]),
        (2**30, 2**30 + 2**24, []),
        (0, 25 * 2**20, []),
    ):
        base = baseline(results(memory(uncounted=before), speed()))
        assert outcomes(compare(results(memory(uncounted=now), speed()), base)) == expected


@pytest.mark.parametrize("status", ["fail", "error", "deviates", "unsupported", "unavailable", "crash", "timeout"])
def test_a_verdict_that_got_worse_is_red(status):
    report = compare(results(memory(), speed(), verdicts=[verdict(status)]), BASE)
    assert outcomes(report) == [(WORSE, "verdict")]
    assert report.is_red()
    assert "`pytest suite/ --impl path.py:mine --cases plain/one`" in markdown(report)


def test_a_verdict_that_got_better_is_green_and_said():
    base = baseline(results(memory(), speed(), verdicts=[verdict("fail")]))
    report = compare(results(memory(), speed()), base)
    assert (outcomes(report), report.is_red(strict=True)) == ([(BETTER, "verdict")], False)


def test_a_failure_that_is_known_to_the_baseline_is_no_news():
    failing = results(memory(), speed(), verdicts=[verdict("fail"), verdict(aspect="gradient")])
    assert outcomes(compare(failing, baseline(failing))) == []


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
    assert outcomes(compare(results(broken(memory()), speed()), BASE)) == [(WORSE, "memory")]


def test_a_case_that_was_edited_is_red_until_the_baseline_is_made_anew():
    for costs, kind in (
        ([memory(question="q2"), speed()], "memory"),
        ([memory(), speed(0.5, question="q2")], "speed"),
        ([memory(), speed(device="cuda")], "speed"),
    ):
        report = compare(results(*costs), BASE)
        assert (outcomes(report), report.is_red()) == ([(WORSE, kind)], True)
        assert "write a new baseline" in markdown(report)
    report = compare(results(memory(), speed(), questions={**QUESTIONS, "plain/one": "q9"}), BASE)
    assert (outcomes(report), report.is_red()) == ([(WORSE, "case")], True)


# --- what the run lacks


LARGE = results(
    memory(),
    speed(),
    memory("speed/two"),
    speed(case="speed/two"),
    verdicts=[verdict(case=f"plain/{n}", aspect=a) for n in range(9) for a in ("loss", "gradient")],
)


@pytest.mark.parametrize(
    ("run_of", "missing"),
    [
        (lambda r: replace(r, verdicts=r.verdicts[:5]), 13),
        (lambda r: replace(r, verdicts=tuple(v for v in r.verdicts if v.aspect == "loss")), 9),
        (lambda r: replace(r, verdicts=()), 18),
        (lambda r: replace(r, costs=r.costs[:2]), 2),
        (lambda r: replace(r, costs=tuple(m for m in r.costs if m.measure == "memory")), 2),
        (lambda r: replace(r, costs=()), 4),
    ],
    ids=["most cases", "one aspect", "all verdicts", "one speed case", "speed", "costs"],
)
def test_every_key_that_the_run_lacks_is_red(run_of, missing):
    report = compare(run_of(LARGE), baseline(LARGE))
    assert len(report.of(MISSING)) == missing == len(report.findings)
    assert report.is_red()
    assert f"{missing} missing" in markdown(report)


def test_an_implementation_that_calls_itself_otherwise_is_missing():
    other = results(
        memory(name="other"), speed(9.0, name="other"), name="other", verdicts=[verdict("unsupported", name="other")]
    )
    report = compare(other, BASE)
    assert {f.implementation for f in report.of(MISSING)} == {"mine"}
    assert report.is_red()
    assert "Not in the baseline, so only held to what holds for all: other." in markdown(report)


@pytest.mark.parametrize(
    ("selected", "keys"),
    [
        ("plain/3", 2),
        ("plain", 18),
        ("speed/*", 4),
        ("mine:plain/1,mine:plain/2", 4),
        ("*:*:verdicts", 18),
        ("*:*:costs", 4),
        ("*:*:loss", 9),
        ("min?:*:speed", 2),
    ],
)
def test_a_part_of_the_baseline_is_selected_and_said(selected, keys):
    selection = Selection(selected)
    empty = replace(LARGE, verdicts=(), costs=())
    assert len(compare(empty, baseline(LARGE), selection=selection).of(MISSING)) == keys
    report = compare(LARGE, baseline(LARGE), selection=selection)
    assert not report.is_red()
    assert f"Only keys that match `{selected}` were compared: {keys} of 22." in markdown(report)


def test_what_is_not_selected_is_not_held_against_it():
    worse = results(memory(kept=900), speed(), verdicts=[verdict("fail"), verdict("fail", "plain/new")])
    assert outcomes(compare(worse, BASE, selection=Selection("*:*:speed"))) == []
    assert len(outcomes(compare(worse, BASE, selection=Selection("*:*:verdicts")))) == 2


@pytest.mark.parametrize("text", [",", "a:b:c:d", ":x", "a::loss"])
def test_what_selects_nothing_is_refused(text):
    with pytest.raises(UsageError, match="--gate-only"):
        Selection(text)


def test_a_selection_that_matches_nothing_is_red():
    report = compare(results(memory(), speed()), BASE, selection=Selection("plian/*"))
    assert report.is_red()
    assert "no key of the baseline matches plian/*" in markdown(report)


# --- speed


def test_a_slow_down_is_red_once_a_second_process_says_so_too():
    report = compare(results(memory(), speed(1.25)), BASE, put(speed(1.24, seed=2)))
    assert outcomes(report) == [(WORSE, "speed")]
    assert report.is_red()
    text = markdown(report)
    assert "1.25 (" in text
    assert "; then 1.24 (" in text
    assert "pytest suite/test_speed.py --impl path.py:mine --profile speed/one" in text


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
    now = speed(2.0, threads=8)
    report = compare(results(memory(), now), BASE, put(now, now))
    assert outcomes(report) == [(INCONCLUSIVE, "speed")]
    assert "8 threads" in markdown(report)


def test_a_second_process_that_cannot_measure_leaves_it_inconclusive():
    def refuses(measured):
        raise GateError("there is no such file")

    report = compare(results(memory(), speed(1.5)), BASE, refuses)
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


def test_slow_creep_is_caught_by_the_anchor():
    """4.9 % a time, each of which is accepted by a new baseline."""
    base, seen = BASE, []
    for step in range(1, 6):
        creeping = results(memory(), speed(1.049**step, noise=0.001, control_noise=0.001))
        report = compare(creeping, base, put(speed(1.049**step, noise=0.001, control_noise=0.001, seed=9)))
        seen.append(report.is_red())
        base = baseline(creeping, base)
    assert seen == [False, True, True, True, True]
    assert "beyond the anchor of 2026-01-01, 1.00" in markdown(report)
    assert not compare(creeping, baseline(creeping, base, Selection("mine:*")), put()).is_red()


def test_an_anchor_moves_to_what_is_better_and_not_to_what_is_worse():
    def anchor(ratio, before):
        made = baseline(results(memory(), speed(ratio, noise=0.001)), before)
        return made, made.implementations["mine"].speed["speed/one"].anchor.ratio.estimate

    base, first = anchor(0.5, BASE)
    assert first == pytest.approx(0.5, abs=0.01)
    base, second = anchor(0.51, base)
    assert second == first
    assert anchor(0.8, base)[1] == first


# --- doing nothing is red


def test_a_truncated_run_is_red():
    assert compare(results(memory(), speed(), complete=False), BASE).is_red()


# --- baselines


def test_a_baseline_holds_no_seconds():
    text = as_text(BASE)
    assert "second" not in text
    assert BASE.implementations["mine"].speed["speed/one"].ratio.estimate == pytest.approx(1, abs=0.01)
    assert type(BASE).model_validate(json.loads(text)) == BASE


def test_the_ratios_of_several_runs_are_taken_together():
    low, middle, high = (speed(r, noise=0.001) for r in (0.95, 1.0, 1.08))
    ratio = baseline(results(low, high, middle)).implementations["mine"].speed["speed/one"].ratio.ratio
    assert ratio == tuple(pytest.approx(v, abs=0.005) for v in (1.0, 0.95, 1.08))


def test_a_ratio_that_the_control_does_not_bear_out_is_left_out():
    value, left_out = make_baseline(results(memory(), speed(control=1.2)))
    assert value.implementations["mine"].speed == {}
    assert "measure again on a quieter machine" in left_out[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no baseline can be read"),
        ("{", "expected a baseline in JSON"),
        ("", "expected a baseline in JSON"),
        ("[" * 100_000, "expected a baseline in JSON; found maximum recursion"),
        ('{"format": 2, "format": 2}', "a key twice among format, format"),
        ("{}", "expected a baseline of format 2; found 'None'"),
        ("[]", "expected a baseline of format 2"),
        ("null", "expected a baseline of format 2"),
        ('{"format": 1, "implementations": {}}', "expected a baseline of format 2; found '1'"),
        ('{"format": true}', "expected a baseline of format 2; found 'True'"),
        ('{"format": 2}', r"edition: Field required; found .* \(and 4 more\)"),
    ],
)
def test_what_is_no_baseline(tmp_path, content, message):
    path = tmp_path / "baseline.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(GateError, match=message) as found:
        read_baseline(path)
    assert "xentcheck baseline RESULTS --to" in str(found.value)
    assert str(found.value).startswith(str(path))


MINE = "implementations: mine: "


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("implementations.mine.verdicts.plain/one.loss", "great", "Input should be .*found 'great'"),
        ("implementations.mine.speed.speed/one.ratio.low", float("nan"), "should be a finite number.* found 'nan'"),
        ("implementations.mine.speed.speed/one.ratio.low", 7.0, "expected low <= estimate <= high"),
        ("implementations.mine.speed.speed/one.ratio.high", -1, "greater than 0"),
        ("implementations.mine.speed.speed/one.ratio", [1, 1, 1], "valid dictionary or instance of Interval"),
        ("implementations.mine.speed.speed/one.threads", 0, "greater than or equal to 1"),
        ("implementations.mine.speed.speed/one.device", "tpu", "'cpu' or 'cuda'"),
        ("implementations.mine.speed.speed/one.anchor", None, "instance of Anchor"),
        ("implementations.mine.memory.speed/one.kept", 1e18, "less than or equal to"),
        ("implementations.mine.memory.speed/one.kept", -1, "greater than or equal to 0"),
        ("implementations.mine.memory.speed/one.kept", "many", "valid integer"),
        ("implementations.mine.memory.speed/one.kpet", 1, "Extra inputs are not permitted"),
        ("implementations.mine.verdicts.plain/one", {}, "expected verdicts, memory or speed; found none"),
        ("implementations.mine.verdicts.plain/one", "pass", "valid dictionary"),
        ("implementations.mine.capabilities", "weight", "valid tuple"),
        ("implementations.mine", {}, "Field required"),
        ("implementations", {}, "at least 1 item"),
        ("environment", {"torch": "2.13"}, "environment: cpu: Field required"),
        ("questions", [], "valid dictionary"),
        ("cases", 7, "valid string"),
    ],
)
def test_a_baseline_edited_by_hand_is_refused_in_one_line(tmp_path, where, value, message):
    content = json.loads(as_text(BASE))
    *parents, last = where.split(".")
    place = content
    for name in parents:
        place = place[name]
    place[last] = value
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(content))
    with pytest.raises(GateError, match=message) as found:
        read_baseline(path)
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 600


def test_long_lists_are_cut_and_pipes_escaped():
    many = [verdict("fail", f"plain/{n}") for n in range(60)]
    text = markdown(compare(results(memory(), speed(), verdicts=[replace(v, reason="a|b") for v in many]), BASE))
    assert "and 20 more" in text
    assert "a\\|b" in text


# --- the command line and pytest


def test_the_commands(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    save(results(memory(), speed()), tmp_path / "good")
    save(results(memory(kept=101), speed()), tmp_path / "bad")
    save(results(memory(), speed(2.0)), tmp_path / "slow")
    where = str(tmp_path / "baseline.json")
    assert cli.main(["baseline", str(tmp_path / "good"), "--to", where]) == 0
    assert cli.main(["gate", str(tmp_path / "good"), where]) == 0
    assert cli.main(["gate", str(tmp_path / "bad"), where]) == 1
    assert cli.main(["gate", str(tmp_path / "bad"), where, "--gate-only", "*:*:verdicts"]) == 0
    out = capsys.readouterr().out
    assert "## Gate: green" in out
    assert "kept 100 bytes (100)" in out
    assert (tmp_path / "summary.md").read_text().count("## Gate: ") == 3
    assert cli.main(["gate", str(tmp_path / "slow"), where]) == 0
    assert "to do so, name mine by --impl" in capsys.readouterr().out, "no code is run that a record names"
    assert cli.main(["gate", str(tmp_path / "bad"), str(tmp_path / "absent.json")]) == 2
    before = read_baseline(tmp_path / "baseline.json").implementations["mine"].speed["speed/one"].anchor
    for more, kept in ((["--anchor-anew", "*"], False), ([], True), (["--forget"], False)):
        assert cli.main(["baseline", str(tmp_path / "slow"), "--to", where, *more]) == 0
        now = read_baseline(tmp_path / "baseline.json").implementations["mine"].speed["speed/one"].anchor
        assert (now == before) is kept
        cli.main(["baseline", str(tmp_path / "good"), "--to", where, "--forget"])


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
    assert re.search(r"2 missing, .*\n.*| `right` | memory | 2 cases |", screen)
    status, screen = run_tiny("--impl", right, "--gate", where, "--gate-only", "tiny/two")
    assert status == 0, screen
    assert "Only keys that match `tiny/two` were compared: 1 of 2." in screen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gate", "/nowhere.json"], "no baseline can be read"),
        (["--strict-perf"], "--strict-perf goes with --gate"),
        (["--gate-only", "x"], "--gate-only goes with --gate"),
    ],
)
def test_a_gate_that_cannot_be(run_tiny, options, message):
    status, screen = run_tiny("--impl", impl("right"), *options)
    assert status == 4
    assert message in screen


@pytest.mark.slow
def test_a_second_process_measures_the_same(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    asked = speed(case="quick/few-classes", name="maskedce")
    (again,) = measurer({"maskedce": "maskedce"})([asked])
    assert (again.key, again.status) == (asked.key, "pass")
    assert again.timing.ratio("both").estimate > 0


@pytest.mark.slow
def test_a_second_process_that_measures_nothing_says_why():
    with pytest.raises(GateError, match=r"the second process measured nothing: .*there is no implementation"):
        measurer({"mine": "nosuchthing"})([speed(case="quick/few-classes")])
