"""Reads case files: merges the defaults, expands the matrices, and turns every mistake into a message with file, line, case and key."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import re
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from xentcheck.case import IGNORE_CHOICES, Case, CaseFile, Clause, Entry, Question
from xentcheck.patterns import matches, nearest
from xentcheck.yaml_document import CaseFileError, Document, Location, read

CASES = Path(__file__).resolve().parents[2] / "cases"
# Data beside the clauses that holds no cases of its own.
CATALOGUES = frozenset({"answers.yaml", "wild-bugs.yaml"})
# What is asked of an implementation's cost; see ``speed_cases``.
SPEED = "speed"
MAX_CASES_PER_FILE = 2000

# Giving one key of a group replaces whatever the defaults gave of it.
_ALTERNATIVES = {
    ("logits",): {"shape", "values", "file"},
    ("target",): {"values", "file", "classes", "ignore", "probabilities"},
    ("target", "ignore"): set(IGNORE_CHOICES),
    ("upstream",): {"scalar", "per_position", "values"},
}
_COMPATIBLE = {frozenset({"classes", "ignore"})}


def load_all(folder: Path = CASES) -> list[Case]:
    """Every case of the specification, in the order of the files' names and of the cases in them."""
    paths = sorted(
        p for p in folder.rglob("*.yaml") if p.name not in CATALOGUES and p.relative_to(folder).parts[0] != SPEED
    )
    if not paths:
        raise CaseFileError(f"{folder}: expected case files (*.yaml), found none")
    cases = [case for path in paths for case in load(path)]
    seen: dict[str, Case] = {}
    for case in cases:
        if case.id in seen:
            first = seen[case.id]
            raise CaseFileError(
                f"{case.path}:{case.line}: case {case.id} stands a second time; the first is {first.path}:{first.line}; ids must be unique"
            )
        seen[case.id] = case
    return cases


def load(path: Path) -> list[Case]:
    """The expanded cases of one file. Raises CaseFileError that lists all its mistakes."""
    return expanded(read(path), path)


def expanded(document: Document, path: Path) -> list[Case]:
    """The cases of a document that has been read, or that stands nowhere yet. Raises CaseFileError that lists all its mistakes."""
    source = _Source(path, document)
    if not isinstance(document.value, dict):
        raise CaseFileError(
            f"{path}:1: expected a mapping with the keys clause, title, requirement, sources, cases; found {_kind(document.value)}"
        )
    header = {k: v for k, v in document.value.items() if k not in ("defaults", "cases")}
    clause = source.validate(Clause, header, document.lines, "", unknown_ok=CaseFile)
    defaults, entries = document.value.get("defaults") or {}, document.value.get("cases")
    if not isinstance(defaults, dict):
        source.fail(("defaults",), "", "defaults", f"expected a mapping; found {_kind(defaults)}")
    if not isinstance(entries, list) or not entries:
        source.fail(("cases",), "", "cases", f"expected a list of cases; found {_kind(entries)}")
    cases: list[Case] = []
    names: dict[str, int] = {}
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        line = document.lines[("cases", index)]
        name = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            source.fail(
                ("cases", index),
                "",
                "id",
                f"expected a mapping with a readable id; found {_kind(entry.get('id') if isinstance(entry, dict) else entry)}",
            )
            continue
        if name in names:
            source.fail(("cases", index, "id"), name, "id", f"the id stands twice; the first is on line {names[name]}")
            continue
        names[name] = line
        for label, merged, lines in source.expand(defaults, entry, index, name):
            own = {k: merged.pop(k) for k in ("id", "why", "kills", "matrix") if k in merged}
            meta = source.validate(_Meta, {k: v for k, v in own.items() if k != "matrix"}, lines, name)
            question = source.validate(Question, merged, lines, name + label, unknown_ok=Entry)
            if meta and question and clause:
                full = f"{clause.clause}/{name}{label}"
                cases.append(
                    Case(
                        id=full, clause=clause, question=question, why=meta.why, kills=meta.kills, path=path, line=line
                    )
                )
        if len(cases) > MAX_CASES_PER_FILE:
            source.fail(
                ("cases", index), name, "matrix", f"expected at most {MAX_CASES_PER_FILE} cases a file, found more"
            )
            break
    source.raise_if_any()
    return cases


