"""What one run is about, and what a test of it is about. Kept on pytest's config, in the controlling process and in each worker of xdist."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from xentcheck.implementation import find
from xentcheck.results import record
from xentcheck.run.examiner import Examiner
from xentcheck.run.isolation.pool import Workers
from xentcheck.run.verdict import Key, Verdict
from xentcheck.spec import loader, speed_cases
from xentcheck.spec.case import Case
from xentcheck.spec.mistakes import UsageError
from xentcheck.spec.patterns import nearest
from xentcheck.spec.settings import folder, read_settings, with_own


class Session:
    """What one run is about. Kept on the config, in the controlling process and in each xdist worker."""

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.process = config, os.getpid()
        self.workers: Workers | None = None
        try:
            own = read_settings(config.rootpath)
            if (given := config.getoption("implementations")) is not None:
                own = replace(own, implementations=folder(given, "--implementations"))
            self.workers = _workers(config)
            named = with_own(config.getoption("impl"), own.implementations)
            self.implementations = (self.workers.find if self.workers else find)(named)
            folders = [loader.CASES, own.cases] if own.cases else []
            self.specification = loader.telling_first(loader.load_all(*folders))
            self.cases = self._selected(config.getoption("cases"))
            workers = self.workers
            self.examiner = Examiner(workers.observe, workers.observe_all) if workers else Examiner()
            self.aspects = {
                (i.name, case.id): self.examiner.aspects(case, i) for case in self.cases for i in self.implementations
            }
            speed = speed_cases.load_speed()
            # By pytest's name of the test: what is left of a triple where a worker of pytest-xdist has died.
            self._keys = {
                f"test_{aspect}[{name}:{case}]": Key(name, case, aspect)
                for (name, case), aspects in self.aspects.items()
                for aspect in aspects
            }
        except UsageError as error:
            self.close()
            raise pytest.UsageError(str(error)) from error
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(
                1
            )  # small batches: waking a second thread costs more than it saves, above all on a busy machine
        self.verdicts: dict[Key, Verdict] = {}
        self.resumed: set[Key] = set()
        self.costs: dict[tuple[str, str, str], dict[str, Any]] = {}  # filled by plugin_cost
        self.writer: record.Writer | None = None
        self.write_error = ""
        ids = [case.id for case in {c.id: c for c in (*self.specification, *self.cases)}.values()]
        ids += [case.id for case in speed]
        self.stale = [(i, d) for i in self.implementations for d in i.stale_deviations(ids)]
        if config.getoption("resume") and not config.getoption("results"):
            raise pytest.UsageError("--resume goes on with the run in --results DIR; give that folder, too")

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
            if path.is_dir():
                cases = loader.load_all(path.resolve())
            elif path.suffix in (".yaml", ".yml"):
                cases = loader.load(path.resolve())
            else:
                cases = loader.select(asked, pattern)
            if not cases and loader.select(self.specification, pattern):
                raise loader.CaseFileError(f"--cases {pattern}: these are cases of more than 2^31 logits; add --huge")
            if not cases:
                known = {c.id for c in self.specification} | {c.clause.clause for c in self.specification}
                raise loader.CaseFileError(
                    f"--cases {pattern}: no case matches{nearest(pattern, known)} `xentcheck cases` lists all"
                )
            for case in cases:
                other = chosen.setdefault(case.id, case)
                if other.path.resolve() != case.path.resolve():
                    raise loader.CaseFileError(
                        f"{case.path}:{case.line}: case {case.id} stands a second time; the first is {other.path}:{other.line}; ids must be unique"
                    )
        if not chosen:
            raise loader.CaseFileError("--cases names no case; expected a pattern such as 'ignored-*' or a case file")
        return list(chosen.values())

    def open_results(self) -> None:
        folder = self.config.getoption("results")
        if folder is None:
            return
        everything = {case.id: case for case in (*self.specification, *self.cases)}.values()
        try:
            header = record.run_header(
                self.implementations, loader.digest(everything), self.config.getoption("cases") or "all"
            )
            self.writer = record.Writer(folder, header, self.config.getoption("resume"))
        except (record.RecordError, loader.CaseFileError) as error:
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
KEY = pytest.StashKey[Key]()  # of an item: what it is about
VERDICT = pytest.StashKey[Verdict]()
NOTHING_TO_TEST = pytest.StashKey[bool]()


def asked_of(item: pytest.Item, fixture: str) -> Key | None:
    """The triple that a test is about: the implementation and the case that the fixture is given, and the aspect, or for ``cost`` the
    measure, that the test is named after."""
    given = item.callspec.params.get(fixture) if hasattr(item, "callspec") else None
    if not isinstance(given, tuple):
        return None
    case, implementation = given
    return Key(implementation.name, case.id, item.function.__name__.removeprefix("test_"))  # type: ignore[attr-defined]


def _workers(config: pytest.Config) -> Workers | None:
    limit, memory = config.getoption("case_timeout"), config.getoption("worker_memory")
    if not config.getoption("isolate"):
        if limit is not None or memory is not None:
            raise pytest.UsageError("--case-timeout and --worker-memory are for worker processes; give --isolate, too")
        return None
    if not (limit is None or 0 < limit < float("inf")):
        raise pytest.UsageError(f"--case-timeout: expected a number of seconds above 0; found {limit:g}")
    if not (memory is None or 0 < memory < 2**30):
        raise pytest.UsageError(f"--worker-memory: expected a number of GiB above 0; found {memory:g}")
    return Workers(60.0 if limit is None else limit, None if memory is None else round(memory * 2**30))
