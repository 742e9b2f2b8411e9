"""The processes behind ``--isolate``: a server forks guards, and each guard a worker. Imports only Python's own library.

Why a server: importing torch takes a second or more, and a loss that crashes in every case needs a new worker for each. The server is a
new interpreter that has imported what workers need and nothing else: no pytest, no implementation, no call into torch, no thread, no
CUDA context. A worker is in the state of a newly started interpreter, some twenty milliseconds later.

Why a guard: it inherits what the worker leaves behind, however often that forked (PR_SET_CHILD_SUBREAPER), and ends all of it when the
worker ends, or when its lifeline is closed, which the kernel does when the run dies, in whatever way. Linux only.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import importlib
import os
import signal
import socket
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36

Serve = Callable[[socket.socket], None]


def main(control_fd: int, module: str) -> None:
    """The server. For each byte that comes through the socket ``control_fd`` it starts a guard with the three file descriptors that come
    along: its lifeline, the channel of its worker, and where the worker prints. ``module``: that of the worker's function ``serve``."""
    control = socket.socket(fileno=control_fd)
    serve: Serve = importlib.import_module(module).serve
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # what becomes of a guard is for its lifeline to tell
    gc.collect()
    gc.freeze()  # a worker's first collection would copy every page
    while True:
        data, ends, _, _ = socket.recv_fds(control, 1, 3)
        if not data:  # nobody is left to work for
            os._exit(0)
        if _fork() == 0:
            try:
                control.close()
                _guard(serve, socket.socket(fileno=ends[0]), *ends[1:])
            finally:
                os._exit(1)
        for end in ends:
            os.close(end)


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of threads; those of OpenBLAS stand a fork
        return os.fork()


def _guard(serve: Serve, lifeline: socket.socket, channel: int, output: int) -> None:
    """Sends the exit code of its worker through the lifeline, negative for a signal, when all that the worker started is gone. A byte that
    comes through the lifeline makes the worker print where it is."""
    os.setsid()  # nobody who ends a process group ends a guard with it
    woken, wake = socket.socketpair()
    for end in (woken, wake):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    guard, worker = os.getpid(), _fork()
    if worker == 0:
        signal.set_wakeup_fd(-1)
        for end in (lifeline, woken, wake):
            end.close()
        _live(serve, guard, channel, output)
    os.close(channel)
    os.close(output)
    codes: dict[int, int] = {}
    left: list[int] = []
    while worker not in codes:
        ready = wait([lifeline, woken])
        if lifeline in ready:
            if not lifeline.recv(1):
                break
            os.kill(worker, signal.SIGUSR1)
        if woken in ready:
            woken.recv(4096)
            codes |= _ended(os.WNOHANG)
    if worker not in codes:
        os.kill(worker, signal.SIGKILL)
    while worker not in codes or (left := _children()):
        for child in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
        codes |= _ended(0)  # now their children are the guard's
    with suppress(OSError):
        lifeline.send(str(codes[worker]).encode())


def _ended(options: int) -> Iterator[tuple[int, int]]:
    """The children that ended, with their exit codes, the first of them waited for unless ``options`` say otherwise."""
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, options))[0]:
            yield found[0], os.waitstatus_to_exitcode(found[1])
            options = os.WNOHANG


def _children() -> list[int]:
    """The processes whose parent this is, dead ones that nobody waited for among them."""
    try:
        return [int(child) for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except FileNotFoundError:  # a rare kernel, built without it
        return []


def die_with_the_parent() -> None:
    """From now on, when the process that started this one ends, the kernel ends this one as well."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _live(serve: Serve, guard: int, channel: int, output: int) -> None:
    """A worker's life, right after the fork."""
    code = 1
    try:
        os.setpgid(0, 0)
        die_with_the_parent()
        if os.getppid() != guard:  # it was faster
            os._exit(0)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        os.close(output)
        faulthandler.enable()
        faulthandler.register(signal.SIGUSR1, all_threads=False)  # asked for before a worker that hangs is ended
        serve(socket.socket(fileno=channel))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # not through the server's code, whose frames are still on the stack