def digest(cases: Iterable[Case]) -> str:
    """Names the exact questions: a hash over every case and every file that one refers to. Results merge only under equal digests."""
    sha = hashlib.sha256()
    for case in sorted(cases, key=lambda c: c.id):
        sha.update(
            json.dumps([case.id, case.question.model_dump(mode="json", exclude_defaults=True)], sort_keys=True).encode()
        )
        for source in (case.question.logits.file, case.question.target.file):
            if source:
                try:
                    sha.update((case.folder / source).read_bytes())
                except OSError as error:
                    raise CaseFileError(
                        f"{case.path}:{case.line}: case {case.id}: {source} cannot be read: {error.strerror}"
                    ) from error
    return sha.hexdigest()[:16]


def select(cases: list[Case], pattern: str) -> list[Case]:
    """The cases whose id the pattern matches; several patterns separated by commas. ``*`` and ``?`` are wildcards, brackets are
    plain characters, and a pattern without them also matches a whole clause or all of a matrix."""
    parts = [p.strip() for p in pattern.split(",") if p.strip()]
    return [case for case in cases if any(matches(part, case.id) for part in parts)]


def telling_first(cases: list[Case]) -> list[Case]:
    """The order to ask in: what a wrong loss most likely breaks, in a batch small enough to look at, comes before the rest."""

    def place(case: Case) -> int:
        logits = case.question.logits
        large = logits.file is not None or math.prod(logits.shape or ()) > 4096
        return 3 if large else {"plain-values": 0, "ignored-positions": 1}.get(case.clause.clause, 2)

    return sorted(cases, key=place)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a case file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **CaseFile.model_json_schema()}


class _Meta(BaseModel):
    model_config = Entry.model_config
    id: typing.Annotated[str, Entry.model_fields["id"].metadata[0]]
    why: str | None = None
    kills: tuple[str, ...] = ()


class _Source:
    """One file being read: collects its mistakes, so that all of them are shown at once, each with the first case that it spoils."""

    def __init__(self, path: Path, document: Document) -> None:
        self.path, self.lines = path, document.lines
        self.mistakes: dict[tuple[int, str, str], str] = {}

    def fail(self, where: Location, case: str, key: str, text: str, lines: dict[Location, int] | None = None) -> None:
        line = _line(lines or self.lines, where)
        message = ": ".join(part for part in (f"{self.path}:{line}", case and f"case {case}", key, text) if part)
        self.mistakes.setdefault((line, key, text), message)  # one mistake, however many points of a matrix have it

    def raise_if_any(self) -> None:
        if self.mistakes:
            raise CaseFileError("\n".join(self.mistakes.values()))

    def validate(self, model: Any, value: Any, lines: dict[Location, int], case: str, unknown_ok: Any = None) -> Any:
        try:
            return model.model_validate(value)
        except ValidationError as error:
            for where, text in _explain(error, value, unknown_ok or model):
                self.fail(where, case, ".".join(map(str, where)), text, lines)
            return None

    def expand(
        self, defaults: dict, entry: dict, index: int, name: str
    ) -> Iterator[tuple[str, dict, dict[Location, int]]]:
        """Every point of the case's matrix: the label, the merged document, and the line of each of its values."""
        base_lines = _below(self.lines, ("defaults",)) | _below(self.lines, ("cases", index))
        base_lines[()] = self.lines[("cases", index)]
        plain = merge(defaults, entry)
        axes = plain.get("matrix") or {}
        if not isinstance(axes, dict):
            self.fail(
                ("cases", index, "matrix"),
                name,
                "matrix",
                f"expected a mapping from keys to lists of values; found {_kind(axes)}",
            )
            return
        points = []
        for axis, choices in axes.items():
            where = ("cases", index, "matrix", axis)
            if isinstance(choices, list):
                choices = {_label(c): c for c in choices} if len({_label(c) for c in choices}) == len(choices) else {}
            if not isinstance(choices, dict) or not choices:
                self.fail(
                    where,
                    name,
                    f"matrix.{axis}",
                    "expected a list of different values, or a mapping from labels to values",
                )
                return
            points.append([(axis, str(label), choice) for label, choice in choices.items()])
        for point in itertools.product(*points):
            merged, lines = copy.deepcopy(plain), dict(base_lines)
            for axis, label, choice in point:
                if axis == "vary" and not isinstance(choice, dict):
                    self.fail(
                        ("cases", index, "matrix", axis),
                        name,
                        f"matrix.vary.{label}",
                        f"expected a mapping with keys of a case; found {_kind(choice)}",
                    )
                    return
                keys = axis.split(".")
                override: Any = choice
                if axis != "vary":
                    for key in reversed(keys):
                        override = {key: override}
                    lines[tuple(keys)] = _line(self.lines, ("cases", index, "matrix", axis))
                merged = merge(merged, override)
            label = "-".join(label for _, label, _ in point)
            yield (f"[{label}]" if label else ""), merged, lines


