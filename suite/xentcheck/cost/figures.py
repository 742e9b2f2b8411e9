"""What a person reads in the terminal about costs: one failure, and one table with ratios and bytes."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table

from xentcheck.cost.measurement import PHASES, Measurement, Ratio
from xentcheck.implementation import Implementation
from xentcheck.run.status import Status
from xentcheck.spec.case import Case


def failure(case: Case, found: Measurement, implementation: Implementation) -> str:
    """Why there is no figure, and the command that shows it again."""
    return "\n".join(
        (
            f"{case.id}   {found.measure}   {implementation.name} {implementation.version}".rstrip(),
            f"  case       {case.path.name}:{case.line}" + (f": {case.why}" if case.why else ""),
            f"  {found.status:<10} {found.message}",
            f"  again      {again(found)}",
        )
    )


def again(found: Measurement) -> str:
    """The command that measures the same once more."""
    device = [] if found.device == "cpu" else ["--device", found.device]
    test = f"suite/test_{found.measure}.py"
    return shlex.join(["pytest", test, "--impl", found.source, "--profile", found.case, *device])


def figure(found: Ratio, control: Ratio | None) -> str:
    """A ratio with the digits that its interval supports; ``~`` where it does not differ by more than the control does from itself."""
    if control is not None and indistinct(found, control):
        return "~"
    return f"{digits(found.estimate, found.high - found.low)} ({digits(found.low, found.high - found.low)} to {digits(found.high, found.high - found.low)})"


def indistinct(found: Ratio, control: Ratio) -> bool:
    """Whether the difference from 1 is none, or smaller than that between two lanes of the same code."""
    return found.low <= 1 <= found.high or max(found.estimate, 1 / found.estimate) <= control.spread


def digits(value: float, width: float) -> str:
    """A number to the digits that an interval of that width leaves meaningful: two digits of the width at most."""
    if not width or not math.isfinite(width):
        return f"{value:.2f}"
    return f"{value:.{min(max(-math.floor(math.log10(width)), 0), 3)}f}"


def share(count: float, found: Measurement) -> str:
    """Bytes as a multiple of the logits' size."""
    return f"{count / found.logits.bytes:.2f}" if found.logits and found.logits.bytes else "0.00"


def summary(measurements: Iterable[Measurement], console: Console) -> None:
    """One row for each implementation and case."""
    table = Table(
        box=box.SIMPLE_HEAD, title="time over native's, then peak bytes over the logits'", title_justify="left"
    )
    table.add_column("case", no_wrap=True)
    table.add_column("implementation", no_wrap=True)
    for name in (*PHASES, "control", "of the limit", "forward", "backward", "kept"):
        table.add_column(name, justify="right", no_wrap=True)
    grouped: dict[tuple[str, str], list[Measurement]] = {}
    for found in measurements:
        grouped.setdefault((found.case, found.implementation), []).append(found)
    for names, group in grouped.items():
        wrong = next((found for found in group if found.status is not Status.PASS), None)
        cells = [f"{wrong.status}: {wrong.message[:90]}"] if wrong else [*_times(group), *_bytes(group)]
        table.add_row(*names, *cells)
    console.print(table)


def _times(group: Iterable[Measurement]) -> list[str]:
    timing = next((found.timing for found in group if found.timing), None)
    if timing is None:
        return [""] * 5
    whole = timing.whole
    control, took, bound = timing.control(whole), timing.seconds(whole), timing.limit(whole)
    ratios = []
    for phase in PHASES:
        found = timing.ratio(phase)
        text = "" if found is None else figure(found, timing.control(phase))
        ratios.append(text if phase == whole else text.split(" ")[0])
    spread = "" if control is None else f"within {100 * (control.spread - 1):.1f} %"
    return [*ratios, spread, "" if not took or not bound else f"{took / bound:.1f} x"]


def _bytes(group: Iterable[Measurement]) -> list[str]:
    for found in group:
        if memory := found.memory:
            more = " and more" if memory.uncounted else ""
            return [share(count, found) + more for count in (memory.forward, memory.backward, memory.kept)]
    return [""] * 3
