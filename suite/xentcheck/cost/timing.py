"""How long implementations take on one batch, side by side in one process. Judges nothing.

A time means nothing by itself on a shared machine; the ratio of two times taken next to each other does. All lanes (``native``, the
candidate, and ``native`` again as the control) are timed in rounds: a random order of the lanes and then its reverse, A B B A, some
repetitions at each stop. A round keeps the minimum of each lane, since whatever else the machine does only ever adds time, and gives
one ratio; the result is the median of the rounds' ratios with an interval. What the control's interval says of two lanes of
the same code is what the others can be believed. Clocks are bound here, before any implementation is imported.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, perf_counter_ns, process_time_ns, thread_time_ns
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xentcheck.cost.measurement import BASE, CANDIDATE, CONTROL, PHASES, Bandwidth, Lane, Moved, Phase, Settings
from xentcheck.cost.rotation import Rotation
from xentcheck.implementation import Implementation, with_matrix
from xentcheck.spec.batch import Batch

ROUNDS, FEWEST_ROUNDS = 15, 8  # the interval needs 8
REPETITIONS, FEWEST_REPETITIONS = 20, 2  # the second finds the memory that the first one gave back
BLOCK = 0.004  # seconds at each stop; shorter stops are mostly the stop
BUDGET = 20.0  # seconds for all rounds of one measurement, as far as the fewest rounds allow
WARM_UP = 8
LONG_ENOUGH = 0.02  # seconds of processor time that make a figure
_FLUSHED = 256 * 2**20  # more than any GPU's second-level cache
_SETTINGS = ("OMP_", "MKL_", "KMP_", "MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "THP_MEM_ALLOC_ENABLE", "PYTORCH_")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

Seconds = tuple[float, float, float]  # forward, backward, both
# With the processor time of all threads and of the calling one, and with what the calls gave.
Timed = tuple[Seconds, tuple[float, float], tuple[Any, Any]]


class Unavailable(Exception):
    """The device is not here. The text says which."""


@dataclass(frozen=True)
class Step:
    """One training step of a loss: ``forward()`` gives the loss, ``backward(loss)`` the gradients that the batch asks for.

    ``backward`` is None where there is nothing but one call: of an implementation that returns both at once, or of a batch without
    a gradient. ``alone`` is the phase that its time is of.
    """

    forward: Callable[[], Any]
    backward: Callable[[Any], tuple[Tensor, ...]] | None
    alone: Phase = "both"

    def answer(self, loss: Any, gradients: Any) -> tuple[Any, tuple[Any, ...]]:
        """The loss and the gradients of a step, from what the two calls gave."""
        if self.backward is not None or self.alone != "both":
            return loss, tuple(gradients or ())
        value, *others = loss
        return value, tuple(others)


@dataclass(frozen=True)
class Measured:
    """The raw samples of one measurement.

    rounds: lane -> phase -> the minimum of each round, in seconds; only ``both`` for a lane that does both at once, and only ``forward``
    where no gradient is asked for. bandwidth: bytes per second of a copy and of a fill of the logits. processors: lane -> how many
    threads did its work, on average; 0 where that is not known.
    """

    rounds: dict[Lane, dict[Phase, tuple[float, ...]]]
    repetitions: int
    bandwidth: Bandwidth
    processors: dict[str, float]


def require(device: str) -> None:
    """Raises Unavailable where there is no such device."""
    if device != "cpu" and not torch.cuda.is_available():
        raise Unavailable(f"no {device} device here")


def on(device: str, batch: Batch) -> Batch:
    """The batch on a device. Raises Unavailable where there is none."""
    require(device)
    if device == "cpu":
        return batch
    options = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.options.items()}
    upstream = None if batch.upstream is None else batch.upstream.to(device)
    return replace(
        batch, input=batch.input.to(device), target=batch.target.to(device), options=options, upstream=upstream
    )


def step(implementation: Implementation, batch: Batch) -> Step:
    """The implementation as a training step on the batch; lanes that share a batch share its memory.

    The gradient is taken by ``torch.autograd.grad``, as for logits that a layer computed; ``loss.backward()`` would add what it
    takes to accumulate into a leaf. A fused linear loss is asked as it is; before any other, where a batch asks for one, stands the
    linear layer.
    """
    wanted = {name: tensor.detach().requires_grad_() for name, tensor in batch.differentiated.items()}
    arguments = {"input": batch.input.detach(), "target": batch.target, **batch.options, **wanted}
    if implementation.loss_and_gradient is not None:
        both, values = implementation.loss_and_gradient, batch.input.detach()
        if not wanted:
            return Step(lambda: both(values, batch.target, None, **batch.options)[0], None, "forward")
        return Step(lambda: both(values, batch.target, batch.upstream, **batch.options), None)
    function = _function(implementation, batch)
    x, target = arguments.pop("input"), arguments.pop("target")
    if not wanted:
        return Step(torch.no_grad()(lambda: function(x, target, **arguments)), None, "forward")
    if batch.mode == "compile":
        torch.compiler.reset()
        function = torch.compile(function)

    def backward(loss: Tensor) -> tuple[Tensor, ...]:
        upstream = None if batch.upstream is None else batch.upstream.to(loss.dtype)
        return torch.autograd.grad(loss, list(wanted.values()), upstream)

    return Step(lambda: function(x, target, **arguments), backward)


def _function(implementation: Implementation, batch: Batch) -> Callable[..., Tensor]:
    """Called with input, target and options."""
    plain, fused = implementation.cross_entropy, implementation.linear_cross_entropy
    if not batch.is_linear:
        if plain is None:
            raise Unavailable("a fused linear loss has no cost as a loss of logits; --profile linear measures it")
        return plain
    if plain is None:
        return with_matrix(fused)

    def after_the_layer(
        input: Tensor, target: Tensor, *, linear_weight: Tensor, linear_bias: Tensor | None = None, **options: Any
    ) -> Tensor:
        return plain(torch.nn.functional.linear(input, linear_weight, linear_bias), target, **options)

    return after_the_layer


def first_call(one: Step, on_cuda: bool) -> tuple[Any, Any, dict[Phase, float]]:
    """What forward and backward give (None where there is no backward) and the seconds of a step, with all that is set up in it."""

    def now() -> float:
        if on_cuda:
            torch.cuda.synchronize()
        return perf_counter()

    start = now()
    loss = one.forward()
    middle = now()
    if one.backward is None:
        return loss, None, {one.alone: middle - start}
    gradients = one.backward(loss)
    end = now()
    return loss, gradients, dict(zip(PHASES, (middle - start, end - middle, end - start), strict=True))


def measure(
    native: Sequence[Step],
    candidate: Sequence[Step] | None,
    rotation: Rotation,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> Measured:
    """Times the candidate and ``native``, and ``native`` once more as the control.

    Args:
        native, candidate: a step on each of the rotation's buffers. No candidate: ``native`` is timed alone.
        progress: called with the share of the work that is done, from 0 to 1.

    Raises:
        Untrusted: for an answer that is wrong in a repetition.
    """
    like = rotation.buffers[0].input
    once = _on_cuda(like) if like.is_cuda else _on_cpu
    lanes: dict[Lane, _Lane] = {name: _Lane(native, once, rotation) for name in (BASE, CONTROL)}
    if candidate is not None:
        lanes[CANDIDATE] = _Lane(candidate, once, rotation, is_doubted=True)
    slowest = max(_warm(lane) for name, lane in lanes.items() if name != CONTROL)
    repetitions, rounds = plan(slowest, len(lanes))
    if candidate is not None:
        lanes[CANDIDATE].examine_some(2 * repetitions * rounds)
    before = bandwidth(like)
    samples = take(lanes, rounds, repetitions, seed, progress)
    after = bandwidth(like)
    best = Bandwidth(copy=max(before.copy_, after.copy_), fill=max(before.fill, after.fill))
    processors: dict[str, float] = {name: lane.processors for name, lane in lanes.items()}
    return Measured(samples, repetitions, best, processors)


def native_lane(native: Implementation, rotation: Rotation) -> Callable[[], Seconds]:
    """Times one step of ``native`` at each call."""
    like = rotation.buffers[0].input
    steps = [step(native, buffer) for buffer in rotation.buffers]
    return _Lane(steps, _on_cuda(like) if like.is_cuda else _on_cpu, rotation)


class _Lane:
    """Called for one repetition after another: deals a batch, times a step on it and, of who is doubted, has the answer looked at. Only the step
    is timed."""

    def __init__(
        self, steps: Sequence[Step], once: Callable[[Step], Timed], rotation: Rotation, is_doubted: bool = False
    ) -> None:
        self._steps, self._once, self._rotation, self._is_doubted = steps, once, rotation, is_doubted
        self._to_examine: set[int] = set()
        self._count, self._all, self._own = 0, 0.0, 0.0  # calls; seconds of all threads, and of the calling one

    def __call__(self) -> Seconds:
        dealt = self._rotation.deal()
        one = self._steps[dealt.buffer]
        seconds, (of_all, of_own), results = self._once(one)
        if self._is_doubted:
            answer = one.answer(*results)
            self._rotation.glance(dealt, *answer)
            if self._count in self._to_examine:
                self._rotation.examine(dealt, *answer)
        self._count += 1
        self._all += of_all
        self._own += of_own
        return seconds

    def examine_some(self, count: int) -> None:
        """Has all entries of some of the next answers looked at, of so many: the last and another one."""
        self._to_examine = {self._count + self._rotation.draw.randrange(count), self._count + count - 1}
        self._all = self._own = 0.0

    @property
    def processors(self) -> float:
        """How many threads did the work, however busy the machine is with others; 0 where there was too little of it."""
        return self._all / max(self._own, 1e-3 * self._all) if self._all > LONG_ENOUGH else 0.0


def plan(slowest: float, lanes: int) -> tuple[int, int]:
    """The repetitions at each stop and the rounds, where a step takes so many seconds at most."""
    repetitions = min(max(math.ceil(BLOCK / max(slowest, 1e-9)), FEWEST_REPETITIONS), REPETITIONS)
    each = 2 * lanes * repetitions * slowest
    return repetitions, min(max(int(BUDGET / max(each, 1e-9)), FEWEST_ROUNDS), ROUNDS)


def take(
    lanes: Mapping[Lane, Callable[[], Seconds]],
    rounds: int,
    repetitions: int,
    seed: int,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[Lane, dict[Phase, tuple[float, ...]]]:
    """The rounds themselves: lane -> phase -> the minimum of each round. Each call of a lane times one step."""
    draw = np.random.Generator(np.random.PCG64(seed))
    samples: dict[Lane, dict[Phase, list[float]]] = {name: {phase: [] for phase in PHASES} for name in lanes}
    names = list(lanes)
    with _no_garbage_collection():
        for number in range(rounds):
            order = [names[i] for i in draw.permutation(len(names))]
            best = {name: (math.inf,) * len(PHASES) for name in names}
            for name in (*order, *reversed(order)):
                for _ in range(repetitions):
                    best[name] = tuple(map(min, best[name], lanes[name]()))
            for name, seconds in best.items():
                for phase, value in zip(PHASES, seconds, strict=True):
                    samples[name][phase].append(value)
            progress((number + 1) / rounds)
    return {
        name: {phase: tuple(v) for phase, v in lane.items() if np.isfinite(v).all()} for name, lane in samples.items()
    }


def bandwidth(like: Tensor) -> Bandwidth:
    """Of a copy into memory that is there already, counting what is read and what is written, and of a fill with zero."""
    source, size = like.detach(), like.numel() * like.element_size()
    there = torch.empty_like(source).copy_(source)
    copy = _best(lambda: there.copy_(source), source)
    fill = _best(there.zero_, source)
    return Bandwidth(copy=2 * size / copy, fill=size / fill)


def must_move(batch: Batch) -> dict[Phase, Moved]:
    """The bytes that are moved by whoever writes a whole gradient, by phase: ``copied`` is read or written beside other work, ``filled`` is
    only written.

    Forward reads the logits of the positions that count, once. Backward writes their gradient and reads what it is made of, the
    logits or something as large; the gradient of ignored positions is only filled with zero. Both read the logits once.
    Who leaves pages of zeros as the system gives them does not fill them, and may come out below this.
    """
    positions = batch.target.numel()
    row = batch.input.numel() * batch.input.element_size() // max(positions, 1)
    ignored = int(torch.isin(batch.target, batch.target.new_tensor(batch.ignore_values)).sum())
    valid = (positions - ignored) * row
    training = Moved(copied=2 * valid, filled=ignored * row)
    return {"forward": Moved(copied=valid, filled=0), "backward": training, "both": training}


def settings() -> Settings:
    """What changes a time by as much as an implementation does, as it is here."""
    pages = _HUGE_PAGES.read_text() if _HUGE_PAGES.exists() else ""
    return Settings(
        threads=torch.get_num_threads(),
        huge_pages=next((word.strip("[]") for word in pages.split() if word.startswith("[")), "unknown"),
        environment={k: v for k, v in sorted(os.environ.items()) if k.startswith(_SETTINGS)},
    )


def _on_cpu(one: Step) -> Timed:
    before = process_time_ns(), thread_time_ns()
    start = perf_counter_ns()
    loss = one.forward()
    middle = perf_counter_ns()
    if one.backward is None:
        return _alone(one, (middle - start) / 1e9), _busy(before), (loss, None)
    gradients = one.backward(loss)
    end = perf_counter_ns()
    seconds = (middle - start) / 1e9, (end - middle) / 1e9, (end - start) / 1e9
    return seconds, _busy(before), (loss, gradients)


def _busy(before: tuple[int, int]) -> tuple[float, float]:
    return (process_time_ns() - before[0]) / 1e9, (thread_time_ns() - before[1]) / 1e9


def _on_cuda(like: Tensor) -> Callable[[Step], Timed]:
    """Times by CUDA events, the device idle and its cache flushed before each step. Every stream is waited for, not only the current one."""
    flushed, device = torch.empty(_FLUSHED, dtype=torch.uint8, device=like.device), like.device

    def once(one: Step) -> Timed:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
        flushed.zero_()
        torch.cuda.synchronize(device)
        events[0].record()
        loss = one.forward()
        torch.cuda.synchronize(device)
        events[1].record()
        gradients = None if one.backward is None else one.backward(loss)
        torch.cuda.synchronize(device)
        events[2].record()
        torch.cuda.synchronize(device)
        forward, backward, both = (
            events[a].elapsed_time(events[b]) / 1e3 for a, b in ((0, 1), (1, 2), (0, 2))
        )  # from milliseconds
        return (_alone(one, both) if one.backward is None else (forward, backward, both)), (0.0, 0.0), (loss, gradients)

    return once


def _alone(one: Step, seconds: float) -> Seconds:
    forward, backward, both = (seconds if phase == one.alone else math.nan for phase in PHASES)
    return forward, backward, both


def _warm(lane: Callable[[], Seconds]) -> float:
    """Calls until calls no longer get faster, as they do while something is compiled; the seconds of the fastest."""

    def whole() -> float:
        return float(np.nanmax(lane()))

    best = min(whole(), whole())
    for _ in range(WARM_UP):
        now = whole()
        settled = now > 0.8 * best
        best = min(best, now)
        if settled:
            break
    return best


def _best(work: Callable[[], Any], like: Tensor, seconds: float = 0.1) -> float:
    best, end = math.inf, perf_counter() + seconds
    for number in range(200):
        start = perf_counter()
        work()
        if like.is_cuda:
            torch.cuda.synchronize(like.device)
        best = min(best, perf_counter() - start)
        if number >= 4 and perf_counter() > end:
            break
    return best


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A collection would fall on one lane and not on the other."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
