"""Timing: the schedule, the statistics and the limits, with clocks that the tests wind themselves. No test depends on real time."""

from collections import Counter

import numpy as np
import pytest
import torch

import fakes
from xentcheck.cost import timing
from xentcheck.cost.measurement import BASE, CANDIDATE, CONTROL, PHASES, Moved, Ratio, Timing, ratio
from xentcheck.cost.rotation import Rotation
from xentcheck.cost.timing import must_move, take
from xentcheck.implementation import Implementation
from xentcheck.reference.blockwise import expected
from xentcheck.spec.batch import build

pytestmark = pytest.mark.slow

NATIVE = Implementation(name="native", cross_entropy=torch.nn.functional.cross_entropy)
NAMES = (BASE, CONTROL, CANDIDATE)


def lanes(once, names=NAMES):
    """Lanes that are timed by ``once(name)``."""
    return {name: lambda name=name: once(name) for name in names}


def rotation_of(batch, device="cpu"):
    return Rotation(batch, timing.on(device, batch), expected(batch))


def measured(candidate, batch, device="cpu", **more):
    """``timing.measure`` of an implementation beside native; None: of native alone."""
    rotation = rotation_of(batch, device)
    both = [i and [timing.step(i, b) for b in rotation.buffers] for i in (NATIVE, candidate)]
    return timing.measure(*both, rotation, **more)


def noisy(factor, seed=0, spikes=0.3):
    """A clock for lanes: 1 second each, ``factor`` the candidate, and at times much more by bad luck."""
    draw = np.random.default_rng(seed)

    def once(name):
        seconds = factor if name == CANDIDATE else 1.0
        noise = 1 + 0.01 * draw.random() + (draw.random() < spikes) * 5 * draw.random()
        return (0.4 * seconds * noise, 0.6 * seconds * noise, seconds * noise)

    return once


# --- the schedule


def visits(seed, rounds=30, repetitions=2):
    seen = []
    take(lanes(lambda name: seen.append(name) or (1.0, 1.0, 2.0)), rounds, repetitions, seed)
    per_round = 2 * len(NAMES) * repetitions
    return [seen[i : i + per_round] for i in range(0, len(seen), per_round)]


def test_each_round_is_an_order_and_its_reverse():
    for order in visits(seed=1):
        assert order == order[::-1]
        assert Counter(order) == dict.fromkeys(NAMES, 4)


def test_no_lane_always_comes_first():
    firsts = Counter(order[0] for order in visits(seed=1, rounds=90))
    assert min(firsts[name] for name in NAMES) > 15


def test_the_order_hangs_on_the_seed_alone():
    assert visits(seed=3) == visits(seed=3)
    assert visits(seed=3) != visits(seed=4)


def test_the_minimum_of_each_lane_and_phase_is_kept():
    clock = {name: iter([(3.0, 9.0, 12.0), (4.0, 5.0, 9.5), (7.0, 6.0, 13.0), (9.0, 8.0, 17.0)]) for name in NAMES}
    samples = take(lanes(lambda name: next(clock[name])), rounds=1, repetitions=2, seed=0)
    assert samples[CANDIDATE] == {"forward": (3.0,), "backward": (5.0,), "both": (9.5,)}


def test_garbage_is_not_collected_in_between_and_is_again_afterwards():
    import gc

    enabled = []
    take(lanes(lambda name: enabled.append(gc.isenabled()) or (1.0, 1.0, 1.0)), rounds=1, repetitions=1, seed=0)
    assert not any(enabled)
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        take(lanes(lambda name: 1 / 0), rounds=1, repetitions=1, seed=0)
    assert gc.isenabled()


# --- the statistics


def test_a_ratio_is_the_median_and_its_interval_is_between_the_rounds():
    found = ratio([2.0, 2.2, 1.8, 2.0, 9.0, 1.9, 2.1, 2.0, 2.0], [1.0] * 9)
    assert found == Ratio(2.0, 1.8, 9.0)
    assert ratio([2.0] * 8, [4.0] * 8) == Ratio(0.5, 0.5, 0.5)


