"""What a person reads in the terminal about costs: one failure, and one table with ratios and bytes."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from xentcheck.cost import measure as cost
from xentcheck.cost import timing
from xentcheck.implementation import Implementation
from xentcheck.spec.case import Case

Line = Mapping[str, Any]


def failure(case: Case, line: Line, implementation: Implementation) -> str:
    """Why there is no figure, and the command that shows it again."""
    return "\n".join(
        (
            f"{case.id}   {line['measure']}   {implementation.name} {implementation.version}".rstrip(),
            f"  case       {case.path.name}:{case.line}" + (f": {case.why}" if case.why else ""),
            f"  {line['status']:<10} {line['message']}",
            f"  again      {again(line)}",
        )
    )


def again(line: Line) -> str:
    """The command that measures the same once more."""
    name = f"suite/test_{line['measure']}.py::test_{line['measure']}[{line['implementation']}:{line['case']}]"
    device = [] if line["device"] == "cpu" else ["--device", line["device"]]
    return shlex.join(["pytest", name, "--impl", line["source"], "--profile", line["profile"], *device])


def figure(found: timing.Ratio, control: timing.Ratio | None) -> str:
    """A ratio with the digits that its interval supports; ``~`` where it does not differ by more than the control does from itself."""
    if control is not None and indistinct(found, control):
        return "~"
    return f"{digits(found.estimate, found.high - found.low)} ({digits(found.low, found.high - found.low)} to {digits(found.high, found.high - found.low)})"


def indistinct(found: timing.Ratio, control: timing.Ratio) -> bool:
    """Whether the difference from 1 is none, or smaller than that between two lanes of the same code."""
    return found.low <= 1 <= found.high or max(found.estimate, 1 / found.estimate) <= control.spread


def digits(value: float, width: float) -> str:
    """A number to the digits that an interval of that width leaves meaningful: two digits of the width at most."""
    if not width or not math.isfinite(width):
        return f"{value:.2f}"
    return f"{value:.{min(max(-math.floor(math.log10(width)), 0), 3)}f}"


def share(count: float, line: Line) -> str:
    """Bytes as a multiple of the logits' size."""
    return f"{count / line['logits']['bytes']:.2f}" if line["logits"]["bytes"] else "0.00"


def summary(lines: Iterable[Line], console: Console) -> None:
    """One row for each implementation and case."""
    table = Table(
        box=box.SIMPLE_HEAD, title="time over native's, then peak bytes over the logits'", title_justify="left"
    )
    table.add_column("case", no_wrap=True)
    table.add_column("implementation", no_wrap=True)
    for name in (*timing.PHASES, "control", "of the limit", "forward", "backward", "kept"):
        table.add_column(name, justify="right", no_wrap=True)
    grouped: dict[tuple[str, str], dict[str, Line]] = {}
    for line in lines:
        grouped.setdefault((line["case"], line["implementation"]), {})[line["measure"]] = line
    for (case, implementation), measures in grouped.items():
        wrong = next((m for m in measures.values() if m["status"] != "pass"), None)
        if wrong is not None:
            table.add_row(case, implementation, f"{wrong['status']}: {wrong['message'][:90]}")
            continue
        table.add_row(case, implementation, *_times(measures.get(cost.SPEED)), *_bytes(measures.get(cost.MEMORY)))
    console.print(table)


def _times(line: Line | None) -> list[str]:
    if line is None:
        return [""] * 5
    whole = cost.whole(line)
    control, took, bound = cost.control(line, whole), cost.seconds(line, whole), cost.limit(line, whole)
    ratios = []
    for phase in timing.PHASES:
        found, of_phase = cost.ratio(line, phase), cost.control(line, phase)
        text = "" if found is None else figure(found, of_phase)
        ratios.append(text if phase == whole else text.split(" ")[0])
    spread = "" if control is None else f"within {100 * (control.spread - 1):.1f} %"
    return [*ratios, spread, "" if not took or not bound else f"{took / bound:.1f} x"]


def _bytes(line: Line | None) -> list[str]:
    if line is None:
        return [""] * 3
    more = " and more" if line["bytes"]["uncounted"] else ""
    return [share(line["bytes"][name], line) + more for name in ("forward", "backward", "kept")]
