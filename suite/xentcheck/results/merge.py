"""Results of several runs as one: shards of one run, other implementations, other machines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from xentcheck.cost.measurement import Measurement
from xentcheck.results.record import RecordError, Results, Writer
from xentcheck.results.run_line import APART
from xentcheck.run.verdict import Key, Verdict


def merge(parts: Iterable[Results]) -> Results:
    """All that the parts hold.

    An implementation that was run on another torch, GPU or vector capability than in an earlier part is kept apart: its name gets what
    differs, such as ``native@torch-2.14.1``.

    Raises:
        RecordError: where they answered different questions, one question differently, or are of different editions.
    """
    parts = list(parts)
    if not parts:
        raise RecordError("expected results to merge; found none")
    first, merged = parts[0], _Merged()
    for part in parts:
        where = ", ".join(part.sources)
        for what in ("edition", "cases"):
            if part.run[what] != first.run[what]:
                raise RecordError(
                    f"{where}: {what} {part.run[what]}, but {', '.join(first.sources)}: {what} {first.run[what]}; only results of the "
                    "same edition and the same cases merge; run the suite again"
                )
        merged.add(part, where)
    runs = [one for part in parts for one in part.runs]
    run = {**first.run, "implementations": merged.implementations}
    return Results(
        run | ({"runs": runs} if len(runs) > 1 else {}),
        tuple(merged.verdicts.values()),
        tuple(merged.costs),
        all(p.complete for p in parts),
        tuple(s for p in parts for s in p.sources),
        tuple(runs),
    )


class _Merged:
    def __init__(self) -> None:
        self.implementations: dict[str, Any] = {}
        self.verdicts: dict[Key, Verdict] = {}
        self.costs: list[Measurement] = []
        self._places: dict[str, Mapping[str, Any]] = {}

    def add(self, part: Results, where: str) -> None:
        names = {name: self._name(name, part.run["environment"]) for name in part.run["implementations"]}
        for name, claims in part.run["implementations"].items():
            if self.implementations.setdefault(names[name], claims) != claims:
                raise RecordError(f"{where}: {name} is another version or claims other things than in an earlier part")
        for verdict in part.verdicts:
            verdict = replace(verdict, implementation=names[verdict.implementation])
            other = self.verdicts.setdefault(verdict.key, verdict)
            if other.status != verdict.status:
                raise RecordError(
                    f"{where}: {verdict.implementation} {verdict.case} {verdict.aspect} is {verdict.status}, but {other.status} in an earlier part"
                )
        self.costs += [m.model_copy(update={"implementation": names[m.implementation]}) for m in part.costs]

    def _name(self, name: str, environment: Mapping[str, Any]) -> str:
        place = {what: environment.get(what) for what in APART}
        before = self._places.setdefault(name, place)
        differs = [f"{what}-{place[what] or 'none'}" for what in APART if place[what] != before[what]]
        return "@".join([name, *differs]).replace(" ", "-") if differs else name


def save(results: Results, folder: Path) -> None:
    """Merged results as a file of their own; truncated if one of the parts was."""
    writer = Writer(folder, results.run)
    for verdict in results.verdicts:
        writer.verdict(verdict)
    for cost in results.costs:
        writer.cost(cost)
    writer.close(results.complete)
