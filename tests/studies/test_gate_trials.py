"""The trials of the gate: what they inject, that they go on where they stopped, and what their page says."""

import json
import time

import pytest
import torch

import gate_trials
from gate_trials import KINDS, inject, is_right, page, plan, wilson
from xentcheck.cost import memory, timing
from xentcheck.implementation import Implementation
from xentcheck.spec.batch import build


@pytest.fixture
def batch(case):
    return build(case("logits: {shape: [64, 512]}, target: {ignore: {rows: [1]}}"))


def steps(batch, kind):
    return timing.step(Implementation(name=kind, cross_entropy=inject(kind)), batch)


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_stays_right(batch, kind):
    one = steps(batch, kind)
    x = batch.input.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(x, batch.target)
    found = one.forward()
    assert torch.allclose(found, loss)
    assert torch.allclose(*one.backward(found), torch.autograd.grad(loss, x)[0])


@pytest.mark.parametrize(
    ("kind", "factor"), [("identical", 1.0), ("slower-10", 1.1), ("slower-25", 1.25), ("slower-100", 2.0)]
)
def test_a_slow_down_has_its_size(monkeypatch, kind, factor):
    """By a clock that goes on by 1 when it is looked at and by 1000 in the loss itself, forward and backward."""
    now = [0.0]

    def clock():
        now[0] += 1
        return now[0]

    class Works(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            now[0] += 1000
            return x.sum()

        @staticmethod
        def backward(ctx, gradient):
            now[0] += 1000
            return gradient.expand(3, 4)

    working = Implementation(name="works", cross_entropy=lambda x, target, **options: Works.apply(x))
    monkeypatch.setattr(gate_trials, "find", lambda name: [working])
    monkeypatch.setattr(time, "perf_counter", clock)
    candidate = inject(kind)
    x = torch.ones(3, 4, requires_grad=True)
    loss = candidate(x, torch.zeros(3))
    middle = now[0]
    loss.backward()
    assert middle == pytest.approx(1000 * factor, rel=0.02)
    assert now[0] - middle == pytest.approx(1000 * factor, rel=0.02)


def test_one_more_buffer_is_one_more_buffer(batch):
    found = {
        kind: memory.measure(
            timing.step(Implementation(name="i", cross_entropy=inject(kind)), batch), batch.input.device
        )
        for kind in ("identical", "one-more-buffer")
    }
    assert found["one-more-buffer"].kept - found["identical"].kept == batch.input.numel() * 4


def test_the_plan_has_every_trial_and_each_kind_early():
    trials = plan()
    assert len(trials) == len(set(trials)) == sum(count for count, _, _ in KINDS.values())
    assert {kind for kind, _ in trials[: len(KINDS)]} == set(KINDS)
    assert [count for count, _, _ in KINDS.values()] == [40, 20, 20, 20, 10]


def test_trials_go_on_where_they_stopped(tmp_path, monkeypatch, capsys):
    made = []

    def pretend(folder, kind, more):
        made.append(kind)
        return (
            (1, "## Gate: red\n\n1 worse, 0 better, 0 inconclusive.")
            if KINDS[kind][2]
            else (
                0,
                "## Gate: green\n\n0 worse, 0 better, 1 inconclusive.",
            )
        )

    monkeypatch.setattr(gate_trials, "_pytest", pretend)
    monkeypatch.setattr(gate_trials, "prepare", lambda folder: None)
    gate_trials.main(["--folder", str(tmp_path), "--most", "7"])
    file = tmp_path / "trials.jsonl"
    file.write_text(file.read_text()[:-20])  # cut off in its last line
    assert len(gate_trials.done(file)) == 6
    file.write_text("".join(line + "\n" for line in file.read_text().splitlines()[:6]))
    gate_trials.main(["--folder", str(tmp_path)])
    trials = gate_trials.done(file)
    assert {(t["kind"], t["number"]) for t in trials} == set(plan())
    assert len(trials) == len(plan())
    assert all(is_right(t) for t in trials)
    assert {t["loaded"] for t in trials if t["kind"] == "identical"} == {True, False}
    assert "not complete" not in page(trials)
    gate_trials.main(["--report", str(tmp_path / "gate.md"), "--folder", str(tmp_path)])
    assert (tmp_path / "gate.md").read_text() == page(trials)
    assert f"torch {torch.__version__}, " in page(trials)
    assert json.dumps(trials[0])


def test_a_gate_that_does_not_speak_is_no_trial(tmp_path, monkeypatch):
    monkeypatch.setattr(gate_trials, "_pytest", lambda *a: (1, "ImportError: no"))
    with pytest.raises(RuntimeError, match="did not speak"):
        gate_trials.run(tmp_path, "identical", 0)


def test_the_page_says_what_is_missing_and_how_sure_the_rates_are():
    here = {"torch": "2.9", "cpu": "one", "os": "Linux"}
    trials = [
        {"kind": "slower-25", "number": n, "loaded": n % 2 == 1, "outcome": "red", "seconds": 9.6}
        | {"started": f"2026-01-02T03:{n:02}:00+00:00", "environment": here | {"cpu": "one" if n < 15 else "two"}}
        for n in range(20)
    ]
    text = page(trials)
    assert "From 2026-01-02T03:00:00+00:00 to 2026-01-02T03:14:00+00:00; torch 2.9, one, Linux.\n" in text
    assert "From 2026-01-02T03:15:00+00:00 to 2026-01-02T03:19:00+00:00; torch 2.9, two, Linux.\n" in text
    assert "`quick/few-classes`" in text
    assert "not complete" in text
    assert "100 % (84 to 100 %)" in text
    assert "the longest took 10 seconds" in text


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(0, 40, 0.0, 0.0876), (20, 20, 0.8389, 1.0), (19, 20, 0.7639, 0.9911), (0, 0, 0.0, 1.0)],
)
def test_wilsons_interval(hits, count, low, high):
    """Values of statsmodels.stats.proportion.proportion_confint(method="wilson")."""
    assert wilson(hits, count) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
