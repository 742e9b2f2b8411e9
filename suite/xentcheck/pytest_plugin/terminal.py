"""What a run prints: each failure on one screen, and a table at the end."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from xentcheck.implementation import Implementation
from xentcheck.results.markdown import count, visible
from xentcheck.results.score import left_out, scores
from xentcheck.run.status import GROUPS
from xentcheck.run.verdict import Verdict, counted
from xentcheck.spec.case import Case
from xentcheck.spec.loader import CASES


def failure(case: Case, verdict: Verdict, implementation: Implementation) -> str:
    """The clause's sentence, the case, what was expected and found, and the command that prints a script."""
    lines = [
        f"{verdict.case}   {verdict.aspect}   {implementation.name} {implementation.version}".rstrip(),
        f"  clause     {case.clause.requirement}",
        f"  case       {_relative(case.path)}:{case.line}" + (f": {case.why}" if case.why else ""),
        f"  {verdict.status!s:<10} " + verdict.message.replace("\n", "\n" + " " * 13),
        f"  reproduce  {repro_command(case, implementation)}",
    ]
    return "\n".join(map(visible, lines))


def repro_command(case: Case, implementation: Implementation) -> str:
    command = ["xentcheck", "repro", case.id, "--impl", implementation.source or implementation.name]
    return shlex.join(command if case.path.is_relative_to(CASES) else [*command, "--cases", str(case.path)])


def summary(verdicts: Sequence[Verdict], cases: Iterable[Case], versions: Mapping[str, str], console: Console) -> None:
    """One row per implementation: cases by outcome, and the worst error of those that passed."""
    achieved = scores(verdicts)
    table = Table(box=box.SIMPLE_HEAD, title="cases by outcome", title_justify="left")
    table.add_column("implementation", no_wrap=True)
    for name in ("version", *GROUPS, "worst error"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, score in achieved.items():
        worst = "" if score.worst_units is None else counted(float(f"{score.worst_units:.2g}"), "unit")
        table.add_row(visible(name), visible(versions.get(name, "")), *map(str, score.groups.values()), worst)
    console.print(table)
    if missing := left_out(verdicts, cases):
        left = ", ".join(f"{aspect} of {count(n, 'case')}" for aspect, n in missing.items())
        console.print(f"not judged, so that a case can pass without it: {left}")
    if as_native := [f"{s.implementation} in {count(s.as_native, 'case')}" for s in achieved.values() if s.as_native]:
        console.print(f"deviates exactly as torch does: {', '.join(as_native)}")
    asked = [s for s in achieved.values() if s.relations_asked]
    held = [f"{visible(s.implementation)} {s.relations_held} of {s.relations_asked}" for s in asked]
    if held:
        console.print(f"relations that hold: {', '.join(held)}")


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