@pytest.mark.parametrize(("rounds", "place"), [(8, 1), (10, 1), (11, 1), (12, 2), (15, 3), (20, 4)])
def test_the_interval_is_the_narrowest_that_holds_99_percent(rounds, place):
    """Places in the table of the sign test at 0.01, two-sided: Dixon and Mood 1946, doi:10.1080/01621459.1946.10501898."""
    found = ratio(range(1, rounds + 1), [1] * rounds)
    assert (found.low, found.high) == (place, rounds + 1 - place)


def test_the_interval_covers_the_truth_and_tells_a_quarter_from_nothing():
    """20 measurements each, a clock with heavy one-sided noise."""
    for factor in (1.0, 1.25):
        found = []
        for seed in range(20):
            samples = take(lanes(noisy(factor, seed)), rounds=15, repetitions=4, seed=seed)
            found.append(ratio(samples[CANDIDATE]["both"], samples[BASE]["both"]))
        assert sum(r.low <= factor <= r.high for r in found) >= 19
        assert sum(r.low > 1.05 for r in found) == (0 if factor == 1.0 else 20)


def test_the_spread_of_a_control_is_its_distance_from_one_on_either_side():
    assert Ratio(1.0, 0.9, 1.05).spread == pytest.approx(1 / 0.9)
    assert Ratio(1.1, 1.05, 1.2).spread == pytest.approx(1.2)


# --- steps


def batch_of(case, body="logits: {shape: [6, 5]}, target: {ignore: {rows: [1]}}"):
    return build(case(body))


def test_a_step_gives_the_loss_and_the_gradient(case):
    batch = batch_of(case)
    one = timing.step(NATIVE, batch)
    loss = one.forward()
    x = batch.input.clone().requires_grad_()
    torch.nn.functional.cross_entropy(x, batch.target).backward()
    assert torch.equal(*one.backward(loss), x.grad)
    assert batch.input.grad is None
    assert not batch.input.requires_grad


def test_an_upstream_gradient_is_passed_on(case):
    batch = batch_of(case, "logits: {shape: [6, 5]}, reduction: none, upstream: per-position")
    one = timing.step(NATIVE, batch)
    (whole,) = one.backward(one.forward())
    plain = timing.step(NATIVE, build(case("logits: {shape: [6, 5]}, reduction: none")))
    assert torch.allclose(whole, plain.backward(plain.forward())[0] * batch.upstream[:, None])


def test_an_implementation_that_gives_both_at_once_has_one_time(case):
    arrays = Implementation(name="arrays", loss_and_gradient=fakes.arrays)
    batch = batch_of(case, "logits: {shape: [6, 5]}")
    found = measured(arrays, batch)
    assert list(found.rounds[CANDIDATE]) == ["both"]
    assert list(timing.first_call(timing.step(arrays, batch), False)[2]) == ["both"]
    assert list(found.rounds[BASE]) == list(PHASES)


def test_a_linear_loss_has_no_cost_here(case):
    with pytest.raises(timing.Unavailable, match="linear"):
        timing.step(Implementation(name="linear", linear_cross_entropy=fakes.linear), batch_of(case))


def test_every_stop_repeats_its_step():
    assert [timing.plan(seconds, lanes=3)[0] for seconds in (1e-5, 1e-3, 0.4, 6.0)] == [20, 4, 2, 2]


def test_a_measurement_has_all_its_parts(case, monkeypatch):
    monkeypatch.setattr(timing, "BUDGET", 0.0)
    shares = []
    found = measured(NATIVE, batch_of(case), progress=shares.append)
    assert set(found.rounds) == {BASE, CANDIDATE, CONTROL}
    assert {len(v) for lane in found.rounds.values() for v in lane.values()} == {timing.FEWEST_ROUNDS}
    assert found.bandwidth.copy_ > 0 < found.bandwidth.fill
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    alone = measured(None, batch_of(case))
    assert set(alone.rounds) == {BASE, CONTROL}


