"""Implementations behind worker processes: what one of them does to its process is a verdict of one case, and the run goes on.

``Workers.find`` and ``Workers.observe`` do what ``implementation.find`` and ``observe.observe`` do, elsewhere. Nothing of an
implementation is imported or called in this process. ``guard`` and ``worker`` are the other side, ``protocol`` what passes in between.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any

import torch

from xentcheck.implementation import BrokenError, Implementation, ImplementationError, find
from xentcheck.run.isolation.protocol import TOKEN, receive, send
from xentcheck.run.observe import Failure, Observation
from xentcheck.spec.batch import Batch

LOADING = 60.0  # seconds that an implementation may take to be imported
_TOGETHER = 1 << 22  # bytes of logits in one request; with more, what a worker costs is copying
_PATIENCE = 20.0  # seconds in which the kernel ends processes that were killed, be the machine ever so busy
_LONGEST = 1e6  # seconds that the system waits for anything, eleven days
_KEPT = 1 << 16  # bytes of what a worker printed last
_SHOWN = 6  # lines of it in a message
_SERVER = "import json, sys; path, control, module = json.loads(sys.argv.pop()); sys.path[:] = path + [p for p in sys.path if p not in path]; from xentcheck.run.isolation.guard import main; main(control, module)"


class DiedError(Exception):
    """A worker that is no more, or is to be no more. status: ``crash`` or ``timeout``."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Workers:
    """The workers of one run, one for each implementation, started when they are needed and again when they died.

    limit: seconds for one case, that is for both calls, forward and backward. memory: bytes of data that a worker may hold, torch's own
    0.3 GiB included, or None. Raises ImplementationError where there is no isolation.
    """

    def __init__(self, limit: float = 60.0, memory: int | None = None) -> None:
        if sys.platform != "linux":
            raise ImplementationError(
                "--isolate needs Linux, whose kernel ends a worker with the process that started it; run without it"
            )
        self.limit, self._memory, self._loading = limit, memory, LOADING
        self._server: Server | None = None
        self._fatal: dict[str, list[int]] = {}  # by source: the questions at loading that a worker died of
        self._loaded: list[Worker | None] = []  # of those that ``find`` has found so far
        self._serving: dict[str, Worker] = {}  # by the implementation's name

    def find(self, specification: str) -> list[Implementation]:
        """As ``implementation.find``, but nothing is imported here: of each implementation there is all but its function."""
        self._loaded.clear()
        found = find(specification, find_one=self._find_one)
        for implementation, worker in zip(found, self._loaded, strict=True):
            if old := self._serving.pop(implementation.name, None):  # of an earlier search
                old.end()
            if worker is not None:
                self._serving[implementation.name] = worker
        return found

    def observe(
        self, implementation: Implementation, batch: Batch, wants_gradient: bool, calls: int = 2
    ) -> Observation | Failure:
        """As ``observe.observe``; a Failure where the worker died of it, and then the next call starts another one."""
        answer = self._ask(implementation, [batch], wants_gradient, calls)
        return answer if isinstance(answer, Failure) else answer[0]

    def observe_all(self, implementation: Implementation, batches: Sequence[Batch]) -> Sequence[Observation | Failure]:
        """One call for each batch, with its gradient. Together they cost little more than one: most of what a worker costs is the
        way there and back. Where one of them fails, each is asked for by itself, and only that one is a Failure."""
        if len(batches) > 1 and sum(batch.input.nbytes for batch in batches) <= _TOGETHER:
            answer = self._ask(implementation, batches, True, 1)
            if isinstance(answer, list):
                return answer
        return [self.observe(implementation, batch, True, 1) for batch in batches]

    def close(self) -> None:
        """Ends all workers. They can be used again."""
        for worker in (*self._serving.values(), *filter(None, self._loaded)):
            worker.end()
        self._serving.clear()
        if self._server:
            self._server.close()
            self._server = None

    def _ask(
        self, implementation: Implementation, batches: Sequence[Batch], wants_gradient: bool, calls: int
    ) -> list[Observation] | Failure:
        if not implementation.source:
            raise ImplementationError(
                f"implementation {implementation.name}: --isolate loads an implementation anew, so it must have a source that --impl takes, "
                "such as package.module:attribute or path/to/file.py:attribute; this one was made from an object"
            )
        request = {"batches": list(batches), "wants_gradient": wants_gradient, "calls": calls}
        request |= {"threads": torch.get_num_threads()}
        worker = self._serving.get(implementation.name)
        if worker is None or worker.is_dead():
            try:
                worker, _ = self._start(implementation.source)
            except (DiedError, ImplementationError) as error:
                says = error.message if isinstance(error, DiedError) else f"says: {error}"
                return Failure("crash", f"no worker process could be started again: the new one {says}")
            self._serving[implementation.name] = worker
        try:
            answer = worker.ask(self.limit, f"gave no answer within {self.limit:g} s (--case-timeout)", request)
        except DiedError as death:
            return Failure(death.status, f"the worker process {death.message}")
        sys.stdout.write(worker.printed())  # where it would be without a worker; pytest shows it if the case fails
        if isinstance(answer, Failure):
            worker.end()
        return answer

    def _find_one(self, part: str) -> list[Implementation]:
        try:
            worker, found = self._start(part)
        except DiedError as death:
            self._loaded.append(None)
            text = f"--impl {part}: cannot be loaded: the worker that imported it {death.message}"
            raise BrokenError(text) from death
        except BrokenError:
            self._loaded.append(None)
            raise
        if len(found) > 1:  # each gets one of its own
            worker.end()
        self._loaded += [worker] if len(found) == 1 else [None] * len(found)
        return found

    def _start(self, source: str) -> tuple[Worker, list[Implementation]]:
        """A worker that has loaded what ``source`` names, and what that is."""
        unasked = self._fatal.setdefault(source, [])
        while True:
            if self._server is None or self._server.is_dead():
                self._server = Server()
            worker, asking = Worker(self._server), 0
            request = {"source": source, "memory": self._memory, "unasked": unasked}
            try:
                while True:
                    limit = self.limit if asking else self._loading
                    reply = worker.ask(limit, f"did not finish within {limit:g} s", request)
                    if "asking" not in reply:
                        break
                    asking, request = reply["asking"], {}
            except DiedError:
                if not asking:
                    raise
                unasked.append(asking)  # what is not known is not claimed
                continue
            sys.stdout.write(worker.printed())
            if "refused" in reply:
                worker.end()
                raise (BrokenError if reply["broken"] else ImplementationError)(reply["refused"])
            return worker, [Implementation(**{one.pop("form"): Elsewhere(), **one}) for one in reply["found"]]


