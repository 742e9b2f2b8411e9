"""Implementations behind worker processes: what one of them does to its process is a verdict of one case, and the run goes on.

``Workers.find`` and ``Workers.observe`` do what ``implementation.find`` and ``observe.observe`` do, elsewhere. Nothing of an
implementation is imported or called in this process. ``worker`` is the other side.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch

from xentcheck.implementation import Implementation, ImplementationError, find
from xentcheck.run.isolation.process import DiedError, Server, Worker
from xentcheck.run.observe import Failure, Observation
from xentcheck.spec.batch import Batch

LOADING = 60.0  # seconds that an implementation may take to be imported
_TOGETHER = 1 << 22  # bytes of logits in one request; with more, what a worker costs is copying


class Workers:
    """The workers of one run, one for each implementation, started when they are needed and again when they died.

    limit: seconds for one case, that is for both calls, forward and backward. memory: bytes of data that a worker may hold, torch's own
    0.3 GiB included, or None. loading: seconds for importing an implementation. Raises ImplementationError where there is no isolation.
    """

    def __init__(self, limit: float = 60.0, memory: int | None = None, loading: float = LOADING) -> None:
        if sys.platform != "linux":
            raise ImplementationError(
                "--isolate needs Linux, whose kernel ends a worker with the process that started it; run without it"
            )
        self.limit, self._memory, self._loading = limit, memory, loading
        self._server: Server | None = None
        self._unasked: dict[str, list[int]] = {}  # by source: the questions that were fatal when it was loaded
        self._loaded: dict[str, Worker] = {}  # by source, while ``find`` looks
        self._serving: dict[str, Worker] = {}  # by the implementation's name

    def find(self, specification: str) -> list[Implementation]:
        """As ``implementation.find``, but nothing is imported here: of each implementation there is all but its function."""
        found = find(specification, find_one=self._find_one)
        for implementation in found:
            if old := self._serving.pop(implementation.name, None):  # of an earlier search
                old.end()
            if new := self._loaded.pop(implementation.source, None):
                self._serving[implementation.name] = new
        for worker in self._loaded.values():
            worker.end()
        self._loaded.clear()
        return found

    def observe(
        self, implementation: Implementation, batch: Batch, wants_gradient: bool, calls: int = 2
    ) -> Observation | Failure:
        """As ``observe.observe``; a Failure where the worker died of it, and then the next call starts another one."""
        answer = self._ask(implementation, [batch], wants_gradient, calls)
        if isinstance(answer, dict):
            _raise_here(answer)
        return answer if isinstance(answer, Failure) else answer[0]

    def observe_all(self, implementation: Implementation, batches: Sequence[Batch]) -> Sequence[Observation | Failure]:
        """One call for each batch, with its gradient. Together they cost little more than one: most of what a worker costs is the
        way there and back. Where one of them fails, each is asked for by itself, and only that one is a Failure."""
        if len(batches) > 1 and sum(batch.input.nbytes for batch in batches) <= _TOGETHER:
            answer = self._ask(implementation, batches, True, 1)
            if isinstance(answer, list):
                return answer
        return [self.observe(implementation, batch, True, 1) for batch in batches]

    def _ask(
        self, implementation: Implementation, batches: Sequence[Batch], wants_gradient: bool, calls: int
    ) -> list[Observation] | Failure | dict[str, str]:
        if not implementation.source:
            raise ImplementationError(
                f"implementation {implementation.name}: --isolate loads an implementation anew, so it must have a source that --impl takes, "
                "such as package.module:attribute or path/to/file.py:attribute; this one was made from an object"
            )
        request = {"batches": list(batches), "wants_gradient": wants_gradient, "calls": calls}
        request |= {"threads": torch.get_num_threads()}
        try:
            worker = self._worker_for(implementation)
        except DiedError as death:
            message = f"no worker process could be started again: the new one {death.failure.message}"
            return Failure(death.failure.status, message)
        try:
            answer = worker.ask(request, self.limit)
        except DiedError as death:
            return Failure(death.failure.status, f"the worker process {death.failure.message}")
        sys.stdout.write(worker.printed())  # where it would be without a worker; pytest shows it if the case fails
        if isinstance(answer, Failure):
            worker.end()
        return answer

    def close(self) -> None:
        """Ends all workers. They can be used again."""
        if self._server:
            self._server.close()
            self._server = None
        for worker in (*self._serving.values(), *self._loaded.values()):
            worker.end()
        self._serving.clear()
        self._loaded.clear()

    def _worker_for(self, implementation: Implementation) -> Worker:
        worker = self._serving.get(implementation.name)
        if worker is None or worker.is_dead():
            worker, reply = self._start(implementation.source)
            if "refused" in reply:
                worker.end()
                raise DiedError("crash", f"says: {reply['refused']}")
            worker.printed()  # it was shown when it was loaded first
            self._serving[implementation.name] = worker
        return worker

    def _find_one(self, part: str) -> list[Implementation]:
        try:
            worker, reply = self._start(part)
        except DiedError as death:
            raise ImplementationError(
                f"--impl {part}: cannot be loaded: the worker that imported it {death.failure.message}"
            ) from death
        sys.stdout.write(worker.printed())
        if "refused" in reply:
            worker.end()
            raise ImplementationError(reply["refused"])
        found = [Implementation(**{d["form"]: Elsewhere()}, **d["told"]) for d in reply["found"]]
        if len(found) == 1 and found[0].source not in self._loaded:
            self._loaded[found[0].source] = worker
        else:
            worker.end()
        return found

    def _start(self, source: str) -> tuple[Worker, dict[str, Any]]:
        """A worker that has loaded what ``source`` names, and what it says of it."""
        unasked = self._unasked.setdefault(source, [])
        while True:
            if self._server and not self._server.lives:
                self._server.close()
                self._server = None
            self._server = self._server or Server()
            worker = self._server.start(source, unasked, self._memory)
            asking = 0
            try:
                while True:
                    limit = self.limit if asking else self._loading
                    reply = worker.wait(limit, f"did not finish within {limit:g} s")
                    if "asking" not in reply:
                        return worker, reply
                    asking = reply["asking"]
            except DiedError:
                if not asking:
                    raise
                unasked.append(asking)  # it died of the call that finds out whether it takes lists; so it does not


class Elsewhere:
    """Stands for the function of an implementation that runs in a worker."""

    __module__ = ""  # of no package, so that no version is taken from it

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        raise ImplementationError("under --isolate an implementation is called in its worker only; run this without it")


def _raise_here(answer: dict[str, str]) -> None:
    """What no implementation is expected to raise is raised here as it would be without a worker, and fails the test."""
    if answer["escaped"] == "SystemExit":
        raise SystemExit(answer["text"])
    raise RuntimeError(f"{answer['escaped']}: {answer['text']}\nIn the worker:\n{answer['traceback']}")
