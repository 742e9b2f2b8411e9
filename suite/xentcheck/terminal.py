"""What a person reads in the terminal: one failure on one screen, and the one table at the end."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from xentcheck import status as statuses
from xentcheck.case import RELATIONS, Case
from xentcheck.implementation import Implementation
from xentcheck.loader import CASES
from xentcheck.verdict import Verdict


def failure(case: Case, verdict: Verdict, implementation: Implementation) -> str:
    """The clause's sentence, the case, what was expected and found, and the command that makes a script of it."""
    lines = [
        f"{verdict.case}   {verdict.aspect}   {implementation.name} {implementation.version}".rstrip(),
        f"  clause     {case.clause.requirement}",
        f"  case       {_relative(case.path)}:{case.line}" + (f": {case.why}" if case.why else ""),
        f"  {verdict.status:<10} " + verdict.message.replace("\n", "\n" + " " * 13),
        f"  reproduce  {repro_command(case, implementation)}",
    ]
    return "\n".join(lines)


def repro_command(case: Case, implementation: Implementation) -> str:
    command = ["xentcheck", "repro", case.id, "--impl", implementation.source or implementation.name]
    return shlex.join(command if case.path.is_relative_to(CASES) else [*command, "--cases", str(case.path)])


def by_case(verdicts: Iterable[Verdict]) -> dict[tuple[str, str], list[Verdict]]:
    """The verdicts of each implementation and case."""
    grouped: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        grouped.setdefault((verdict.implementation, verdict.case), []).append(verdict)
    return grouped


def status_of(of_case: Iterable[Verdict]) -> statuses.Status:
    """A case's status, from its own aspects. A relation to other batches that is known not to hold does not make it a deviating case,
    since it would in every case that the relation applies to; one that fails does make it a failed one."""
    of_case = list(of_case)
    own = [v.status for v in of_case if v.aspect not in RELATIONS or not v.status.is_good]
    return statuses.of_case(own or [v.status for v in of_case])


def relations_held(verdicts: Iterable[Verdict]) -> dict[str, tuple[int, int]]:
    """For each implementation how many relations hold, of how many it was asked about."""
    held: dict[str, tuple[int, int]] = {}
    for v in verdicts:
        if v.aspect in RELATIONS and v.status not in ("unsupported", "unavailable"):
            holds, asked = held.get(v.implementation, (0, 0))
            held[v.implementation] = (holds + (v.status == "pass"), asked + 1)
    return held


def counts(verdicts: Iterable[Verdict]) -> dict[str, dict[str, int]]:
    """For each implementation how many cases ended in each group of statuses."""
    table: dict[str, dict[str, int]] = {}
    for (implementation, _), of_case in by_case(verdicts).items():
        status = status_of(of_case)
        row = table.setdefault(implementation, dict.fromkeys(statuses.GROUPS, 0))
        row[status.group] += 1
    return table


def worst_units(verdicts: Iterable[Verdict]) -> float | None:
    """The largest error of a loss or gradient that passed, in units."""
    return max((v.error_units for v in verdicts if v.status == "pass" and v.error_units is not None), default=None)


def left_out(verdicts: Iterable[Verdict], cases: Iterable[Case]) -> str:
    """The sides from which cases were not judged, as by ``-k`` or a single file of tests, and how many answers; empty if there are none.
    Beside them, a case that passes does so only in what it was asked."""
    own = {case.id: case.aspects for case in cases}
    missing = Counter(
        aspect
        for (_, case), of_case in by_case(verdicts).items()
        for aspect in {*own.get(case, ())} - {v.aspect for v in of_case}
    )
    return ", ".join(f"{aspect} of {count}" for aspect, count in sorted(missing.items()))


def summary(verdicts: list[Verdict], cases: Iterable[Case], versions: dict[str, str], console: Console) -> None:
    """One row per implementation: cases by outcome, and the worst error of those that passed."""
    table = Table(box=box.SIMPLE_HEAD, title="cases by outcome", title_justify="left")
    table.add_column("implementation", no_wrap=True)
    for name in ("version", *statuses.GROUPS, "worst error"):
        table.add_column(name, justify="right", no_wrap=True)
    for implementation, row in counts(verdicts).items():
        worst = worst_units(v for v in verdicts if v.implementation == implementation)
        units = "" if worst is None else f"{worst:.2g} units"
        table.add_row(implementation, versions.get(implementation, ""), *(str(n) for n in row.values()), units)
    console.print(table)
    if missing := left_out(verdicts, cases):
        console.print(f"not asked for, so that a case passes without: {missing}")
    held = relations_held(verdicts)
    if held:
        console.print("relations that hold: " + ", ".join(f"{n} {a} of {b}" for n, (a, b) in held.items()))


def _relative(path: Path) -> Path:
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
