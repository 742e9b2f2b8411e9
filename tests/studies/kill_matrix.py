"""Which case catches which bug: puts every case to every mutant, from every side, and publishes the answer as ``reports/mutants.md``.

``make mutants`` runs it: ``python tests/studies/kill_matrix.py``. What was found out is kept in ``reports/results-mutants/``, a line for each
case, so that an interrupted run goes on where it was, and a changed case costs only itself. The exit status is 1 where a mutant
survives, where a case does not kill what it names, and where a case kills nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

import xentcheck
from kill_page import Matrix, asked, page, size, summary
from xentcheck.implementation import Implementation, find
from xentcheck.run.examiner import Examiner
from xentcheck.run.isolation.protocol import TOKEN, frame
from xentcheck.run.judge import judge
from xentcheck.run.observe import Answer, Failure, observe
from xentcheck.run.relations import related
from xentcheck.spec.case import RELATIONS, Case
from xentcheck.spec.loader import digest, load_all
from xentcheck.spec.patterns import matches

HERE = Path(__file__).resolve().parents[1]
FOLDER = HERE / "mutants"
PAGE = HERE.parent / "reports" / "mutants.md"
STORE = HERE.parent / "reports" / "results-mutants" / "cases.jsonl"
WORKERS = 2


def found_in(folder: Path) -> dict[str, str]:
    """What ``--impl`` takes for each public function of the folder's files, by its name."""
    files = sorted(f for f in folder.glob("*.py") if not f.name.startswith("_"))
    return {i.name: i.source for file in files for i in find(f"{file}:*")}


def loaded(source: str) -> list[Implementation]:
    """The mutants that a source names, those included that the loader refuses for what they return: here the cases are tested."""
    return find(source, ask=lambda question: question() is True)


def matrix_digest(cases: Iterable[Case], folder: Path = FOLDER) -> str:
    """Names what the published page was made from: the cases, what they say they kill, and the mutants."""
    cases = list(cases)
    sha = hashlib.sha256(digest(cases).encode())
    sha.update(json.dumps(sorted((case.id, case.kills) for case in cases)).encode())
    return _of_files(sha, folder.glob("*.py"))


