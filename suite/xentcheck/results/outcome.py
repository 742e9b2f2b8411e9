"""When a run is green: one rule, for the run itself and for whoever reads its record afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from xentcheck.cost.measurement import Measurement
from xentcheck.results.markdown import count
from xentcheck.results.record import Results
from xentcheck.run.status import Status
from xentcheck.run.verdict import Verdict


def unasked(found: Iterable[Verdict | Measurement]) -> list[str]:
    """One line for each implementation of which nothing could be asked: such a run would otherwise be green without having tested it.

    One that is unavailable here is left out as long as another one was asked.
    """
    by_name: dict[str, list[Verdict | Measurement]] = {}
    for item in found:
        by_name.setdefault(item.implementation, []).append(item)
    silent = {name: items for name, items in by_name.items() if not any(i.status.was_asked for i in items)}
    if len(silent) < len(by_name):
        silent = {n: items for n, items in silent.items() if any(i.status is not Status.UNAVAILABLE for i in items)}
    return [
        f"{name}: nothing could be asked of it, so nothing is known of it: {count(len(items), 'verdict')}, "
        f"the first is {items[0].status}: {items[0].message}"
        for name, items in silent.items()
    ]


def why_red(results: Results, code: int) -> str:
    """Why a run is not green; empty where it is.

    Args:
        results: what the record of the run holds.
        code: the exit code of the process that ran it. An implementation that runs in this process can make it 0.
    """
    disbelieved = f"exit code {code} of the child is not believed" if code == 0 else f"exit code {code}"
    if not results.complete:
        return f"the run ended without an end line: {disbelieved}"
    if not results.verdicts:
        return f"the record holds no verdict: {disbelieved}"
    failing: Sequence[Verdict] = [v for v in results.verdicts if not v.status.is_good]
    if failing:
        first = " ".join(failing[0].key)
        return (
            f"{count(len(failing), 'verdict')} of {len(results.verdicts)} not good, the first is {first}: {disbelieved}"
        )
    if silent := unasked((*results.verdicts, *results.costs)):
        return "; ".join(silent)
    return f"no verdict fails, but the run ended with exit code {code}" if code else ""