class Elsewhere:
    """Stands for the function of an implementation that runs in a worker."""

    __module__ = ""  # of no package, so that no version is taken from it

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        raise ImplementationError("under --isolate an implementation is called in its worker only; run this without it")


class Server:
    """This side of a server: a Python that has imported what its workers need, and forks them.

    Args:
        python: the interpreter; in another environment than this one it needs NumPy.
        path: what comes first on its ``sys.path``, and leads to xentcheck.
        module: where its workers find their function ``serve``.
    """

    def __init__(
        self, python: str = sys.executable, path: Sequence[str] = (), module: str = "xentcheck.run.isolation.worker"
    ) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115
        with theirs:
            arguments = json.dumps([list(path or sys.path), theirs.fileno(), module])
            self._process = subprocess.Popen(
                [python, "-u", "-c", _SERVER, arguments],
                stdin=subprocess.DEVNULL,
                stdout=self._complaints,
                stderr=self._complaints,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for this process, which then ends the others
            )

    def start(self, ends: Sequence[int]) -> None:
        with suppress(OSError):  # the worker that is not started is found to be dead
            socket.send_fds(self._control, [b"!"], ends)

    def is_dead(self) -> bool:
        return self._process.poll() is not None

    def complaints(self) -> str:
        self._complaints.seek(0)
        return self._complaints.read().decode(errors="replace")

    def close(self) -> None:
        """Ends it, but no worker."""
        self._control.close()
        self._process.kill()
        self._process.wait()
        self._complaints.close()


