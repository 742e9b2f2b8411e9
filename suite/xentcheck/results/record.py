"""Results on disk: append-only, complete or visibly truncated, mergeable.

``DIR/results.jsonl`` holds one JSON object a line: a ``run`` line, then a ``verdict`` line for each implementation x case x aspect and a
``cost`` line for each measurement, and an ``end`` line with the counts. A file without ``end`` is truncated: it can be resumed, and is
never taken for complete. Each line reaches the operating system before the next test starts, so a killed run loses at most the line
it was writing. A published record is such a file, sorted and compressed, without costs.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xentcheck.implementation import Implementation
from xentcheck.implementation.forks import end_in_a_child
from xentcheck.results.environment import edition, environment, now
from xentcheck.run import verdict as verdicts_of
from xentcheck.run.verdict import Key, Verdict
from xentcheck.spec.mistakes import UsageError

FORMAT = 2
KINDS = ("run", "verdict", "cost", "end")
NAME = "results.jsonl"


class RecordError(UsageError):
    """Results that cannot be read, written or merged. The text says what to do."""


@dataclass(frozen=True)
class Results:
    """What one or several files hold.

    run: the ``run`` line of the first. complete: every file has its ``end`` line. sources: the files. runs: when each was ``started``, and in
    what ``environment``.
    """

    run: dict[str, Any]
    verdicts: tuple[Verdict, ...]
    costs: tuple[dict[str, Any], ...] = ()
    complete: bool = True
    sources: tuple[str, ...] = field(default=())
    runs: tuple[dict[str, Any], ...] = ()


def costs_by_key(lines: Iterable[dict[str, Any]]) -> dict[Key, dict[str, Any]]:
    """The cost lines by measure, implementation and case; of several about the same the last holds."""
    return {Key(c.get("measure", ""), c.get("implementation", ""), c.get("case", "")): c for c in lines}


def run_header(implementations: Sequence[Implementation], digest: str, selection: str) -> dict[str, Any]:
    """The ``run`` line: which cases, of which implementations, where."""
    return {
        "kind": "run",
        "format": FORMAT,
        "edition": edition(),
        "cases": digest,
        "selection": selection,
        "started": now(),
        "environment": environment(),
        "implementations": {i.name: _claims(i) for i in implementations},
    }


class Writer:
    """Appends to ``DIR/results.jsonl``. Open one per run; ``close`` writes the ``end`` line."""

    def __init__(self, folder: Path, header: dict[str, Any], resume: bool = False) -> None:
        self.path, self._process = folder / NAME, os.getpid()
        self.already: dict[Key, Verdict] = {}
        self.costs_already: dict[Key, dict[str, Any]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                self._continue(header) if resume else self._set_aside()
            # Unbuffered, so that what is written is out of this process at once.
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise RecordError(f"{self.path}: results cannot be written here: {error.strerror or error}") from error
        self._statuses = {key: verdict.status for key, verdict in self.already.items()}
        if self._file.tell() == 0:
            self._append(header)

    def verdict(self, verdict: Verdict) -> None:
        self._append(_line(verdict))
        self._statuses[verdict.key] = verdict.status

    def cost(self, line: dict[str, Any]) -> None:
        """One measurement with its raw samples."""
        self._append({"kind": "cost", **line})

    def close(self, complete: bool = True) -> None:
        """``complete=False`` leaves the file visibly truncated, to be resumed."""
        if complete:
            self._append(_end(self._statuses.values()))
        self._file.close()

    def _append(self, line: dict[str, Any]) -> None:
        end_in_a_child(self._process)  # which would write every verdict a second time
        data = _encoded(line)
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise RecordError(
                f"{self.path}: a result could not be written: {error.strerror or error}; what stands there already is intact; make room and go on with --resume"
            ) from error

    def _set_aside(self) -> None:
        """An earlier file, complete or not, is kept under the time it was started."""
        try:
            results = load(self.path)
            stamp = str(results.run["started"]).replace(":", "").replace("+0000", "Z") + (
                "" if results.complete else "-truncated"
            )
        except RecordError:
            stamp = "unreadable"
        names = (
            self.path.with_name(f"results-{stamp}{suffix}.jsonl")
            for suffix in ("", *(f"-{i}" for i in range(2, 10_000)))
        )
        self.path.rename(next(name for name in names if not name.exists()))

    def _continue(self, header: dict[str, Any]) -> None:
        if b"\n" not in self.path.read_bytes():  # killed while it wrote its first line
            return self._set_aside()
        results = load(self.path)
        for what, old, new in (
            ("cases", results.run["cases"], header["cases"]),
            ("torch", results.run["environment"]["torch"], header["environment"]["torch"]),
            *(
                (f"implementation {n}", results.run["implementations"].get(n), c)
                for n, c in header["implementations"].items()
            ),
        ):
            if old != json.loads(json.dumps(new)):
                raise RecordError(
                    f"{self.path}: cannot be resumed: {what} changed since it was started; run without --resume into another folder"
                )
        self.already = {v.key: v for v in results.verdicts}
        self.costs_already = costs_by_key(results.costs)
        whole = b"".join(
            line
            for line in self.path.read_bytes().splitlines(keepends=True)
            if _is_whole(line) and json.loads(line)["kind"] != "end"
        )
        temporary = self.path.with_suffix(".tmp")
        temporary.write_bytes(whole)
        temporary.replace(self.path)


def load(path: Path) -> Results:
    """The results of one file or folder. Raises RecordError for what is no results file; a cut-off last line is a truncation."""
    path = path / NAME if path.is_dir() else path
    lines = _content(path).splitlines(keepends=True)
    objects = []
    for number, line in enumerate(lines, 1):
        if not _is_whole(line):
            if number == len(lines):
                break
            raise RecordError(f"{path}:{number}: expected one JSON object; found {line[:60]!r}")
        objects.append(json.loads(line))
    if not objects or objects[0].get("kind") != "run":
        raise RecordError(f"{path}:1: expected a run line; found {str(objects[:1])[:80]}")
    if objects[0].get("format") != FORMAT:
        raise RecordError(
            f"{path}:1: expected format {FORMAT}; found {objects[0].get('format')!r}; run the suite again"
        )
    found: dict[Key, Verdict] = {}
    for number, item in enumerate(objects, 1):
        kind = item.get("kind")
        if kind not in KINDS:
            raise RecordError(f"{path}:{number}: expected a kind of {', '.join(KINDS)}; found {kind!r}")
        if kind == "verdict":
            verdict = _verdict(item, f"{path}:{number}")
            found[verdict.key] = verdict
    end = objects[-1] if objects[-1]["kind"] == "end" else None
    if end and end.get("verdicts") != len(found):
        raise RecordError(
            f"{path}: the end line counts {end.get('verdicts')} verdicts, the file holds {len(found)}; lines are missing"
        )
    costs = tuple(o for o in objects if o["kind"] == "cost")
    runs = tuple(objects[0].get("runs", ({k: objects[0].get(k) for k in ("started", "environment")},)))
    return Results(objects[0], tuple(found.values()), costs, end is not None, (str(path),), runs)


def merge(parts: Iterable[Results]) -> Results:
    """Shards and machines as one. Raises RecordError where they answered different questions, or one question differently."""
    parts = list(parts)
    if not parts:
        raise RecordError("expected results to merge; found none")
    first, verdicts = parts[0], {}
    run = {**first.run, "implementations": {}}
    for part in parts:
        where = ", ".join(part.sources)
        if part.run["cases"] != first.run["cases"]:
            raise RecordError(
                f"{where}: answers the cases {part.run['cases']}, but {', '.join(first.sources)} the cases {first.run['cases']}; only results of the same cases merge"
            )
        for name, claims in part.run["implementations"].items():
            if run["implementations"].setdefault(name, claims) != claims:
                raise RecordError(f"{where}: {name} is another version or claims other things than in an earlier part")
        for verdict in part.verdicts:
            other = verdicts.setdefault(verdict.key, verdict)
            if other.status != verdict.status:
                raise RecordError(
                    f"{where}: {verdict.implementation} {verdict.case} {verdict.aspect} is {verdict.status}, but {other.status} in an earlier part"
                )
    costs = tuple(c for part in parts for c in part.costs)
    runs = [one for part in parts for one in part.runs]
    return Results(
        run | ({"runs": runs} if len(runs) > 1 else {}),
        tuple(verdicts.values()),
        costs,
        all(p.complete for p in parts),
        tuple(s for p in parts for s in p.sources),
        tuple(runs),
    )


def save(results: Results, folder: Path) -> None:
    """Merged results as a file of their own; truncated if one of the parts was."""
    writer = Writer(folder, results.run)
    for verdict in results.verdicts:
        writer.verdict(verdict)
    for cost in results.costs:
        writer.cost({k: v for k, v in cost.items() if k != "kind"})
    writer.close(results.complete)


def publish(results: Results, path: Path) -> Results:
    """Writes the verdicts as one compressed file, the same bytes for the same verdicts; returns the results as they are read from it."""
    ordered = sorted(results.verdicts, key=lambda verdict: verdict.key)
    lines = [results.run, *map(_line, ordered), *([_end(v.status for v in ordered)] if results.complete else [])]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(b"".join(map(_encoded, lines)), mtime=0))
    return load(path)


def _claims(implementation: Implementation) -> dict[str, Any]:
    return {
        "version": implementation.version,
        "description": implementation.description,
        "capabilities": sorted(implementation.capabilities),
        "conventions": implementation.conventions,
        "deviations": [
            {
                "cases": list(d.patterns),
                "aspect": d.aspect,
                "observed": d.observed,
                "fault": d.fault,
                "reason": d.reason,
                "link": d.link,
                "torch": d.torch,
                "max_units": d.max_units,
            }
            for d in implementation.deviations
        ],
    }


def _line(verdict: Verdict) -> dict[str, Any]:
    return {"kind": "verdict", **verdicts_of.to_json(verdict)}


def _end(statuses: Iterable[str]) -> dict[str, Any]:
    counts = Counter(str(status) for status in statuses)
    return {"kind": "end", "verdicts": counts.total(), "counts": dict(sorted(counts.items()))}


def _encoded(line: dict[str, Any]) -> bytes:
    return (json.dumps(line, separators=(",", ":")) + "\n").encode()


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecordError(
            f"{path}: no results can be read: {reason}; expected a folder that --results wrote"
        ) from error


def _verdict(item: dict[str, Any], where: str) -> Verdict:
    try:
        return verdicts_of.from_json({name: value for name, value in item.items() if name != "kind"})
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise RecordError(f"{where}: not a verdict: {error}") from error


def _is_whole(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False
