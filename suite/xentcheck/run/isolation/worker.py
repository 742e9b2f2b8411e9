"""The other side of ``--isolate``: a server that forks workers, and the workers, one for each implementation.

Why a fork server: importing torch takes a second or more, and a loss that crashes in every case needs a new worker for each. The server is
a new interpreter, started by ``isolate``, that has imported torch and xentcheck and nothing else: no pytest, no implementation, no call
into torch, no thread, no CUDA context. A worker forked from it is in the state of a newly spawned interpreter, ten milliseconds later.

A worker talks through two pipes of its own: requests in, answers out. What is printed goes into a third one, so that it cannot be taken
for an answer. It dies with the server (PR_SET_PDEATHSIG), the server with the process that started it. Linux only.
"""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import gc
import json
import os
import re
import resource
import select
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch.fx.experimental.symbolic_shapes  # half a second, and the first backward pass with an upstream gradient imports it

from xentcheck.implementation.declare import Implementation, ImplementationError
from xentcheck.implementation.forks import end_in_a_child
from xentcheck.implementation.load import Probe, find, takes_lists
from xentcheck.run.isolation.protocol import AT_ONCE, frame, reading, rest
from xentcheck.run.observe import Failure, Observation, observe
from xentcheck.spec.batch import Batch

FORMS = ("cross_entropy", "loss_and_gradient", "linear_cross_entropy")
LINGER = 0.5  # seconds within which a thread that a call started has to end after it
_OUT_OF_MEMORY = re.compile(r"MemoryError: |can(no|')t allocate memory|std::bad_alloc|out of memory", re.IGNORECASE)
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def main(control_fd: int, parent: int) -> None:
    """The server. Through ``control_fd``, a SOCK_SEQPACKET socket, come JSON messages: ``{"start": worker, ...}`` with the worker's ends of
    three pipes, and ``{"signal": worker, "number": ...}``; back goes ``{"ended": worker, "code": ...}``, negative for a signal."""
    _die_with(parent)
    control = socket.socket(fileno=control_fd)
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    gc.collect()
    gc.freeze()  # a worker's first collection would copy every page
    workers: dict[int, int] = {}  # process id: number
    while True:
        ready, _, _ = select.select([control, woken], [], [])
        with suppress(BlockingIOError):
            os.read(woken, 4096)
        for pid, code in _ended():
            control.send(json.dumps({"ended": workers.pop(pid), "code": code}).encode())
        if control not in ready:
            continue
        data, pipes, _, _ = socket.recv_fds(control, 1 << 16, 3)
        message = json.loads(data) if data else None
        if message is None:  # nobody is left to work for
            for pid in workers:
                _signal(pid, signal.SIGKILL)
            os._exit(0)
        if "start" in message:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python warns of threads; those of OpenBLAS stand a fork
                pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for descriptor in (control.detach(), woken, wake):
                    os.close(descriptor)
                _live(message, *pipes)
            with suppress(OSError):  # it does so itself, but perhaps later than it is to be killed
                os.setpgid(pid, pid)
            workers[pid] = message["start"]
            for descriptor in pipes:
                os.close(descriptor)
        else:
            for pid in [pid for pid, number in workers.items() if number == message["signal"]]:
                _signal(pid, message["number"])


def _ended() -> Iterable[tuple[int, int]]:
    """The workers that died, with their exit codes, when all that they started is dead, too."""
    with suppress(ChildProcessError):
        while dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            _signal(dead.si_pid, signal.SIGKILL)  # before it is waited for, while the number is surely still its own
            yield dead.si_pid, os.waitstatus_to_exitcode(os.waitpid(dead.si_pid, 0)[1])


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        (os.killpg if number == signal.SIGKILL else os.kill)(pid, number)


def _die_with(parent: int) -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was faster
        os._exit(0)


def _live(start: dict[str, Any], requests: int, answers: int, output: int) -> None:
    """A worker's life, right after the fork."""
    code = 1
    try:
        with suppress(OSError):
            os.setpgid(0, 0)
        _die_with(start["server"])
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        os.close(output)
        faulthandler.enable()
        faulthandler.register(signal.SIGUSR1, all_threads=False)  # asked for before a worker that hangs is killed
        if start["memory"]:
            resource.setrlimit(resource.RLIMIT_DATA, (start["memory"], start["memory"]))
        _note_torchs_threads()
        _work(start, requests, answers)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # not through the server's code, whose frames are still on the stack


def _work(start: dict[str, Any], requests: int, answers: int) -> None:
    me = os.getpid()

    def send(token: bytes, value: Any) -> None:
        end_in_a_child(me)
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        _LIBC.fflush(None)
        parts = frame(token, value)
        while parts:
            parts = rest(parts, os.writev(answers, parts[:AT_ONCE]))

    token = bytes.fromhex(start["token"])
    probe = _announced_probe(lambda number: send(token, {"asking": number}), frozenset(start["unasked"]))
    if start["memory"] and start["memory"] < (held := _data_held()):
        text = f"--worker-memory {start['memory'] / 2**30:g}: expected more than the {held / 2**30:.2g} GiB that torch alone holds"
        return send(token, {"refused": text})
    try:
        found = find(start["source"], probe=probe)
    except ImplementationError as error:
        return send(token, {"refused": str(error)})
    except BaseException as error:
        return send(token, {"refused": f"--impl {start['source']}: {type(error).__name__}: {error}"})
    send(token, {"found": [_described(i) for i in found]})
    while True:
        filling = reading()
        memory = next(filling)
        try:
            while True:
                while memory:
                    count = os.readv(requests, memory[:AT_ONCE])
                    if count == 0:  # the run is over
                        return None
                    memory = rest(memory, count)
                memory = next(filling)
        except StopIteration as finished:
            token, request = finished.value
        send(token, _answer(found[0], start["memory"], **request))


