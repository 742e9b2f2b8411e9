"""Implementations behind worker processes: what one of them does to its process is a verdict of one case, and the run goes on.

``Workers.find`` and ``Workers.observe`` do what ``implementation.find`` and ``observe.observe`` do, elsewhere. Nothing of an
implementation is imported or called in this process. ``guard`` and ``worker`` are the other side, ``protocol`` what passes in between.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from xentcheck.implementation import BrokenError, Implementation, ImplementationError, find
from xentcheck.implementation.environments import Environment
from xentcheck.run.answer import Failure, Observation
from xentcheck.run.isolation.process import DiedError, Server, Worker, elsewhere
from xentcheck.spec.batch import Batch
from xentcheck.spec.needs import as_taken, trial_batch

LOADING = 60.0  # seconds that an implementation may take to be imported
_TOGETHER = 1 << 22  # bytes of logits in one request; with more, what a worker costs is copying


class Workers:
    """The workers of one run, one for each implementation, started when they are needed and again when they died.

    limit: seconds for one case, that is for both calls, forward and backward. memory: bytes of data that a worker may hold, torch's own
    0.3 GiB included, or None. Raises ImplementationError where there is no isolation.
    """

    def __init__(self, limit: float = 60.0, memory: int | None = None) -> None:
        if sys.platform != "linux":
            raise ImplementationError(
                "worker processes need Linux, whose kernel ends a worker with the process that started it; "
                "run without --isolate, and without libraries in environments of their own"
            )
        self.limit, self._memory, self._loading = limit, memory, LOADING
        self._servers: dict[Environment | None, Server] = {}
        self._fatal: dict[str, list[int]] = {}  # by source: the questions at loading that a worker died of
        self._loaded: list[Worker | None] = []  # of those that ``find`` has found so far
        self._serving: dict[str, Worker] = {}  # by the implementation's name

    def find(self, specification: str) -> list[Implementation]:
        """As ``implementation.find``, but nothing is imported here: of each implementation there is all but its function."""
        self._loaded.clear()
        found = find(specification, find_one=self._find_one)
        for implementation, worker in zip(found, self._loaded, strict=True):
            self._serve(implementation.name, worker)
        return self.settle(found)

    def settle(self, found: Sequence[Implementation]) -> list[Implementation]:
        """The implementations that ``find`` has found, and in place of those in environments of their own what is found there: with the
        library's version, or with the reason why it is unavailable or broken. Raises BrokenError where all of them are broken."""
        settled = [self._settled(one) if one.environment else one for one in found]
        if all(one.broken for one in settled):
            raise BrokenError("\n".join(dict.fromkeys(one.broken for one in settled)))
        return settled

    def _settled(self, implementation: Implementation) -> Implementation:
        environment, elsewhere = implementation.environment, {implementation.form: Elsewhere()}
        implementation = replace(implementation, **elsewhere)  # type: ignore[arg-type]
        if environment is None or implementation.unavailable or implementation.broken:
            return implementation
        if missing := environment.why_missing():
            return replace(implementation, unavailable=missing)
        try:
            worker, found = self._start(implementation.source, environment)
        except DiedError as death:
            return replace(
                implementation, broken=f"{implementation.name}: cannot be loaded: its worker {death.message}"
            )
        except ImplementationError as error:
            return replace(implementation, broken=str(error))
        there = replace(found[0], name=implementation.name, source=implementation.source)
        self._serve(there.name, worker)
        wrong = self._wrong_answer(there)
        return replace(there, broken=f"{there.name}: the trial call failed: {wrong}") if wrong else there

    def _wrong_answer(self, implementation: Implementation) -> str:
        """What is wrong with the answer to a small batch that any loss with these capabilities takes; empty if nothing is."""
        batch = trial_batch(implementation.capabilities, implementation.classes_divisible_by)
        seen = self.observe(implementation, batch, True, 1)
        if isinstance(seen, Failure):
            return seen.message
        if seen.first.raised:
            return f"{seen.first.raised}"
        if seen.first.loss is None:
            return f"expected a loss; found {seen.first.loss_type}"
        shape = batch.positions if batch.reduction == "none" else ()
        if seen.first.loss.shape != shape:
            return f"expected a loss of shape {shape}; found {seen.first.loss.shape}"
        if "backward" in implementation.capabilities and (
            seen.first.gradient is None or seen.first.gradient.shape != tuple(batch.input.shape)
        ):
            shown = "none" if seen.first.gradient is None else seen.first.gradient.shape
            return f"expected a gradient of the shape of the logits, {tuple(batch.input.shape)}; found {shown}"
        return ""

    def _serve(self, name: str, worker: Worker | None) -> None:
        if old := self._serving.pop(name, None):  # of an earlier search
            old.end()
        if worker is not None:
            self._serving[name] = worker

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
        for server in self._servers.values():
            server.close()
        self._servers.clear()

    def _ask(
        self, implementation: Implementation, batches: Sequence[Batch], wants_gradient: bool, calls: int
    ) -> list[Observation] | Failure:
        if not implementation.source:
            raise ImplementationError(
                f"implementation {implementation.name}: --isolate loads an implementation anew, so it must have a source that --impl takes, "
                "such as package.module:attribute or path/to/file.py:attribute; this one was made from an object"
            )
        claimed = implementation.capabilities
        taken = [as_taken(batch, claimed) for batch in batches]
        request: dict[str, Any] = {
            "batches": taken,
            "wants_gradient": wants_gradient and "backward" in claimed,
            "calls": calls,
        }
        request |= {"threads": torch.get_num_threads()}
        worker = self._serving.get(implementation.name)
        if worker is None or worker.is_dead():
            try:
                worker, _ = self._start(implementation.source, implementation.environment)
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
        is_kept = len(found) == 1 and not found[0].environment
        if not is_kept:  # each gets one of its own
            worker.end()
        self._loaded += [worker] if is_kept else [None] * len(found)
        return found

    def _start(self, source: str, environment: Environment | None = None) -> tuple[Worker, list[Implementation]]:
        """A worker that has loaded what ``source`` names, and what that is."""
        unasked = self._fatal.setdefault(source, [])
        while True:
            server = self._servers.get(environment)
            if server is None or server.is_dead():
                server = self._servers[environment] = Server() if environment is None else elsewhere(environment)
            worker, asking = Worker(server), 0
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
        raise ImplementationError(
            "under --isolate, or in an environment of its own, an implementation is called in its worker only; "
            "run this without it"
        )
