"""What a worker of ``--isolate`` does: loads one implementation and puts to it what it is asked, until it is ended."""

from __future__ import annotations

import functools
import re
import socket
import sys
import threading
import time
import traceback
import weakref
from pathlib import Path

import torch
import torch.fx.experimental.symbolic_shapes  # half a second, and the first backward pass with an upstream gradient imports it

from xentcheck.implementation import Implementation
from xentcheck.run.isolation.serving import answer_requests
from xentcheck.run.observe import Failure, Observation, observe
from xentcheck.spec.batch import Batch

LINGER = 0.5  # seconds within which a thread that a call started has to end after it
_OUT_OF_MEMORY = re.compile(r"MemoryError: |can(no|')t allocate memory|std::bad_alloc|out of memory", re.IGNORECASE)


def serve(channel: socket.socket) -> None:
    """Answers requests, of which the first says what to load."""
    answer_requests(channel, functools.partial(_answer, _note_torchs_threads()))


def _answer(
    torchs: weakref.WeakSet[threading.Thread],
    implementation: Implementation,
    memory: int | None,
    batches: list[Batch],
    wants_gradient: bool,
    calls: int,
    threads: int,
) -> list[Observation] | Failure:
    """The Observations; or, of the first batch that has none, a Failure, after which this worker is of no use."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    found = []
    for batch in batches:
        before = {*threading.enumerate()}
        try:
            seen = observe(implementation, batch, wants_gradient, calls)
        except BaseException as error:
            if memory and isinstance(error, MemoryError):
                return _exhausted(memory, f"MemoryError: {error}")
            traceback.print_exc()
            return Failure("error", f"the worker process was left by {type(error).__name__}: {error}")
        if left := _left_behind(before, torchs):
            names = ", ".join(thread.name for thread in left)
            count = f"{len(left)} thread{'s' * (len(left) > 1)}"
            return Failure("crash", f"the worker process left {count} running after the call: {names}")
        if isinstance(seen, Failure):
            return seen
        if memory and (text := _want_of_memory(seen)):
            return _exhausted(memory, text)
        found.append(seen)
    return found


def _want_of_memory(seen: Observation) -> str:
    """What an allocation that failed raised, which is no answer of the implementation's; nothing where none did."""
    for answer in filter(None, (seen.first, seen.again)):
        raised = f"{answer.raised.type}: {answer.raised.text}" if answer.raised else ""
        for text in (raised, answer.loss_type, *answer.unreadable.values()):
            if _OUT_OF_MEMORY.search(text):
                return str(answer.raised or text)
    return ""


def _exhausted(memory: int, text: str) -> Failure:
    limit = f"the memory limit of {memory / 2**30:g} GiB (--worker-memory)"
    return Failure("crash", f"the worker process exhausted {limit}: {text}")


def _left_behind(before: set[threading.Thread], torchs: weakref.WeakSet[threading.Thread]) -> list[threading.Thread]:
    """The Python threads that a call started and that go on after it, those of torch aside. Native threads are not seen: those of
    a kernel look like those of OpenMP and of torch."""

    def new() -> list[threading.Thread]:
        now = [t for t in threading.enumerate() if t not in before and t not in torchs]
        return [t for t in now if not isinstance(t, threading._DummyThread)]  # a native thread that came by

    until = time.monotonic() + LINGER
    for thread in new():
        thread.join(max(0.0, until - time.monotonic()))
    return new()


def _note_torchs_threads() -> weakref.WeakSet[threading.Thread]:
    """Those that torch starts from now on: its compiler keeps a pool of threads, which is not the implementation's doing. An audit hook
    would see every start, but only from Python 3.12 on."""
    torchs: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
    start, pythons, torch_folder = threading.Thread.start, Path(threading.__file__).parent, Path(torch.__file__).parent

    def is_pythons(path: Path) -> bool:
        return path.is_relative_to(pythons) and not {"site-packages", "dist-packages"} & {*path.parts}

    def passes_on(
        path: Path,
    ) -> bool:  # tqdm's monitor is a thread of whoever shows a bar first, such as torch's compiler
        return is_pythons(path) or path.parent.name == "tqdm"

    @functools.wraps(start)
    def noted(thread: threading.Thread) -> None:
        callers = (Path(frame.f_code.co_filename) for frame, _ in traceback.walk_stack(sys._getframe(1)))
        caller = next((path for path in callers if not passes_on(path)), None)
        if caller and caller.is_relative_to(torch_folder):
            torchs.add(thread)
        start(thread)

    threading.Thread.start = noted  # type: ignore[assignment]
    return torchs