def _data_held() -> int:
    """Bytes of data of this process, as RLIMIT_DATA counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmData"))


def _announced_probe(announce: Callable[[int], None], unasked: frozenset[int]) -> Probe:
    """Loading a bare callable calls it once; should it die of that, it is to be loaded again without."""
    count = 0

    def announced(function: Callable[..., Any], is_linear: bool) -> bool:
        nonlocal count
        count += 1
        if count in unasked:
            return False
        announce(count)
        takes = False
        with suppress(BaseException):  # such as SystemExit
            takes = takes_lists(function, is_linear)
        announce(0)
        return takes

    return announced


def _described(implementation: Implementation) -> dict[str, Any]:
    """All of an implementation that can be passed: everything but the function."""
    told = {f.name: getattr(implementation, f.name) for f in fields(implementation) if f.name not in FORMS}
    return {"form": next(form for form in FORMS if getattr(implementation, form) is not None), "told": told}


def _answer(
    implementation: Implementation,
    memory: int | None,
    batches: list[Batch],
    wants_gradient: bool,
    calls: int,
    threads: int,
) -> list[Observation] | Failure | dict[str, str]:
    """The Observations; or, of the first batch that has none, a Failure after which this worker is of no use, or what was raised
    past everything."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    found = []
    for batch in batches:
        seen = _observed(implementation, memory, batch, wants_gradient, calls)
        if not isinstance(seen, Observation):
            return seen
        found.append(seen)
    return found


def _observed(
    implementation: Implementation, memory: int | None, batch: Batch, wants_gradient: bool, calls: int
) -> Observation | Failure | dict[str, str]:
    before = set(threading.enumerate())
    try:
        seen = observe(implementation, batch, wants_gradient, calls)
    except BaseException as error:
        if memory and isinstance(error, MemoryError):
            return _exhausted(memory, f"MemoryError: {error}")
        return {"escaped": type(error).__name__, "text": str(error), "traceback": traceback.format_exc()}
    left = _left_behind(before)
    if left:
        names = ", ".join(thread.name for thread in left)
        return Failure(
            "crash",
            f"the worker process left {len(left)} thread{'s' * (len(left) > 1)} running after the call: {names}",
        )
    return _of_memory(seen, memory) if memory and isinstance(seen, Observation) else seen


def _of_memory(seen: Observation, memory: int) -> Observation | Failure:
    """What an allocation that failed raises is no answer of the implementation's."""
    for answer in (seen.first, seen.again):
        if answer is None:
            continue
        raised = answer.raised
        for text in ([f"{raised.type}: {raised.text}"] if raised else []) + [
            answer.loss_type,
            *answer.unreadable.values(),
        ]:
            if _OUT_OF_MEMORY.search(text):
                return _exhausted(memory, str(raised or text))
    return seen


def _exhausted(memory: int, text: str) -> Failure:
    return Failure(
        "crash", f"the worker process exhausted the memory limit of {memory / 2**30:g} GiB (--worker-memory): {text}"
    )


_torchs_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def _note_torchs_threads() -> None:
    """From now on: torch's compiler keeps a pool of threads, which is not the implementation's doing. An audit hook would see every
    start, but only from Python 3.12 on."""
    start = threading.Thread.start

    @functools.wraps(start)
    def noted(thread: threading.Thread) -> None:
        frame = sys._getframe(1)
        while frame is not None and _is_pythons(frame.f_code.co_filename):
            frame = frame.f_back  # type: ignore[assignment]
        if frame and Path(frame.f_code.co_filename).is_relative_to(_TORCH):
            _torchs_threads.add(thread)
        start(thread)

    threading.Thread.start = noted  # type: ignore[method-assign]


def _is_pythons(filename: str) -> bool:
    inside = Path(filename).is_relative_to(Path(threading.__file__).parent)
    return inside and not {"site-packages", "dist-packages"} & set(Path(filename).parts)


_TORCH = Path(torch.__file__).parent


def _left_behind(before: set[threading.Thread]) -> list[threading.Thread]:
    """The Python threads that a call started and that go on after it, those of torch aside. Native threads are not seen: those of
    a kernel look like those of OpenMP and of torch."""

    def new() -> list[threading.Thread]:
        now = [t for t in threading.enumerate() if t not in before and t not in _torchs_threads]
        return [t for t in now if not isinstance(t, threading._DummyThread)]  # a native thread that came by

    until = time.monotonic() + LINGER
    for thread in new():
        thread.join(max(0.0, until - time.monotonic()))
    return new()