def _of_files(sha: Any, paths: Iterable[Path]) -> str:
    for path in sorted(paths):
        sha.update(path.name.encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()[:16]


class Asking:
    """Puts one case after another to all mutants. Batches are made once for all of them, and equal answers are judged once."""

    def __init__(self, sources: Iterable[str]) -> None:
        torch.set_num_threads(1)
        self._examiner = Examiner()
        self._mutants = [mutant for source in sources for mutant in loaded(source)]

    def kills(self, case: Case) -> dict[str, str]:
        """The mutants that fail the case, each with the aspect that shows it first: the case's own, then relations."""
        known: dict[Any, Any] = {}
        found = {mutant.name: self._noticed(case, mutant, known) for mutant in self._mutants}
        return {name: aspect for name, aspect in found.items() if aspect}

    def _noticed(self, case: Case, mutant: Implementation, known: dict[Any, Any]) -> str:
        exam = self._examiner.exam(case)
        if not exam.concerns(mutant):
            return ""
        if keeps_state(mutant):  # what it kept from other cases may not decide
            mutant = loaded(mutant.source)[0]
        seen = observe(mutant, exam.batch, _wants_gradient(case))
        if isinstance(seen, Failure):
            return case.aspects[0]
        again = () if seen.again is None else _fingerprint(seen.again)
        claims = (mutant.capabilities, mutant.tentative, *sorted(mutant.conventions.items()))
        first = (_fingerprint(seen.first), again, seen.changed, claims)
        for aspect in self._examiner.aspects(case, mutant):
            if aspect in RELATIONS and ("related", aspect) not in known:
                known["related", aspect] = related(aspect, exam.batch)
            batches, check = known.get(("related", aspect), ((), None))
            seen_too = [observe(mutant, other, True, 1) for other in batches]
            answers = [one if isinstance(one, Failure) else one.first for one in seen_too]
            # A verdict depends on the answers alone, so it is looked up by them.
            path = (aspect, first, *map(_fingerprint, answers))
            if path not in known:
                answered = batches, check, answers
                known[path] = judge(exam, aspect, mutant, seen, lambda _, answered=answered: answered).status
            if not known[path].is_good:
                return aspect
        return ""


def keeps_state(mutant: Implementation) -> bool:
    """Whether the mutant's file holds a list, dict or set, where something could outlive a call."""
    values = getattr(mutant.cross_entropy, "__globals__", {}).items()
    return any(isinstance(value, (list, dict, set)) for name, value in values if not name.startswith("__"))


def _wants_gradient(case: Case) -> bool:
    error = case.question.expect.error
    return case.has_gradient or (error is not None and error.phase == "backward")


def _fingerprint(answer: Answer | Failure) -> bytes:
    """Of all that a verdict may depend on: what an isolated worker sends."""
    sha = hashlib.blake2b()
    for part in frame(bytes(TOKEN), answer):
        sha.update(part)
    return sha.digest()


# In a worker process.
_asking: Asking
_cases: dict[str, Case]


def _start(sources: Sequence[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    global _asking, _cases
    _asking, _cases = Asking(sources), {case.id: case for case in load_all()}


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _ask(case_id: str) -> tuple[str, dict[str, str]]:
    return case_id, _asking.kills(_cases[case_id])


class Store:
    """What earlier runs found out: a line for each case, under the digest of all that it depends on."""

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        self._path = path
        code = [*FOLDER.glob("*.py"), *Path(xentcheck.__file__).parent.rglob("*.py")]
        self._code = _of_files(hashlib.sha256(f"{torch.__version__} {sorted(names)}".encode()), code)

    def key(self, case: Case) -> str:
        return f"{digest([case])}-{self._code}"

    def load(self, cases: Iterable[Case]) -> dict[str, dict[str, str]]:
        keys = {self.key(case): case.id for case in cases}
        found = {}
        for line in self._path.read_text().splitlines() if self._path.exists() else ():
            try:
                record = json.loads(line)
            except ValueError:  # cut short when the run was killed
                continue
            if record["key"] in keys:
                found[keys[record["key"]]] = record["kills"]
        return found

    def append(self, case: Case, kills: dict[str, str]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps({"key": self.key(case), "case": case.id, "kills": kills}).encode() + b"\n")


def run(cases: Sequence[Case], sources: dict[str, str], store: Store, console: Console) -> dict[str, dict[str, str]]:
    """For each case the mutants that fail it, and the aspect that shows it. Raises KeyboardInterrupt with all that is known stored."""
    found = store.load(cases)
    left = sorted((case for case in cases if case.id not in found), key=_cost, reverse=True)
    if not left:
        return found
    if found:
        console.print(f"{len(found)} of {len(cases)} cases are known from earlier runs")
    by_id = {case.id: case for case in cases}
    columns = (TextColumn("{task.fields[case]:<50.50}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    context = multiprocessing.get_context("spawn")
    with (
        Progress(MofNCompleteColumn(), *columns, console=console) as progress,
        ProcessPoolExecutor(WORKERS, context, _start, (tuple(sources.values()),)) as workers,
    ):
        bar = progress.add_task("", total=round(sum(map(_cost, left))), case="mutants are loaded")
        try:
            for done in as_completed([workers.submit(_ask, case.id) for case in left]):
                case_id, kills = done.result()
                store.append(by_id[case_id], kills)
                found[case_id] = kills
                progress.update(bar, advance=_cost(by_id[case_id]), case=case_id)
        except BrokenProcessPool:
            progress.stop()
            sys.exit(
                "a worker process died: a mutant ended it, or memory ran out; what is known is kept, so run it again"
            )
        except KeyboardInterrupt:
            progress.stop()
            console.print(f"interrupted; {len(found)} of {len(cases)} cases are known, and the next run goes on there")
            for worker in multiprocessing.active_children():
                worker.terminate()
            sys.exit(130)
    return found


def _cost(case: Case) -> int:
    """Roughly, in units of a small case."""
    return 1 + size(case) // 10_000 + (20 if case.question.logits.file else 0)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", metavar="PATTERN", default="*", help="only these cases; no page is written then")
    parser.add_argument("--mutants", metavar="PATTERN", default="*", help="only these mutants; no page is written then")
    parser.add_argument("--to", metavar="FILE", type=Path, default=PAGE, help="the page to write")
    options = parser.parse_args(arguments)
    specification = load_all()
    cases = [case for case in specification if matches(options.cases, case.id)]
    sources = {name: s for name, s in found_in(FOLDER).items() if matches(options.mutants, name)}
    if not cases or not sources:
        parser.error(f"expected at least one case and one mutant; found {len(cases)} cases, {len(sources)} mutants")
    console = Console(stderr=True)
    everything = options.cases == options.mutants == "*"
    store = Store(STORE, sources)
    matrix = Matrix(cases, sources, run(asked(cases), sources, store, console), matrix_digest(specification))
    print(summary(matrix))
    if everything:
        options.to.write_text(page(matrix), encoding="utf-8")
        print(f"written: {options.to}")
    problems = matrix.problems() if everything else []
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
