"""Results on disk: append-only, complete or visibly truncated, mergeable.

``DIR/results.jsonl`` holds one JSON object a line: a ``run`` line, then a ``verdict`` line for each implementation x case x aspect and a
``cost`` line for each measurement, and an ``end`` line with the counts. A file without ``end`` is truncated: it can be resumed, and is
never taken for complete. Each line reaches the operating system before the next test starts, so a killed run loses at most the line
it was writing.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from xentcheck.implementation import Implementation
from xentcheck.mistakes import UsageError
from xentcheck.verdict import Verdict, from_json, to_json

FORMAT = 2
KINDS = ("run", "verdict", "cost", "end")
NAME = "results.jsonl"
_ALLOCATOR_SETTINGS = ("THP_MEM_ALLOC_ENABLE", "MALLOC_CONF", "LD_PRELOAD", "PYTORCH_CUDA_ALLOC_CONF")


class RecordError(UsageError):
    """Results that cannot be read, written or merged. The text says what to do."""


@dataclass(frozen=True)
class Results:
    """What one or several files hold. ``complete``: every file has its ``end`` line. runs: when and where each was ``started``, and in
    what ``environment``."""

    run: dict[str, Any]
    verdicts: tuple[Verdict, ...]
    costs: tuple[dict[str, Any], ...] = ()
    complete: bool = True
    sources: tuple[str, ...] = field(default=())
    runs: tuple[dict[str, Any], ...] = ()


Key = tuple[str, str, str]


def key(verdict: Verdict) -> Key:
    return verdict.implementation, verdict.case, verdict.aspect


def costs_by_key(lines: Iterable[dict[str, Any]]) -> dict[Key, dict[str, Any]]:
    """The cost lines by measure, implementation and case; of several about the same the last holds."""
    return {(c.get("measure", ""), c.get("implementation", ""), c.get("case", "")): c for c in lines}


def run_header(implementations: Sequence[Implementation], digest: str, selection: str) -> dict[str, Any]:
    """The ``run`` line: which questions, put to which implementations, where."""
    return {
        "kind": "run",
        "format": FORMAT,
        "edition": metadata.version("xentcheck") if _installed() else "uninstalled",
        "cases": digest,
        "selection": selection,
        "started": now(),
        "environment": environment(),
        "implementations": {i.name: _claims(i) for i in implementations},
    }


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def environment() -> dict[str, Any]:
    """What answers and times depend on beside the implementation."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": _cpu_model(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "os": platform.platform(),
        "allocator": {name: os.environ[name] for name in _ALLOCATOR_SETTINGS if name in os.environ},
    }


class Writer:
    """Appends to ``DIR/results.jsonl``. Open one per run; ``close`` writes the ``end`` line."""

    def __init__(self, folder: Path, header: dict[str, Any], resume: bool = False) -> None:
        self.path = folder / NAME
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
        self._statuses: dict[Key, str] = {k: v.status for k, v in self.already.items()}
        if self._file.tell() == 0:
            self._append(header)

    def verdict(self, verdict: Verdict) -> None:
        self._append({"kind": "verdict", **to_json(verdict)})
        self._statuses[key(verdict)] = verdict.status

    def cost(self, line: dict[str, Any]) -> None:
        """One measurement with its raw samples."""
        self._append({"kind": "cost", **line})

    def close(self, complete: bool = True) -> None:
        """``complete=False`` leaves the file visibly truncated, to be resumed."""
        if complete:
            self._append(
                {
                    "kind": "end",
                    "verdicts": len(self._statuses),
                    "counts": dict(sorted(Counter(self._statuses.values()).items())),
                }
            )
        self._file.close()

    def _append(self, line: dict[str, Any]) -> None:
        data = (json.dumps(line) + "\n").encode()
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
            if _plain(old) != json.loads(json.dumps(_plain(new))):
                raise RecordError(
                    f"{self.path}: cannot be resumed: {what} changed since it was started; run without --resume into another folder"
                )
        self.already = {key(v): v for v in results.verdicts}
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
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise RecordError(
            f"{path}: no results can be read: {error.strerror}; expected a folder that --results wrote"
        ) from error
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
    verdicts: dict[Key, Verdict] = {}
    for number, item in enumerate(objects, 1):
        if item.get("kind") not in KINDS:
            raise RecordError(f"{path}:{number}: expected a kind of {', '.join(KINDS)}; found {item.get('kind')!r}")
        if item["kind"] == "verdict":
            try:
                verdict = from_json({k: v for k, v in item.items() if k != "kind"})
            except (TypeError, ValueError) as error:
                raise RecordError(f"{path}:{number}: not a verdict: {error}") from error
            verdicts[key(verdict)] = verdict
    end = objects[-1] if objects[-1]["kind"] == "end" else None
    if end and end["verdicts"] != len(verdicts):
        raise RecordError(
            f"{path}: the end line counts {end['verdicts']} verdicts, the file holds {len(verdicts)}; lines are missing"
        )
    costs = tuple(o for o in objects if o["kind"] == "cost")
    runs = tuple(objects[0].get("runs", ({k: objects[0][k] for k in ("started", "environment")},)))
    return Results(objects[0], tuple(verdicts.values()), costs, end is not None, (str(path),), runs)


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
            other = verdicts.setdefault(key(verdict), verdict)
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


def _plain(value: Any) -> Any:
    """JSON has no infinities; an infinite error is no number of units."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_whole(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _installed() -> bool:
    try:
        metadata.version("xentcheck")
    except metadata.PackageNotFoundError:
        return False
    return True


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
        return next(line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
