"""``xentcheck field``: the losses of other libraries, measured in turn, each in its environment; and their records as one.

Each library has a folder of results of its own. The published record, ``reports/field.jsonl.gz``, holds one row of verdicts for each implementation with the
edition and date that it was measured with. Only what is not measured with this edition and these cases is measured again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from xentcheck.implementation import Implementation, ImplementationError, environments, find
from xentcheck.results import record
from xentcheck.results.environment import edition
from xentcheck.results.markdown import count, visible
from xentcheck.results.record import RecordError, Results
from xentcheck.results.run_line import FORMAT, claims
from xentcheck.results.score import scores
from xentcheck.run.status import GROUPS
from xentcheck.run.verdict import Verdict
from xentcheck.spec import loader
from xentcheck.spec.mistakes import UsageError
from xentcheck.spec.patterns import nearest
from xentcheck.spec.telling import NAME as TELLING

RECORD = "field.jsonl.gz"
_MEASURED = ("edition", "cases", "selection", "started", "environment")  # of a run, what a row keeps
_LOG = "log.txt"
_CASE_TIMEOUT = 300  # seconds: compiling takes minutes where several libraries share the processor


@dataclass(frozen=True)
class Library:
    """Implementations that are run together: of one environment, all of them slow or none.

    name: of the folder of its results. selection: which cases they are asked.
    """

    name: str
    implementations: tuple[Implementation, ...]
    selection: str

    @property
    def names(self) -> list[str]:
        return [one.name for one in self.implementations]

    @property
    def is_available(self) -> bool:
        return not all(one.unavailable for one in self.implementations)


@dataclass(frozen=True)
class Row:
    """What was measured of one implementation. claims: what it declared then, and as ``measured`` the edition, cases, date and environment."""

    claims: Mapping[str, Any]
    verdicts: tuple[Verdict, ...]
    questions: Mapping[str, str]


@dataclass(frozen=True)
class Outcome:
    """How measuring a library ended. problem: why there is no complete record; empty if there is one."""

    library: Library
    problem: str = ""
    seconds: float = 0.0


def libraries(wanted: Sequence[str] = ()) -> list[Library]:
    """The libraries that adapters declare.

    Args:
        wanted: names of libraries or implementations; all of them, if empty.

    Raises:
        ImplementationError: a name is not known.
    """
    groups: dict[str, list[Implementation]] = {}
    selections: dict[str, str] = {}
    for one in find("field"):
        name, is_short = one.environment.name if one.environment else one.name, bool(one.slow or one.unavailable)
        name += "-telling" if is_short else ""
        groups.setdefault(name, []).append(one)
        selections[name] = TELLING if is_short else "all"
    found = [Library(name, tuple(group), selections[name]) for name, group in groups.items()]
    known = {alias for one in found for alias in (one.name, one.name.removesuffix("-telling"), *one.names)}
    for name in wanted:
        if name not in known:
            raise ImplementationError(
                f"{name}: there is no library or implementation of that name{nearest(name, known)} `xentcheck peers` lists all"
            )
    return [one for one in found if not wanted or {one.name, one.name.removesuffix("-telling"), *one.names} & {*wanted}]


def rows(results: Results) -> dict[str, Row]:
    """The rows of a record, of one run or as published, by implementation."""
    measured = {name: results.run.get(name) for name in _MEASURED}
    verdicts: dict[str, list[Verdict]] = {name: [] for name in results.run["implementations"]}
    for verdict in results.verdicts:
        verdicts[verdict.implementation].append(verdict)
    return {
        name: Row({"measured": measured, **claimed}, tuple(verdicts[name]), results.run["questions"])
        for name, claimed in results.run["implementations"].items()
    }


def known_rows(folder: Path, published: Path) -> dict[str, Row]:
    """All rows that there are: the published ones, and in their place those of complete runs below the folder."""
    found = rows(record.load(published)) if published.is_file() else {}
    for path in sorted(folder.glob(f"*/{record.NAME}")):
        try:
            results = record.load(path)
        except RecordError:
            continue  # it is measured again
        if results.complete:
            found |= {name: row for name, row in rows(results).items() if _is_newer(row, found.get(name))}
    return found


def _is_newer(row: Row, other: Row | None) -> bool:
    return other is None or row.claims["measured"]["started"] >= other.claims["measured"]["started"]


def why_outdated(one: Implementation, row: Row | None, selection: str, now: str, cases: str) -> str:
    """Why an implementation is to be measured again; empty where its row is of this edition, these cases and what it declares now.

    Args:
        one: what is declared now.
        row: what was measured, if anything was.
        selection, now, cases: which cases it is to be asked, the edition, and the digest of all cases.
    """
    if row is None:
        return "not measured yet"
    measured = row.claims["measured"]
    for what, wanted in (("edition", now), ("cases", cases), ("selection", selection)):
        if measured[what] != wanted:
            return f"{what} {measured[what]}, now {wanted}"
    installed = one.environment.version() if one.environment and one.environment.is_installed else ""
    version = one.version or installed or row.claims["version"]
    declared = json.loads(json.dumps(claims(replace(one, version=version))))
    if declared["version"] != row.claims["version"]:
        return f"version {row.claims['version']}, now {declared['version']}"
    before = {name: value for name, value in row.claims.items() if name != "measured"}
    return "" if declared == before else "it declares other things now"


def combine(found: Mapping[str, Row]) -> Results:
    """The rows as one record, whose run line is that of the newest."""
    if not found:
        raise RecordError("expected results of libraries; found none; run `xentcheck field`")
    newest = max((row.claims["measured"] for row in found.values()), key=lambda measured: measured["started"])
    questions: dict[str, str] = {}
    for row in found.values():
        asked = {verdict.case for verdict in row.verdicts}
        questions |= {case: digest for case, digest in row.questions.items() if case in asked}
    run = {
        "kind": "run",
        "format": FORMAT,
        **newest,
        "questions": questions,
        "selection": "field",
        "implementations": {name: dict(row.claims) for name, row in sorted(found.items())},
    }
    return Results(run, tuple(_without_output(verdict) for row in found.values() for verdict in row.verdicts))


def _without_output(verdict: Verdict) -> Verdict:
    """Without what a process wrote before it died, which names files of the machine: all lines of the message but the first."""

    def first_line(text: Any) -> Any:
        return text.partition("\n")[0].removesuffix("; it wrote last:") if isinstance(text, str) else text

    fault = verdict.fault and replace(verdict.fault, found=first_line(verdict.fault.found))
    return replace(verdict, reason=first_line(verdict.reason), fault=fault)


def measure(library: Library, folder: Path, say: Callable[[str], Any]) -> Outcome:
    """Installs a library where it is not, and asks it all cases of its selection. A run that was interrupted is continued.

    Args:
        library: what to measure.
        folder: of its results; its log is beside them.
        say: gets a word for each step.
    """
    started = time.monotonic()

    def ended(problem: str = "") -> Outcome:
        return Outcome(library, problem, time.monotonic() - started)

    environment = library.implementations[0].environment
    if environment and library.is_available and not environment.is_installed:
        say("installing")
        try:
            environments.install(environment, lambda text: None)
        except UsageError as error:
            return ended(str(error))
    folder.mkdir(parents=True, exist_ok=True)
    say("running")
    resumes = _is_unfinished(folder)
    code = _run(library, folder, ["--resume"] if resumes else [])
    if resumes and code == 4:  # it was begun elsewhere or with other claims
        code = _run(library, folder, [])
    try:
        is_complete = record.load(folder).complete
    except RecordError as error:
        last = [line for line in (folder / _LOG).read_text(errors="replace").splitlines() if line.strip()][-3:]
        return ended(f"exit code {code}: {' '.join(last)}" if last else str(error))
    return ended("" if is_complete else f"the run ended early, with exit code {code}; see {folder / _LOG}")


def _is_unfinished(folder: Path) -> bool:
    try:
        return not record.load(folder).complete
    except RecordError:
        return False


def _run(library: Library, folder: Path, resume: Sequence[str]) -> int:
    sources = ",".join(one.source for one in library.implementations)
    command = [sys.executable, "-m", "pytest", "--pyargs", "xentcheck.suite", "-q", "--tb=no", "--benchmark-skip"]
    command += [
        "-p",
        "no:cacheprovider",
        "--case-timeout",
        str(_CASE_TIMEOUT),
        "--impl",
        sources,
        "--results",
        str(folder),
        *resume,
    ]
    command += [] if library.implementations[0].environment else ["--isolate"]
    command += ["--cases", TELLING] if library.selection == TELLING else []
    variables = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    with (folder / _LOG).open("w") as log:
        return subprocess.run(command, stdout=log, stderr=log, env=variables, check=False).returncode


def verdicts_so_far(folder: Path) -> int:
    """How many verdicts a run has written."""
    try:
        with (folder / record.NAME).open("rb") as file:
            return max(0, sum(1 for _ in file) - 1)
    except OSError:
        return 0


def run(wanted: Sequence[str], folder: Path, published: Path, jobs: int = 1, again: bool = False) -> int:
    """Measures what is outdated, publishes all rows there are, and prints a table.

    Args:
        wanted: names of libraries or implementations; all, if empty.
        folder: where the results are kept, a folder for each library.
        published: the record to read and to write.
        jobs: how many libraries are run at the same time.
        again: whether to measure also what is up to date.

    Returns:
        The exit code: 1 where a library could not be measured.
    """
    every, chosen = libraries(), libraries(wanted)
    now, cases = edition(), loader.digest(loader.load_all())
    known = known_rows(folder, published)
    reasons = {
        library.name: next(
            (
                f"{one.name}: {why}"
                for one in library.implementations
                if (why := why_outdated(one, known.get(one.name), library.selection, now, cases))
            ),
            "asked for again" if again else "",
        )
        for library in chosen
    }
    outcomes = {one.library.name: one for one in _shown([x for x in chosen if reasons[x.name]], folder, reasons, jobs)}
    names = {one.name for library in every for one in library.implementations}
    known = {name: row for name, row in known_rows(folder, published).items() if name in names}
    if known:
        record.publish(combine(known), published)
    _table(chosen, outcomes, known)
    return 1 if any(one.problem for one in outcomes.values()) else 0


def _shown(chosen: Sequence[Library], folder: Path, reasons: Mapping[str, str], jobs: int) -> Iterator[Outcome]:
    """Measures, with a line for each library that is begun or done, and on a terminal the progress of those that run."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[verdicts]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(highlight=False, markup=False), transient=True) as progress:
        total = progress.add_task("libraries", total=len(chosen), verdicts="")
        tasks: dict[str, TaskID] = {}

        def begun(library: Library, step: str) -> None:
            progress.console.print(f"{library.name}: {step} ({reasons[library.name]})")
            if library.name not in tasks:
                tasks[library.name] = progress.add_task(library.name, total=None, verdicts="")
            progress.update(tasks[library.name], description=f"{library.name}: {step}")

        with ThreadPoolExecutor(jobs) as pool:
            waiting = {pool.submit(measure, one, folder / one.name, partial(begun, one)) for one in chosen}
            try:
                while waiting:
                    done, waiting = wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED)
                    for name, task in list(tasks.items()):
                        progress.update(task, verdicts=count(verdicts_so_far(folder / name), "verdict"))
                    for outcome in (one.result() for one in done):
                        if outcome.library.name in tasks:
                            progress.remove_task(tasks.pop(outcome.library.name))
                        progress.advance(total)
                        how = f"failed: {outcome.problem}" if outcome.problem else f"done in {outcome.seconds:.0f} s"
                        progress.console.print(visible(f"{outcome.library.name}: {how}"))
                        yield outcome
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _table(chosen: Sequence[Library], outcomes: Mapping[str, Outcome], known: Mapping[str, Row]) -> None:
    shown = Table(box=box.SIMPLE_HEAD)
    for title in ("implementation", "version", *GROUPS, "outcome"):
        shown.add_column(title, justify="right" if title in GROUPS else "left", no_wrap=title != "outcome")
    achieved = scores(verdict for row in known.values() for verdict in row.verdicts)
    for library in chosen:
        outcome = outcomes.get(library.name)
        how = "up to date" if outcome is None else outcome.problem or f"measured in {outcome.seconds:.0f} s"
        for name in library.names:
            score, row = achieved.get(name), known.get(name)
            counts = map(str, score.groups.values()) if score else [""] * len(GROUPS)
            shown.add_row(name, row.claims["version"] if row else "", *counts, visible(how, 200))
    Console(highlight=False, markup=False, width=max(Console().width, 160)).print(shown)