def merge(base: Any, over: Any, here: Location = ()) -> Any:
    """``over`` on top of ``base``, mapping by mapping; a key replaces the alternatives to it that the base gives."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return copy.deepcopy(over)
    result = dict(base)
    group = _ALTERNATIVES.get(here, set())
    for key in group & over.keys():
        for other in group - {key}:
            if other not in over and frozenset({key, other}) not in _COMPATIBLE:
                result.pop(other, None)
    for key, value in over.items():
        result[key] = merge(base[key], value, (*here, key)) if key in base else copy.deepcopy(value)
    return result


def _label(value: Any) -> str:
    if isinstance(value, list):
        return "x".join(map(_label, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _below(lines: dict[Location, int], prefix: Location) -> dict[Location, int]:
    return {where[len(prefix) :]: line for where, line in lines.items() if where[: len(prefix)] == prefix}


def _line(lines: dict[Location, int], where: Location) -> int:
    while where and where not in lines:
        where = where[:-1]
    return lines.get(where, 1)


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    names = {dict: "a mapping", list: "a list"}
    return names.get(type(value)) or f"{value!r}"


def _explain(error: ValidationError, value: Any, model: Any) -> list[tuple[Location, str]]:
    """Pydantic's errors, one per place in the document, in words that say what was expected and what was found."""
    grouped: dict[Location, list[Any]] = {}
    for item in error.errors():
        where, found = _in_document(item["loc"], value)
        if item["type"] in ("extra_forbidden", "missing"):
            where = (*where, item["loc"][-1]) if not where or where[-1] != item["loc"][-1] else where
        grouped.setdefault(where, []).append((item, found))
    explained = []
    for where, items in grouped.items():
        found = items[0][1]
        texts = []
        for item, _ in items:
            if item["type"] == "extra_forbidden":
                known = _fields_at(model, where[:-1])
                text = f"unknown key{nearest(str(where[-1]), known, 1)} Expected one of: {', '.join(known)}"
            elif item["type"] == "missing":
                text = "expected, but not there"
            else:
                text = re.sub(r"^(Value error, |Input should be )", "", item["msg"])
                text = (
                    text
                    if text.startswith(("expected", *_fields_at(model, ()))) or "; found" in text
                    else f"expected {text}"
                )
                if "; found" not in text:
                    text += f"; found {_kind(found)}"
            texts.append(text)
        unknown = [t for t in texts if t.startswith("unknown key")]
        explained.append((where, unknown[0] if unknown else " or ".join(dict.fromkeys(texts))))
    return explained


def _in_document(loc: Location, value: Any) -> tuple[Location, Any]:
    """The part of a pydantic location that exists in the document: the names of union branches are left out."""
    where: list[Any] = []
    for step in loc:
        if (isinstance(value, dict) and step in value) or (
            isinstance(value, list) and isinstance(step, int) and step < len(value)
        ):
            value = value[step]
        else:
            continue
        where.append(step)
    return tuple(where), value


def _fields_at(model: Any, where: Location) -> list[str]:
    """The keys that are allowed at a place of the document."""
    models: list[Any] = [model]
    for step in where:
        if isinstance(step, int):
            continue
        annotations = [m.model_fields[step].annotation for m in models if step in m.model_fields]
        models = [m for annotation in annotations for m in _models_in(annotation)]
    return sorted({name for m in models for name in m.model_fields})


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in typing.get_args(annotation) for m in _models_in(argument)]
