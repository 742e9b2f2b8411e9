"""How long implementations take on one batch, side by side in one process. Judges nothing.

A time means nothing by itself on a shared machine; the ratio of two times taken next to each other does. All lanes (``native``, the
candidate, and ``native`` again as the control) are timed in rounds: a random order of the lanes and then its reverse, A B B A, some
repetitions at each stop. A round keeps the minimum of each lane, since whatever else the machine does only ever adds time, and gives
one ratio; the result is the median of the rounds' ratios with an interval. What the control's interval says of two lanes of
the same code is what the others can be believed.
"""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xentcheck.cost.measurement import BASE, CANDIDATE, CONTROL, PHASES, Bandwidth, Moved, Settings
from xentcheck.implementation import Implementation, with_matrix
from xentcheck.spec.batch import Batch

ROUNDS, FEWEST_ROUNDS = 15, 8  # the interval needs 8
REPETITIONS, FEWEST_REPETITIONS = 20, 2  # the second finds the memory that the first one gave back
BLOCK = 0.004  # seconds at each stop; shorter stops are mostly the stop
BUDGET = 20.0  # seconds for all rounds of one measurement, as far as the fewest rounds allow
WARM_UP = 8
_FLUSHED = 256 * 2**20  # more than any GPU's second-level cache
_SETTINGS = ("OMP_", "MKL_", "KMP_", "MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "THP_MEM_ALLOC_ENABLE", "PYTORCH_")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

Seconds = tuple[float, float, float]  # forward, backward, both


class Unavailable(Exception):
    """The device is not here. The text says which."""


@dataclass(frozen=True)
class Step:
    """One training step of a loss: ``forward()`` gives the loss, ``backward(loss)`` the gradients that the batch asks for.

    ``backward`` is None where there is nothing but one call: of an implementation that returns both at once, or of a batch without
    a gradient. ``alone`` is the phase that its time is of. ``prepare()`` comes before each step and is no part of it.
    """

    forward: Callable[[], Any]
    backward: Callable[[Any], tuple[Tensor, ...]] | None
    alone: str = "both"
    prepare: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Measured:
    """The raw samples of one measurement.

    rounds: lane -> phase -> the minimum of each round, in seconds; only ``both`` for a lane that does both at once, and only ``forward``
    where no gradient is asked for. bandwidth: bytes per second of a copy and of a fill of the logits.
    """

    rounds: dict[str, dict[str, list[float]]]
    repetitions: int
    bandwidth: Bandwidth


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


def step(implementation: Implementation, batch: Batch, overwrites: bool = False) -> Step:
    """The implementation as a training step on the batch; lanes that share a batch share its memory.

    The gradient is taken by ``torch.autograd.grad``, as for logits that a layer computed; ``loss.backward()`` would add what it
    takes to accumulate into a leaf. A fused linear loss is asked as it is; before any other, where a batch asks for one, stands the
    linear layer.

    overwrites: whether the implementation is known to leave other logits than it got; it gets its own, and fresh ones for each step.
    """
    if overwrites:
        mine = replace(batch, input=batch.input.clone())

        def restore() -> None:
            mine.input.copy_(batch.input)

        return replace(step(implementation, mine), prepare=restore)
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


def first_call(one: Step, on_cuda: bool) -> tuple[Any, Any, dict[str, float]]:
    """What forward and backward give (None where there is no backward) and the seconds of a step, with all that is set up in it."""

    def now() -> float:
        if on_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    one.prepare()
    start = now()
    loss = one.forward()
    middle = now()
    if one.backward is None:
        return loss, None, {one.alone: middle - start}
    gradients = one.backward(loss)
    end = now()
    return loss, gradients, dict(zip(PHASES, (middle - start, end - middle, end - start), strict=True))


def measure(
    native: Step,
    candidate: Step | None,
    batch: Batch,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> Measured:
    """Times the candidate and ``native``, and ``native`` once more as the control. candidate: None times ``native`` alone.

    progress: called with the share of the work that is done, from 0 to 1.
    """
    once = _on_cuda(batch) if batch.input.is_cuda else _on_cpu
    lanes = {BASE: native, CONTROL: native} | ({} if candidate is None else {CANDIDATE: candidate})
    slowest = max(_warm(once, lane) for lane in ([native] if candidate is None else [candidate, native]))
    repetitions, rounds = plan(slowest, len(lanes))
    before = bandwidth(batch.input)
    samples = take(lanes, once, rounds, repetitions, seed, progress)
    after = bandwidth(batch.input)
    best = Bandwidth(copy=max(before.copy_, after.copy_), fill=max(before.fill, after.fill))
    return Measured(samples, repetitions, best)


def plan(slowest: float, lanes: int) -> tuple[int, int]:
    """The repetitions at each stop and the rounds, where a step takes so many seconds at most."""
    repetitions = min(max(math.ceil(BLOCK / max(slowest, 1e-9)), FEWEST_REPETITIONS), REPETITIONS)
    each = 2 * lanes * repetitions * slowest
    return repetitions, min(max(int(BUDGET / max(each, 1e-9)), FEWEST_ROUNDS), ROUNDS)


def take(
    lanes: Mapping[str, Step],
    once: Callable[[Step], Seconds],
    rounds: int,
    repetitions: int,
    seed: int,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, dict[str, list[float]]]:
    """The rounds themselves: lane -> phase -> the minimum of each round. ``once`` times one step."""
    draw = np.random.Generator(np.random.PCG64(seed))
    samples: dict[str, dict[str, list[float]]] = {name: {phase: [] for phase in PHASES} for name in lanes}
    names = list(lanes)
    with _no_garbage_collection():
        for number in range(rounds):
            order = [names[i] for i in draw.permutation(len(names))]
            best = {name: (math.inf,) * len(PHASES) for name in names}
            for name in (*order, *reversed(order)):
                for _ in range(repetitions):
                    best[name] = tuple(map(min, best[name], once(lanes[name])))
            for name, seconds in best.items():
                for phase, value in zip(PHASES, seconds, strict=True):
                    samples[name][phase].append(value)
            progress((number + 1) / rounds)
    return {name: {phase: v for phase, v in lane.items() if np.isfinite(v).all()} for name, lane in samples.items()}


def bandwidth(like: Tensor) -> Bandwidth:
    """Of a copy into memory that is there already, counting what is read and what is written, and of a fill with zero."""
    source, size = like.detach(), like.numel() * like.element_size()
    there = torch.empty_like(source).copy_(source)
    copy = _best(lambda: there.copy_(source), source)
    fill = _best(there.zero_, source)
    return Bandwidth(copy=2 * size / copy, fill=size / fill)


def must_move(batch: Batch) -> dict[str, Moved]:
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


def _on_cpu(one: Step) -> Seconds:
    one.prepare()
    start = time.perf_counter_ns()
    loss = one.forward()
    middle = time.perf_counter_ns()
    if one.backward is None:
        return _alone(one, (middle - start) / 1e9)
    gradients = one.backward(loss)
    end = time.perf_counter_ns()
    del loss, gradients  # freeing is nobody's phase
    return (middle - start) / 1e9, (end - middle) / 1e9, (end - start) / 1e9


def _on_cuda(batch: Batch) -> Callable[[Step], Seconds]:
    """Times by CUDA events, the device idle and its cache flushed before each step."""
    flushed = torch.empty(_FLUSHED, dtype=torch.uint8, device=batch.input.device)

    def once(one: Step) -> Seconds:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
        one.prepare()
        flushed.zero_()
        torch.cuda.synchronize(batch.input.device)
        events[0].record()
        loss = one.forward()
        events[1].record()
        gradients = None if one.backward is None else one.backward(loss)
        events[2].record()
        torch.cuda.synchronize(batch.input.device)
        forward, backward, both = (
            events[a].elapsed_time(events[b]) / 1e3 for a, b in ((0, 1), (1, 2), (0, 2))
        )  # from milliseconds
        del loss, gradients
        return _alone(one, both) if one.backward is None else (forward, backward, both)

    return once


def _alone(one: Step, seconds: float) -> Seconds:
    forward, backward, both = (seconds if phase == one.alone else math.nan for phase in PHASES)
    return forward, backward, both


def _warm(once: Callable[[Step], Seconds], one: Step) -> float:
    """Calls until calls no longer get faster, as they do while something is compiled; the seconds of the fastest."""

    def whole() -> float:
        return float(np.nanmax(once(one)))

    best = min(whole(), whole())
    for _ in range(WARM_UP):
        now = whole()
        settled = now > 0.8 * best
        best = min(best, now)
        if settled:
            break
    return best


def _best(work: Callable[[], Any], like: Tensor, seconds: float = 0.1) -> float:
    best, end = math.inf, time.perf_counter() + seconds
    for number in range(200):
        start = time.perf_counter()
        work()
        if like.is_cuda:
            torch.cuda.synchronize(like.device)
        best = min(best, time.perf_counter() - start)
        if number >= 4 and time.perf_counter() > end:
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