def test_first_call_and_warming_up_stand_apart(case, monkeypatch):
    """What is set up in the first calls reaches no round. The clock goes on by 1, and by 1000 in each of the first calls."""
    now, calls = [0], []

    def clock():
        now[0] += 1
        return now[0]

    def sets_up(input, target, **options):
        calls.append(1)
        now[0] += 1000 if len(calls) <= 3 else 0
        return torch.nn.functional.cross_entropy(input, target, **options)

    monkeypatch.setattr(timing, "perf_counter_ns", clock)
    monkeypatch.setattr(timing, "perf_counter", clock)
    batch = batch_of(case)
    slow = Implementation(name="sets_up", cross_entropy=sets_up)
    loss, (gradient,), seconds = timing.first_call(timing.step(slow, batch), on_cuda=False)
    assert loss.shape == ()
    assert gradient.shape == batch.input.shape
    assert seconds == {"forward": 1001, "backward": 1, "both": 1002}
    found = measured(slow, batch)
    assert set(found.rounds[CANDIDATE]["forward"]) == {1e-9}


def test_without_a_cuda_device_it_is_unavailable(case):
    if torch.cuda.is_available():
        assert timing.on("cuda", batch_of(case)).input.is_cuda
    else:
        with pytest.raises(timing.Unavailable, match="no cuda device here"):
            timing.on("cuda", batch_of(case))
    assert timing.on("cpu", batch := batch_of(case)) is batch


def test_on_cuda_the_device_is_idle_and_its_cache_flushed_before_events_are_taken(case, monkeypatch):
    """The order of the calls, on a device that is played."""
    log, clock = [], iter([10.0, 13.0, 18.0])

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = next(clock)
            log.append("event")

        def elapsed_time(self, later):  # milliseconds
            return later.at - self.at

    batch = batch_of(case)
    monkeypatch.setattr(timing, "_FLUSHED", 16)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("idle"))
    once = timing._on_cuda(batch.input)
    monkeypatch.setattr(torch.Tensor, "zero_", lambda self: log.append("flush"))
    one = timing.Step(lambda: log.append("forward"), lambda loss: log.append("backward"))
    assert once(one)[0] == pytest.approx((0.003, 0.005, 0.008))
    assert log == ["flush", "idle", "event", "forward", "idle", "event", "backward", "idle", "event", "idle"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_measurement_on_cuda(case):
    found = measured(NATIVE, batch_of(case), device="cuda")
    assert all(v > 0 for lane in found.rounds.values() for phase in lane.values() for v in phase)


# --- limits


def test_what_must_move(case):
    batch = batch_of(case, "logits: {shape: [6, 5]}, dtype: bfloat16, target: {ignore: {rows: [1, 4]}}")
    row = 5 * 2
    assert must_move(batch) == {
        "forward": Moved(copied=4 * row, filled=0),
        "backward": Moved(copied=8 * row, filled=2 * row),
        "both": Moved(copied=8 * row, filled=2 * row),
    }
    pixels = batch_of(case, "logits: {shape: [2, 3, 4, 4]}, target: {ignore: {rows: [0]}}")
    assert must_move(pixels)["forward"] == Moved(copied=31 * 3 * 4, filled=0)


def test_the_limit_is_bytes_over_bandwidth():
    found = Timing(
        rounds={"native": {"forward": (1.0,)}},
        repetitions=1,
        bandwidth={"copy": 10.0, "fill": 25.0},
        first={"forward": 1.0},
        settings={"threads": 1, "huge_pages": "never", "environment": {}},
        must_move={"forward": {"copied": 100, "filled": 50}},
    )
    assert found.limit("forward") == 12.0


def test_settings_name_what_changes_a_time(monkeypatch):
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")
    found = timing.settings()
    assert found.threads == torch.get_num_threads()
    assert found.environment["THP_MEM_ALLOC_ENABLE"] == "1"
    assert found.huge_pages in ("always", "madvise", "never", "unknown")
