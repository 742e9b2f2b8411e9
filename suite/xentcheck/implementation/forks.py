"""Watches for forks: a child process must not come back from a loss, or all that follows would be done twice."""

from __future__ import annotations

import os
import select
import sys
import time
from contextlib import suppress
from types import TracebackType

_PATIENCE = 5.0  # seconds for a child to end or to come back; one that lives longer is of a pool, for instance


class ForkWatch:
    """``with ForkWatch() as watch:`` ends a child process that comes to the end of the block, be it by an exception.

    child_came_back: afterwards, in the parent, whether there was one. It is known of forks by Python, such as those of ``os.fork`` and
    ``multiprocessing``; a child that C code forked is ended without it.
    """

    def __init__(self) -> None:
        self.child_came_back = False
        self._process = os.getpid()
        self._children: list[
            int
        ] = []  # of each child a pipe, which is at its end when the child and all of its children are

    def __enter__(self) -> ForkWatch:
        _open.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_in_a_child(self._process)
        _open.remove(self)
        until = time.monotonic() + _PATIENCE
        for pipe in self._children:
            poll = select.poll()
            poll.register(pipe, select.POLLIN)
            if poll.poll(1000 * max(0.0, until - time.monotonic())) and os.read(pipe, 1):
                self.child_came_back = True
            os.close(pipe)


def end_in_a_child(process: int) -> None:
    """Ends this process, with a message, unless it is the one of this number."""
    if os.getpid() == process:
        return
    with suppress(OSError):
        os.write(2, b"xentcheck: a loss forked, and the child process came back from it; it ends here\n")
    for pipe in _to_parents:
        with suppress(OSError):
            os.write(pipe, b"!")
    os._exit(1)


_open: list[ForkWatch] = []
_to_parents: list[int] = []  # in a child: the pipes that its parent, and the parent of that, read from
_pipe: tuple[int, int] | None = None


def _before() -> None:
    global _pipe
    _pipe = os.pipe() if _open else None


def _in_parent() -> None:
    if _pipe:
        os.close(_pipe[1])
        _open[-1]._children.append(_pipe[0])


def _in_child() -> None:
    if _pipe:
        os.close(_pipe[0])
        _to_parents.append(_pipe[1])


if sys.platform != "win32":
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
