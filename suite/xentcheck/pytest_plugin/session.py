"""The state of one run, and what each of its tests is about."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

from xentcheck.cost.measurement import Measurement
from xentcheck.implementation import Implementation, find
from xentcheck.results import record
from xentcheck.results.run_line import run_line
from xentcheck.run.examiner import Examiner
from xentcheck.run.isolation.pool import Workers
from xentcheck.run.observe import Failure, Observation, observe
from xentcheck.run.verdict import Key, Verdict
from xentcheck.spec import loader, speed_cases, telling
from xentcheck.spec.batch import Batch
from xentcheck.spec.case import Case
from xentcheck.spec.mistakes import CaseFileError, UsageError
from xentcheck.spec.patterns import nearest
from xentcheck.spec.settings import folder, read_settings, with_own


class Session:
    """What one run tests, and what it has found. On the config of the controlling process, and of each worker of pytest-xdist."""

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.process = config, os.getpid()
        self.workers: Workers | None = None
        try:
            own = read_settings(config.rootpath)
            if (given := config.getoption("implementations")) is not None:
                own = replace(own, implementations=folder(given, "--implementations"))
            self.workers = _workers(config)
            self.isolates = config.getoption("isolate")
            self.implementations = self._find(with_own(config.getoption("impl"), own.implementations))
            limits = ("case_timeout", "worker_memory")
            has_workers = self.isolates or any(i.environment for i in self.implementations)
            if not has_workers and any(config.getoption(name) is not None for name in limits):
                raise UsageError("--case-timeout and --worker-memory need worker processes; add --isolate")
            folders = [loader.CASES, own.cases] if own.cases else []
            self.specification = loader.telling_first(loader.load_all(*folders))
            ids_of_all = [case.id for case in self.specification]
            for deviation in {d for i in self.implementations for d in i.deviations}:
                deviation.check_extent(ids_of_all)
            self.cases = self._selected(config.getoption("cases"))
            together = self.workers.observe_all if self.workers and self.isolates else None
            self.examiner = Examiner(self.observe, together, self._native)
            self.aspects = {
                (i.name, case.id): self.examiner.aspects(case, i) for case in self.cases for i in self.implementations
            }
            speed = speed_cases.load_speed()
            # By pytest's name of the test, which is all that is known of it where a worker of pytest-xdist died.
            self._keys = {
                f"test_{aspect}[{name}:{case}]": Key(name, case, aspect)
                for (name, case), aspects in self.aspects.items()
                for aspect in aspects
            }
        except UsageError as error:
            self.close()
            raise pytest.UsageError(str(error)) from error
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)  # for small batches, waking a second thread costs more than it saves
        self.verdicts: dict[Key, Verdict] = {}
        self.resumed: set[Key] = set()
        self.costs: dict[Key, Measurement] = {}  # filled by pytest_plugin.cost
        self.writer: record.Writer | None = None
        self.write_error = ""
        ids = {case.id for case in (*self.everything, *speed)}
        self.stale = [(i, d) for i in self.implementations for d in i.stale_deviations(ids)]
        if config.getoption("resume") and not config.getoption("results"):
            raise pytest.UsageError("--resume continues the run in --results DIR; give that folder as well")

    @cached_property
    def _found_native(self) -> Implementation:
        given = next((i for i in self.implementations if i.source == "native"), None)
        return given or self._find("native")[0]

    def _find(self, named: str) -> list[Implementation]:
        if self.workers is None:
            return [_only_elsewhere(one) if one.environment else one for one in find(named)]
        return self.workers.find(named) if self.isolates else self.workers.settle(find(named))

    def observe(
        self, implementation: Implementation, batch: Batch, wants_gradient: bool, calls: int = 2
    ) -> Observation | Failure:
        """Calls an implementation in this process, or in a worker: under --isolate, and where its library has an environment of its own."""
        is_elsewhere = self.isolates or implementation.environment is not None
        call = self.workers.observe if self.workers and is_elsewhere else observe
        return call(implementation, batch, wants_gradient, calls)

    def _native(self) -> Implementation:
        return self._found_native

    @property
    def everything(self) -> Collection[Case]:
        """The specification, and selected cases that are not part of it."""
        return {case.id: case for case in (*self.specification, *self.cases)}.values()

    def header(self) -> dict[str, Any]:
        """The ``run`` line of the record."""
        selection = self.config.getoption("cases") or "all"
        return run_line(self.implementations, self.everything, selection)

    def close(self) -> None:
        if self.workers:
            self.workers.close()

    def key_of(self, node_id: str) -> Key | None:
        return self._keys.get(node_id.rpartition("::")[2])

    def _selected(self, patterns: str | None) -> list[Case]:
        huge = self.config.getoption("huge")
        asked = [case for case in self.specification if huge or not case.is_huge]
        if patterns is None:
            return asked
        chosen: dict[str, Case] = {}
        for pattern in (p.strip() for p in patterns.split(",")):
            if not pattern:
                continue
            path = Path(pattern).expanduser()
            if pattern == telling.NAME:
                cases = telling.telling(asked)
            elif path.is_dir():
                cases = loader.load_all(path.resolve())
            elif path.suffix in (".yaml", ".yml"):
                cases = loader.load(path.resolve())
            else:
                cases = loader.select(asked, pattern)
            if not cases and loader.select(self.specification, pattern):
                raise CaseFileError(f"--cases {pattern}: these cases have more than 2^31 logits; add --huge")
            if not cases:
                known = {c.id for c in self.specification} | {c.clause.clause for c in self.specification}
                advice = f"{nearest(pattern, known)} `xentcheck cases` lists all"
                raise CaseFileError(f"--cases {pattern}: no case matches{advice}")
            for case in cases:
                other = chosen.setdefault(case.id, case)
                if other.path.resolve() != case.path.resolve():
                    first = f"the first is {other.path}:{other.line}"
                    raise CaseFileError(f"{case.path}:{case.line}: the id {case.id} is used a second time; {first}")
        if not chosen:
            raise CaseFileError("--cases names no case; expected a pattern such as 'ignored-*' or a case file")
        return list(chosen.values())

    def open_results(self) -> None:
        folder = self.config.getoption("results")
        if folder is None:
            return
        try:
            self.writer = record.Writer(folder, self.header(), self.config.getoption("resume"))
        except (record.RecordError, CaseFileError) as error:
            raise pytest.UsageError(str(error)) from error
        self.verdicts = dict(self.writer.already)
        self.resumed = set(self.writer.already)
        self.costs = dict(self.writer.costs_already)

    def note(self, verdict: Verdict) -> None:
        self.verdicts[verdict.key] = verdict
        if self.writer is not None and not self.write_error:
            try:
                self.writer.verdict(verdict)
            except record.RecordError as error:
                self.write_error = str(error)


SESSION = pytest.StashKey[Session]()
KEY = pytest.StashKey[Key]()  # of an item: what it tests
VERDICT = pytest.StashKey[Verdict]()
NOTHING_TO_TEST = pytest.StashKey[bool]()


def asked_of(item: pytest.Item, fixture: str) -> Key | None:
    """What a test is about: the implementation and the case that the fixture is given, and the aspect (for ``cost``, the measure) that
    the test is named after."""
    given = item.callspec.params.get(fixture) if hasattr(item, "callspec") else None
    if not isinstance(given, tuple):
        return None
    case, implementation = given
    return Key(implementation.name, case.id, item.function.__name__.removeprefix("test_"))  # type: ignore[attr-defined]


def finished(session: pytest.Session, exitstatus: int) -> bool:
    """Whether a run came to its end, so that what it lacks was not lost by an interruption."""
    ended = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
    stopped = session.shouldstop or session.shouldfail or session.config.getoption("collectonly", False)
    return exitstatus in ended and not stopped


def _only_elsewhere(implementation: Implementation) -> Implementation:
    return replace(implementation, unavailable="its library is called in a worker process, which needs Linux")


def _workers(config: pytest.Config) -> Workers | None:
    limit, memory = config.getoption("case_timeout"), config.getoption("worker_memory")
    if sys.platform != "linux" and not config.getoption("isolate"):
        return None
    if not (limit is None or 0 < limit < float("inf")):
        raise pytest.UsageError(f"--case-timeout: expected a number of seconds above 0; found {limit:g}")
    if not (memory is None or 0 < memory < 2**30):
        raise pytest.UsageError(f"--worker-memory: expected a number of GiB above 0; found {memory:g}")
    return Workers(60.0 if limit is None else limit, None if memory is None else round(memory * 2**30))
