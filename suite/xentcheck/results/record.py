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
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError

try:
    import fcntl
except ImportError:  # not on Windows, where two runs into one folder go unnoticed
    fcntl = None  # type: ignore[assignment]

from xentcheck.cost.measurement import Measurement, as_of_one
from xentcheck.implementation.forks import end_in_a_child
from xentcheck.results.run_line import FORMAT, RunLine, changes
from xentcheck.run import verdict as verdicts_of
from xentcheck.run.verdict import Key, Verdict
from xentcheck.spec.mistakes import UsageError

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
    costs: tuple[Measurement, ...] = ()
    complete: bool = True
    sources: tuple[str, ...] = field(default=())
    runs: tuple[dict[str, Any], ...] = ()


class Writer:
    """Appends to ``DIR/results.jsonl``. Open one per run; ``close`` writes the ``end`` line."""

    def __init__(self, folder: Path, header: dict[str, Any], resume: bool = False) -> None:
        self.path, self._process = folder / NAME, os.getpid()
        self.already: dict[Key, Verdict] = {}
        self.costs_already: dict[Key, Measurement] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            is_new = not self.path.exists()
            self._file = self._opened()
            if not is_new:
                with self._file:
                    self._continue(header) if resume else self._set_aside()
                self._file = self._opened()
        except OSError as error:
            raise RecordError(f"{self.path}: results cannot be written here: {error.strerror or error}") from error
        self._statuses = {key: verdict.status for key, verdict in self.already.items()}
        if self._file.tell() == 0:
            self._append(header)

    def _opened(self) -> BinaryIO:
        """The file, for this run alone: the lock ends with the process, however it ends. Unbuffered, so that what is written is out of this
        process at once."""
        file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise RecordError(f"{self.path}: another run is writing here; wait for it or give another folder") from None
        return file

    def verdict(self, verdict: Verdict) -> None:
        self._append(_line(verdict))
        self._statuses[verdict.key] = verdict.status

    def cost(self, measurement: Measurement) -> None:
        """One measurement with its raw samples."""
        values = measurement.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        self._append({"kind": "cost", **values})

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
        changed = list(changes(results.run, header))
        if changed:
            what = "; ".join(f"{name} was {was}, is {now}" for name, was, now in changed)
            raise RecordError(f"{self.path}: cannot be resumed: {what}; run without --resume into another folder")
        self.already = {v.key: v for v in results.verdicts}
        self.costs_already = as_of_one(results.costs)
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
    try:
        RunLine.model_validate(objects[0])
    except ValidationError as error:
        raise RecordError(f"{path}:1: not a run line: {_first(error)}") from error
    found: dict[Key, Verdict] = {}
    costs: list[Measurement] = []
    for number, item in enumerate(objects, 1):
        where, kind = f"{path}:{number}", item.get("kind")
        if kind not in KINDS:
            raise RecordError(f"{where}: expected a kind of {', '.join(KINDS)}; found {str(kind)[:60]!r}")
        if (kind == "run") is not (number == 1) or (kind == "end" and number < len(objects)):
            raise RecordError(
                f"{where}: expected one run line at the start and one end line at the end; found a line of kind {kind}"
            )
        if kind == "verdict":
            verdict = _verdict(item, where)
            _check_key(verdict.key, objects[0], where)
            before = found.get(verdict.key, verdict).status
            if verdict.status.rank < before.rank:  # what failed once does not pass by a second line
                raise RecordError(
                    f"{where}: {' '.join(verdict.key)} is {verdict.status}, but {before} in an earlier line; run it again"
                )
            found[verdict.key] = verdict
        elif kind == "cost":
            costs.append(_measurement(item, where))
            _check_key(costs[-1].key, {**objects[0], "questions": {}}, where)
    end = objects[-1] if objects[-1]["kind"] == "end" else None
    if end is not None and end != _end(v.status for v in found.values()):
        raise RecordError(
            f"{path}: the end line counts {end.get('counts')}, the file holds {_end(v.status for v in found.values())['counts']}; lines are missing or altered"
        )
    runs = tuple(objects[0].get("runs", ({k: objects[0].get(k) for k in ("started", "environment")},)))
    return Results(objects[0], tuple(found.values()), tuple(costs), end is not None, (str(path),), runs)


def publish(results: Results, path: Path) -> Results:
    """Writes the verdicts as one compressed file, the same bytes for the same verdicts; returns the results as they are read from it."""
    ordered = sorted(results.verdicts, key=lambda verdict: verdict.key)
    lines = [results.run, *map(_line, ordered), *([_end(v.status for v in ordered)] if results.complete else [])]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(b"".join(map(_encoded, lines)), mtime=0))
    return load(path)


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


def _check_key(key: Key, run: dict[str, Any], where: str) -> None:
    if key.implementation not in run["implementations"]:
        raise RecordError(f"{where}: the run line names no implementation {key.implementation!r}")
    if run["questions"] and key.case not in run["questions"]:
        raise RecordError(f"{where}: the run line names no case {key.case!r}")


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    at = ".".join(map(str, first["loc"]))
    return f"{at}: {first['msg']}" if at else str(first["msg"])


def _measurement(item: dict[str, Any], where: str) -> Measurement:
    try:
        return Measurement.model_validate({name: value for name, value in item.items() if name != "kind"})
    except ValidationError as error:
        raise RecordError(f"{where}: not a measurement: {_first(error)}") from error


def _is_whole(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False
