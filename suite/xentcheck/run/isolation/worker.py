"""What a worker of ``--isolate`` does: loads one implementation and puts to it what it is asked, until it is ended."""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import re
import resource
import socket
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch.fx.experimental.symbolic_shapes  # half a second, and the first backward pass with an upstream gradient imports it

from xentcheck.implementation.declare import BrokenError, Implementation, ImplementationError
from xentcheck.implementation.forks import end_in_a_child
from xentcheck.implementation.load import Ask, find
from xentcheck.run.isolation.protocol import receive, send
from xentcheck.run.observe import Failure, Observation, observe
from xentcheck.spec.batch import Batch

FORMS = ("cross_entropy", "loss_and_gradient", "linear_cross_entropy")
Exchange = Callable[[Any], dict[str, Any]]  # answers a request, and returns the next one
LINGER = 0.5  # seconds within which a thread that a call started has to end after it
_OUT_OF_MEMORY = re.compile(r"MemoryError: |can(no|')t allocate memory|std::bad_alloc|out of memory", re.IGNORECASE)
_LIBC = ctypes.CDLL(None)


def serve(channel: socket.socket) -> None:
    """Answers requests, of which the first says what to load."""
    me, torchs_threads = os.getpid(), _note_torchs_threads()
    token, start = receive(channel)

    def exchange(answer: Any) -> dict[str, Any]:
        nonlocal token
        end_in_a_child(me)
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        _LIBC.fflush(None)
        send(channel, token, answer)
        token, request = receive(channel)
        return request

    found: list[Implementation] = []
    answer: Any = _load(found, exchange, **start)
    while True:
        request = exchange(answer)  # comes only if something was found
        answer = _answer(found[0], start["memory"], torchs_threads, **request)


def _load(
    found: list[Implementation], exchange: Exchange, source: str, memory: int | None, unasked: list[int]
) -> dict[str, Any]:
    """Adds what is found, and gives all of it that can be passed, which is everything but the functions."""
    try:
        _limit(memory)
        found += find(source, ask=_announced(exchange, unasked))
    except ImplementationError as error:
        return {"refused": str(error), "broken": isinstance(error, BrokenError)}
    except BaseException as error:
        return {"refused": f"--impl {source}: {type(error).__name__}: {error}", "broken": True}
    described = []
    for implementation in found:
        declared = {field.name: getattr(implementation, field.name) for field in fields(implementation)}
        form = next(form for form in FORMS if declared[form] is not None)
        described.append({name: value for name, value in declared.items() if name not in FORMS} | {"form": form})
    return {"found": described}


def _announced(exchange: Exchange, unasked: list[int]) -> Ask:
    """Loading a bare callable calls it. Should this process die of a question, the next one is told to leave it unasked."""
    numbers = itertools.count(1)

    def ask(question: Callable[[], Any]) -> Any:
        number, answer = next(numbers), None
        if number not in unasked:
            exchange({"asking": number})
            with suppress(BaseException):  # such as SystemExit
                answer = question()
            exchange({"asking": 0})
        return answer

    return ask


def _answer(
    implementation: Implementation,
    memory: int | None,
    torchs: weakref.WeakSet[threading.Thread],
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


def _limit(memory: int | None) -> None:
    """Bytes of data for this process. Raises ImplementationError where torch alone holds more."""
    if memory is None:
        return
    lines = Path("/proc/self/status").read_text().splitlines()
    held = next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmData"))
    if memory < held:
        wanted = f"expected more than the {held / 2**30:.2g} GiB that torch alone holds"
        raise ImplementationError(f"--worker-memory {memory / 2**30:g}: {wanted}")
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


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

    @functools.wraps(start)
    def noted(thread: threading.Thread) -> None:
        callers = (Path(frame.f_code.co_filename) for frame, _ in traceback.walk_stack(sys._getframe(1)))
        caller = next((path for path in callers if not is_pythons(path)), None)
        if caller and caller.is_relative_to(torch_folder):
            torchs.add(thread)
        start(thread)

    threading.Thread.start = noted  # type: ignore[assignment]
    return torchs
