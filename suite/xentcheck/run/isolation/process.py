"""The processes behind workers, seen from this side: servers that fork them, and the workers themselves."""

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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any

import xentcheck
from xentcheck.implementation.environments import Environment
from xentcheck.run.isolation.protocol import TOKEN, receive, send

_PATIENCE = 20.0  # seconds in which the kernel ends processes that were killed, be the machine ever so busy
_LONGEST = 1e6  # seconds that the system waits for anything, eleven days
_KEPT = 1 << 16  # bytes of what a worker printed last
_SHOWN = 6  # lines of it in a message
_SERVER = "import json, sys; path, control, module = json.loads(sys.argv.pop()); sys.path[:] = path + [p for p in sys.path if p not in path]; from xentcheck.run.isolation.guard import main; main(control, module)"
# In another environment the path comes last, and of xentcheck's own place nothing else is to be seen.
_SERVER_ELSEWHERE = """
import importlib.util, json, os, sys
package, path, control, module = json.loads(sys.argv.pop())
sys.path += [one for one in path if one not in sys.path]
spec = importlib.util.spec_from_file_location("xentcheck", package, submodule_search_locations=[os.path.dirname(package)])
sys.modules["xentcheck"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["xentcheck"])
from xentcheck.run.isolation.guard import main
main(control, module)
"""


class DiedError(Exception):
    """A worker that is no more, or is to be no more. status: ``crash`` or ``timeout``."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Server:
    """This side of a server: a Python that has imported what its workers need, and forks them.

    Args:
        python: the interpreter; in another environment than this one it needs NumPy.
        path: what comes first on its ``sys.path``, and leads to xentcheck.
        module: where its workers find their function ``serve``.
        elsewhere: whether the environment is another one, whose own packages come before ``path``.
        variables: its environment variables, if they are not those of this process.
    """

    def __init__(
        self,
        python: str = sys.executable,
        path: Sequence[str] | None = None,
        module: str = "xentcheck.run.isolation.worker",
        elsewhere: bool = False,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115
        with theirs:
            package = [xentcheck.__file__] if elsewhere else []
            arguments = json.dumps([*package, list(sys.path if path is None else path), theirs.fileno(), module])
            self._process = subprocess.Popen(
                [python, "-u", "-c", _SERVER_ELSEWHERE if elsewhere else _SERVER, arguments],
                env=variables,
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


def elsewhere(environment: Environment) -> Server:
    """A server with the Python of an environment."""
    kind, path = ("worker", sys.path) if environment.shares_torch else ("array_worker", [])
    return Server(
        str(environment.python), path, f"xentcheck.run.isolation.{kind}", True, environment.process_variables()
    )


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
