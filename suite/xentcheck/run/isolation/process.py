"""One worker process, seen from this side, and the fork server that starts them: it has imported torch once, and each worker is its copy."""

from __future__ import annotations

import fcntl
import itertools
import json
import math
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from xentcheck.run.isolation.protocol import AT_ONCE, TOKEN, GarbledError, frame, reading, rest
from xentcheck.run.observe import Failure

_PATIENCE = 5.0  # seconds in which the kernel ends a process that was killed
_KEPT = 1 << 16  # bytes of what a worker printed last
_SHOWN = 6  # lines of it in a message
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); control, parent = map(int, sys.argv[2:]); del sys.argv[1:]; from xentcheck.run.isolation.worker import main; main(control, parent)"


class DiedError(Exception):
    """A worker that is no more, or is to be no more. ``failure`` says why."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(status, message)


@dataclass
class Worker:
    """This side of one worker."""

    server: Server
    number: int
    requests: int
    answers: int
    output: int
    token: bytes

    def __post_init__(self) -> None:
        self._text, self._mute = bytearray(), False
        for descriptor in (self.requests, self.answers, self.output):
            os.set_blocking(descriptor, False)

    def is_dead(self) -> bool:
        """Whether it died since it gave its last answer; no case is to blame for that."""
        if self.requests >= 0:
            self.server.listen(0)
            stray = _ready(0, [self.answers])  # the pipe's end, or what somebody else wrote to it
            if stray or self.number in self.server.ended or not self.server.lives:
                self.end()
        return self.requests < 0

    def ask(self, request: dict[str, Any], limit: float) -> Any:
        self._drain()
        self.token = os.urandom(TOKEN)
        return self.wait(limit, f"gave no answer within {limit:g} s (--case-timeout)", frame(self.token, request))

    def wait(self, limit: float, late: str, sending: list[memoryview] | None = None) -> Any:
        """The next answer. Raises DiedError, after which the worker is gone."""
        try:
            return self._converse(time.monotonic() + limit, late, sending or [])
        except BaseException:
            self.end()
            raise

    def printed(self) -> str:
        """What it printed since this was asked last."""
        text = self._text.decode(errors="replace")
        self._text.clear()
        return text

    def end(self) -> int | None:
        """Kills it, whatever it is doing, and all that it started. Its exit code, None if it has none."""
        if self.requests >= 0:
            self.server.signal(self.number, signal.SIGKILL)
            self.server.listen(_PATIENCE, self.number)
            self._drain()
            for descriptor in (self.requests, self.answers, self.output):
                os.close(descriptor)
            self.requests = -1
        return self.server.ended.get(self.number)

    def _converse(self, deadline: float, late: str, sending: list[memoryview]) -> Any:
        filling = reading(self.token)
        memory = next(filling)
        while True:
            control = self.server.control.fileno()
            listening = [self.answers, control, *([] if self._mute else [self.output])]
            ready = _ready(deadline - time.monotonic(), listening, [self.requests] if sending else [])
            if self.output in ready:
                self._drain()
            try:
                if self.requests in ready:
                    sending = rest(sending, os.writev(self.requests, sending[:AT_ONCE]))
                if self.answers in ready:
                    count = os.readv(self.answers, memory[:AT_ONCE])
                    if count == 0:
                        raise EOFError
                    memory = rest(memory, count)
                    while not memory:
                        memory = filling.send(None)
            except StopIteration as finished:
                self._drain()
                return finished.value[1]
            except BlockingIOError:
                continue
            except (GarbledError, ValueError, KeyError) as error:
                self.end()
                text = f"wrote to the pipe that answers go through, or to every file descriptor there is: {error}"
                raise DiedError("crash", text[:300] + story(self.printed())) from error
            except (EOFError, OSError) as error:
                raise self._death() from error
            if self.answers in ready:
                continue  # whatever else happened, what was answered counts
            if control in ready:
                self.server.listen(0)
            if self.number in self.server.ended or not self.server.lives:
                if not _ready(0, [self.answers]):
                    raise self._death()
            elif time.monotonic() > deadline:
                self.server.signal(self.number, signal.SIGUSR1)  # where is it? faulthandler tells even if it is in C
                _ready(0.3, [self.output])
                time.sleep(0.01)
                self.end()
                raise DiedError("timeout", late + story(self.printed()))

    def _death(self) -> DiedError:
        self.server.listen(1.0, self.number)  # it closed its pipes, perhaps because it is dying
        by_itself = self.number in self.server.ended or not self.server.lives
        code = self.end()
        if not by_itself:
            text = "closed the pipe that answers go through"
        elif code is None:
            text = f"died with the server that starts workers{story(self.server.complaints())}"
        elif code >= 0:
            text = f"exited with status {code} before it answered"
        else:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
            text = f"was killed by signal {-code} ({name})"
            text += ", perhaps by the system for want of memory" if -code == signal.SIGKILL else ""
        return DiedError("crash", text + story(self.printed()))

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            for _ in range(64):  # somebody may print faster than this reads
                chunk = os.read(self.output, _KEPT)
                if not chunk:  # it closed stdout and stderr, or is dead
                    self._mute = True
                    break
                self._text += chunk
                del self._text[:-_KEPT]


class Server:
    """This side of the fork server."""

    def __init__(self) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ended: dict[int, int] = {}  # worker: exit code, negative for a signal
        self.lives = True
        self._numbers = itertools.count(1)
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115
        with theirs:
            boot = [sys.executable, "-u", "-c", _BOOT, json.dumps(sys.path), str(theirs.fileno()), str(os.getpid())]
            self._process = subprocess.Popen(
                boot,
                stdin=subprocess.DEVNULL,
                stdout=self._complaints,
                stderr=self._complaints,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for this process, which then ends the others
            )

    def start(self, source: str, unasked: list[int], memory: int | None) -> Worker:
        pipes = [os.pipe() for _ in range(3)]  # requests, answers, output
        (read, requests), (answers, write), (output, printed) = pipes
        for descriptor in (requests, answers):
            with suppress(OSError):  # a user's pipes may hold so much in all; this one is slower then
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, 1 << 20)
        number, token = next(self._numbers), os.urandom(TOKEN)
        message = {"start": number, "server": self._process.pid, "token": token.hex()}
        message |= {"source": source, "unasked": unasked, "memory": memory}
        with suppress(OSError):  # the worker that is not started is found to be dead
            socket.send_fds(self.control, [json.dumps(message).encode()], [read, write, printed])
        for descriptor in (read, write, printed):
            os.close(descriptor)
        return Worker(self, number, requests, answers, output, token)

    def signal(self, worker: int, number: int) -> None:
        with suppress(OSError):
            self.control.send(json.dumps({"signal": worker, "number": number}).encode())

    def listen(self, patience: float, worker: int | None = None) -> None:
        """Takes note of the workers that ended; waits for the end of one."""
        until = time.monotonic() + patience
        while self.lives and worker not in self.ended:
            if not _ready(until - time.monotonic(), [self.control.fileno()]):
                break
            try:
                message = json.loads(self.control.recv(1 << 12) or b"null")
            except OSError:
                message = None
            if message is None:
                self.lives = False
            else:
                self.ended[message["ended"]] = message["code"]

    def complaints(self) -> str:
        self._complaints.seek(0)
        return self._complaints.read().decode(errors="replace")

    def close(self) -> None:
        """Ends it and all workers, with what they started."""
        self.lives = False
        self.control.close()
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:  # it is still importing torch
            self._process.kill()
            self._process.wait()
        self._complaints.close()


_LONGEST = 2**31 - 1  # milliseconds that poll takes, three weeks


def _ready(patience: float, listening: list[int], writing: list[int] | None = None) -> set[int]:
    """The file descriptors that can be read or written at once, or are at their end; waits for one."""
    poll = select.poll()  # select itself knows a thousand descriptors only
    for descriptor in listening:
        poll.register(descriptor, select.POLLIN)
    for descriptor in writing or ():
        poll.register(descriptor, select.POLLOUT)
    return {descriptor for descriptor, _ in poll.poll(min(math.ceil(1000 * max(0.0, patience)), _LONGEST))}


_DUMP = re.compile(
    r"^(Fatal Python error: .*|(Current thread|Thread|Stack) .*\(most recent call first\):)$", re.MULTILINE
)
_OURS = re.compile(r'^  File ".*[/\\]xentcheck[/\\]run[/\\](modes|observe|isolation[/\\]worker)\.py"', re.MULTILINE)


def story(text: str) -> str:
    """The last lines that a worker printed, and those of a dump by faulthandler that are not xentcheck's."""
    text = "".join(c for c in text if c.isprintable() or c in "\n\t")
    dump = _DUMP.search(text)
    printed, where = (text[: dump.start()], text[dump.start() :]) if dump else (text, "")
    ours = _OURS.search(where)
    where = where[: ours.start()] if ours else where.partition("\n\n")[0]
    lines = [line for line in printed.splitlines() if line.strip()][-_SHOWN:]
    lines += [line for line in where.splitlines() if line.strip()][: _SHOWN + 2]
    return "".join(["; it wrote last:", *(f"\n{line[:200]}" for line in lines)]) if lines else ""