class Worker:
    """This side of one worker."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._code: int | None = None
        self._has_ended, self._text = False, bytearray()
        self._lifeline, guards = socket.socketpair()
        self._channel, workers = socket.socketpair()
        self._output, printing = os.pipe()
        os.set_blocking(self._output, False)
        with guards, workers:
            server.start([guards.fileno(), workers.fileno(), printing])
        os.close(printing)
        self._listening: list[Any] = [self._channel, self._lifeline, self._output]

    def is_dead(self) -> bool:
        """Whether it died since it gave its last answer; no case is to blame for that."""
        if not self._has_ended and wait([self._channel, self._lifeline], 0):  # an end, or what somebody else wrote
            self.end()
        return self._has_ended

    def ask(self, limit: float, late: str, request: Any) -> Any:
        """Its answer. Raises DiedError, after which it is gone; ``late``: the message where there is none within ``limit`` seconds."""
        until, token = time.monotonic() + min(limit, _LONGEST), os.urandom(TOKEN)
        try:
            self._channel.settimeout(until - time.monotonic())
            send(self._channel, token, request)
            self._listen(until)
            answer = receive(self._channel, token, until)[1]
            self._drain()
            return answer
        except TimeoutError:
            with suppress(OSError):
                self._lifeline.send(b"?")  # where is it? faulthandler tells even if it is in C
            wait(self._listening[2:], 0.3)
            time.sleep(0.01)
            self.end()
            raise DiedError("timeout", late + _story(self.printed())) from None
        except ValueError as error:
            self.end()
            text = f"wrote to the socket that answers go through, or to every file descriptor there is: {error}"
            raise DiedError("crash", text[:300] + _story(self.printed())) from error
        except (EOFError, OSError) as error:
            raise self._death() from error
        except BaseException:
            self.end()
            raise

    def printed(self) -> str:
        """What it printed since this was asked last."""
        text = self._text.decode(errors="replace")
        self._text.clear()
        return text

    def end(self) -> int | None:
        """Ends it, whatever it is doing, and all that it started. Its exit code, None if nobody knows it."""
        if not self._has_ended:
            self._has_ended = True
            with suppress(OSError):
                self._lifeline.shutdown(socket.SHUT_WR)
            with suppress(OSError, ValueError):
                self._lifeline.settimeout(_PATIENCE)
                self._code = int(self._lifeline.recv(16))
            self._drain()
            self._lifeline.close()
            self._channel.close()
            os.close(self._output)
        return self._code

    def _listen(self, until: float) -> None:
        """Waits for the answer to begin. What was answered counts, whatever else happened."""
        ready: list[Any] = []
        while self._channel not in ready:
            if self._lifeline in ready:
                raise EOFError
            if (left := until - time.monotonic()) <= 0:
                raise TimeoutError
            ready = wait(self._listening, left)
            if self._output in ready:
                self._drain()

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            for _ in range(64):  # somebody may print faster than this reads
                chunk = os.read(self._output, _KEPT)
                if not chunk:  # it closed stdout and stderr, or is dead
                    del self._listening[2:]
                    break
                self._text += chunk
                del self._text[:-_KEPT]

    def _death(self) -> DiedError:
        by_itself = wait([self._lifeline], _PATIENCE)  # it closed its socket, perhaps because it is dying
        code = self.end()
        if not by_itself:
            text = "closed the socket that answers go through"
        elif code is None:
            text = f"died with the process that guards it{_story(self._server.complaints())}"
        elif code >= 0:
            text = f"exited with status {code} before it answered"
        else:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
            text = f"was killed by signal {-code} ({name})"
            text += ", perhaps by the system for want of memory" if -code == signal.SIGKILL else ""
        return DiedError("crash", text + _story(self.printed()))


_DUMP = re.compile(
    r"^(Fatal Python error: .*|(Current thread|Thread|Stack) .*\(most recent call first\):)$", re.MULTILINE
)
_OURS = re.compile(r'^  File ".*[/\\]xentcheck[/\\]run[/\\](modes|observe|isolation[/\\]\w+)\.py"', re.MULTILINE)


def _story(text: str) -> str:
    """The last lines that a worker printed, and those of a dump by faulthandler that are not xentcheck's."""
    text = "".join(c for c in text if c.isprintable() or c in "\n\t")
    dump = _DUMP.search(text)
    printed, where = (text[: dump.start()], text[dump.start() :]) if dump else (text, "")
    ours = _OURS.search(where)
    where = where[: ours.start()] if ours else where.partition("\n\n")[0]
    lines = [line for line in printed.splitlines() if line.strip()][-_SHOWN:]
    lines += [line for line in where.splitlines() if line.strip()][: _SHOWN + 2]
    return "".join(["; it wrote last:", *(f"\n{line[:200]}" for line in lines)]) if lines else ""
