"""Reads case files: merges the defaults, expands the matrices, and collects every mistake with its file, line, case and key."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from xentcheck.spec.case import MAX_NUMBERS, Case, CaseFile, Clause, Entry, Ignore, Logits, Named, Question, Upstream
from xentcheck.spec.fields import check_label
from xentcheck.spec.files import tensor_file
from xentcheck.spec.mistakes import MAX_MISTAKES, CaseFileError, Mistake, Unexpected, kind
from xentcheck.spec.patterns import matches
from xentcheck.spec.resources import cases_folder
from xentcheck.spec.validation import M, explained
from xentcheck.spec.yaml_document import Document, Location, read

CASES = cases_folder()
# Data beside the clauses that holds no cases of its own.
CATALOGUES = frozenset({"answers.yaml", "wild-bugs.yaml"})
# The folder of the speed cases.
SPEED = "speed"
MAX_CASES_PER_FILE = 2000
MAX_VALUES_PER_FILE = 200_000  # in all cases together, with what they take from the defaults
MAX_TIMED_NUMBERS = 2**31  # of one tensor of a speed case, of which nothing but the cost is computed

# Giving a key of one group replaces what the defaults give of the others.
_ALTERNATIVES: dict[Location, tuple[set[str], ...]] = {
    ("logits",): tuple({choice} for choice in Logits.choices),
    ("target",): ({"values"}, {"file"}, {"classes", "ignore"}, {"probabilities"}),
    ("target", "ignore"): tuple({choice} for choice in Ignore.choices),
    ("upstream",): tuple({choice} for choice in Upstream.choices),
    ("expect",): ({"error"}, {"loss", "gradient", "refused_unless_claimed", "convention"}),
}
# Keys of an entry that are not part of the question, so that a matrix cannot set them.
_OWN = frozenset({*Named.model_fields, "matrix"})


def load_all(*folders: Path) -> list[Case]:
    """Every case of the folders, in the order of the files' names and of the cases in them.

    Args:
        folders: where to look, with the folders inside them; without any, the specification that comes with this package.

    Raises:
        CaseFileError: a folder holds no case files, a file is wrong, or two cases have the same id.
    """
    cases = [case for folder in folders or (CASES,) for path in _paths(folder) for case in load(path)]
    check_ids(cases)
    return cases


def load(path: Path) -> list[Case]:
    """The expanded cases of one file. Raises CaseFileError that lists all its mistakes."""
    return expanded(read(path), path)


def expanded(document: Document, path: Path) -> list[Case]:
    """The cases of a document, whose path need not exist. Raises CaseFileError that lists all its mistakes."""
    source = _Source(path, document)
    clause, cases = source.clause(), []
    for point in source.points():
        question, named = source.question(point, clause), source.named(point)
        if clause and question and named:
            cases.append(
                Case(
                    id=f"{clause.clause}/{named.id}{point.label}",
                    clause=clause,
                    question=question,
                    why=named.why,
                    kills=named.kills,
                    path=path,
                    line=point.line,
                )
            )
        if len(source.mistakes) > MAX_MISTAKES:
            break
    source.raise_if_any()
    return cases


def check_ids(cases: Iterable[Case]) -> None:
    """Raises CaseFileError that lists the cases whose id another case has."""
    first: dict[str, Case] = {}
    mistakes = []
    for case in cases:
        if (other := first.setdefault(case.id, case)) is not case:
            text = f"the id must be unique; it is already used at {other.path}:{other.line}"
            mistakes.append(Mistake(text, case.path, case.line, case.id))
    if mistakes:
        raise CaseFileError(*mistakes)


def digest(cases: Iterable[Case]) -> str:
    """Names the exact questions: a hash over every case and every file that one refers to. Results merge only under equal digests."""
    sha = hashlib.sha256()
    for case in sorted(cases, key=lambda c: c.id):
        for part in _asked(case):
            sha.update(part)
    return sha.hexdigest()[:16]


def questions(cases: Iterable[Case]) -> dict[str, str]:
    """The digest of each case, by id."""
    return {case.id: digest([case])[:12] for case in cases}


def _asked(case: Case) -> Iterator[bytes]:
    """All that a case asks. Its reason, its line and the like are no part of it."""
    question = case.question.model_dump(mode="json", exclude_defaults=True)
    yield json.dumps([case.id, question], sort_keys=True).encode()
    for key, file in (("logits.file", case.question.logits.file), ("target.file", case.question.target.file)):
        if file is not None:
            with tensor_file(case, key, file) as path, path.open("rb") as content:
                while part := content.read(2**20):
                    yield part


def select(cases: list[Case], pattern: str) -> list[Case]:
    """The cases whose id the pattern matches; several patterns separated by commas. ``*`` and ``?`` are wildcards, brackets are
    plain characters, and a pattern without them also matches a whole clause or all of a matrix."""
    parts = [p.strip() for p in pattern.split(",") if p.strip()]
    return [case for case in cases if any(matches(part, case.id) for part in parts)]


def telling_first(cases: list[Case]) -> list[Case]:
    """The order to ask in: small batches that most wrong losses fail on come first, large ones last."""

    def place(case: Case) -> int:
        logits = case.question.logits
        large = logits.file is not None or math.prod(logits.shape or ()) > 4096
        return 3 if large else {"plain-values": 0, "ignored-positions": 1}.get(case.clause.clause, 2)

    return sorted(cases, key=place)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a case file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **CaseFile.model_json_schema()}


def merge(base: Any, over: Any, here: Location = ()) -> Any:
    """``over`` on top of ``base``, mapping by mapping; a key replaces the alternatives to it that the base gives.

    The result shares parts with both, neither of which is changed.
    """
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    result = dict(base)
    groups = _ALTERNATIVES.get(here, ())
    given = [group for group in groups if group & over.keys()]
    for key in set().union(*groups) - set().union(*given) if given else ():
        result.pop(key, None)
    for key, value in over.items():
        result[key] = merge(base[key], value, (*here, key)) if key in base else value
    return result


def _paths(folder: Path) -> list[Path]:
    paths = sorted(
        p for p in folder.rglob("*.yaml") if p.name not in CATALOGUES and p.relative_to(folder).parts[0] != SPEED
    )
    if not paths:
        raise CaseFileError(Mistake("expected case files (*.yaml); found none", folder))
    return paths


_Axis = list[tuple[str, str, Any]]  # the choices along an axis of a matrix: the axis's name, a label, a value


@dataclass(frozen=True)
class _Point:
    """One combination of a matrix's values: the case that it gives as a document, and where its parts are in the file.

    index: of the entry in the list of cases. axes: the keys that the matrix sets, and the name of the axis that sets each.
    """

    index: int
    line: int
    name: str
    label: str
    value: dict[str, Any]
    axes: dict[Location, str]


class _Source:
    """One file being read. It collects the mistakes, so that all are shown at once, each with the first case that has it."""

    def __init__(self, path: Path, document: Document) -> None:
        self.path, self.document = path, document
        self.mistakes: dict[tuple[int, str, str], Mistake] = {}
        if not isinstance(document.value, dict):
            expected = "expected a mapping with the keys clause, title, requirement, sources, cases"
            self.fail(1, f"{expected}; found {kind(document.value)}")
            self.raise_if_any()

    def fail(self, line: int, text: str, case: str = "", key: str = "") -> None:
        # One mistake, however many points of a matrix have it.
        self.mistakes.setdefault((line, key, text), Mistake(text, self.path, line, case, key))

    def raise_if_any(self) -> None:
        if self.mistakes:
            raise CaseFileError(*self.mistakes.values())

    def clause(self) -> Clause | None:
        header = {k: v for k, v in self.document.value.items() if k not in ("defaults", "cases")}
        return self._validated(Clause, header, CaseFile)

    def defaults(self) -> dict[str, Any]:
        defaults = self.document.value.get("defaults")
        if defaults is None:
            return {}
        if not isinstance(defaults, dict):
            self.fail(self.document.line(("defaults",)), f"expected a mapping; found {kind(defaults)}", key="defaults")
            return {}
        for key in sorted(Named.model_fields.keys() & defaults.keys()):
            text = f"expected keys that cases can share; found {key}, which each case has for itself"
            self.fail(self.document.line(("defaults", key)), text, key=f"defaults.{key}")
        return defaults

    def named_entries(self) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """Each entry of ``cases`` with an id of its own: its index, its id and the entry."""
        entries, lines_of_ids = self.document.value.get("cases"), dict[str, int]()
        if not isinstance(entries, list) or not entries:
            self.fail(self.document.line(("cases",)), f"expected a list of cases; found {kind(entries)}", key="cases")
            return
        for index, entry in enumerate(entries):
            line = self.document.line(("cases", index))
            name = entry.get("id") if isinstance(entry, dict) else entry
            if not isinstance(entry, dict) or not isinstance(name, str):
                self.fail(line, f"expected a mapping with a readable id; found {kind(name)}", key="id")
            elif name in lines_of_ids:
                place = self.document.line(("cases", index, "id"))
                self.fail(place, f"must be unique; it is already used on line {lines_of_ids[name]}", name, "id")
            else:
                lines_of_ids[name] = line
                yield index, name, entry

    def points(self) -> Iterator[_Point]:
        """All points of all entries: every combination of the choices along the axes, or the entry itself where it has no axis."""
        defaults, count, values = self.defaults(), 0, 0
        for index, name, entry in self.named_entries():
            merged, line = merge(defaults, entry), self.document.line(("cases", index))
            axes = self.axes(index, name, merged.pop("matrix", None))
            count += (points := math.prod(map(len, axes)))
            values += points * (
                _values(merged) + sum(max((_values(choice) for *_, choice in axis), default=0) for axis in axes)
            )
            if count > MAX_CASES_PER_FILE or values > MAX_VALUES_PER_FILE:
                limits = f"{MAX_CASES_PER_FILE} cases and {MAX_VALUES_PER_FILE:,} values in a file"
                self.fail(line, f"expected at most {limits}; found more", name, "matrix")
                return
            for combination in itertools.product(*axes):
                value, keys = merged, {}
                for axis, _, choice in combination:
                    if axis == "vary":
                        value = merge(value, choice)
                    else:
                        keys[tuple(axis.split("."))] = axis
                        value = merge(value, _nested(axis.split("."), choice))
                label = "-".join(label for _, label, _ in combination)
                yield _Point(index, line, name, f"[{label}]" if label else "", value, keys)

    def axes(self, index: int, name: str, matrix: Any) -> list[_Axis]:
        """The axes of an entry's matrix. Where there is a mistake in the matrix, one without choices, so that the entry has no points."""
        axes: list[_Axis] = []
        if not isinstance(matrix, (dict, type(None))):
            text = f"expected a mapping from keys to lists of values; found {kind(matrix)}"
            self.fail(self.document.line(("cases", index, "matrix")), text, name, "matrix")
            axes.append([])
        for axis, choices in matrix.items() if isinstance(matrix, dict) else ():
            try:
                axes.append([(axis, label, choice) for label, choice in _choices(axis, choices).items()])
            except Unexpected as error:
                key = ".".join(filter(None, ("matrix", axis, error.key)))
                self.fail(self.document.line(("cases", index, "matrix", axis)), str(error), name, key)
                axes.append([])
        return axes

    def question(self, point: _Point, clause: Clause | None) -> Question | None:
        value = {k: v for k, v in point.value.items() if k not in _OWN}
        question = self._validated(Question, value, Entry, point)
        limit = MAX_TIMED_NUMBERS if clause and clause.profile else MAX_NUMBERS
        for key, size in question.sizes.items() if question else ():
            if size > limit:
                line = self._line(point, tuple(key.split(".")))
                text = f"expected at most {limit:,} numbers in a tensor; found {size:,}"
                self.fail(line, text, f"{point.name}{point.label}", key)
        return question

    def named(self, point: _Point) -> Named | None:
        return self._validated(Named, {k: v for k, v in point.value.items() if k in _OWN}, Entry, point)

    def _validated(self, model: type[M], value: Any, keys_of: type[BaseModel], point: _Point | None = None) -> M | None:
        """None where the value does not fit the model. keys_of: whose keys are suggested for an unknown one."""
        try:
            return model.model_validate(value)
        except ValidationError as error:
            case = f"{point.name}{point.label}" if point else ""
            for where, text in explained(error, value, keys_of):
                line = self._line(point, where) if point else self.document.line(where)
                self.fail(line, text, case, ".".join(map(str, where)))
            return None

    def _line(self, point: _Point, where: Location) -> int:
        """Where the file sets the value: in the matrix, in the entry or in the defaults."""
        for end in range(len(where), 0, -1):
            part = where[:end]
            if part in point.axes:
                return self.document.line(("cases", point.index, "matrix", point.axes[part]))
            for place in (("cases", point.index, *part), ("defaults", *part)):
                if place in self.document.lines:
                    return self.document.lines[place]
        return point.line


def _choices(axis: str, choices: Any) -> dict[str, Any]:
    """The choices along an axis of a matrix by their labels. Raises Unexpected."""
    if axis != "vary" and (not re.fullmatch(r"[a-z_]+(\.[a-z_]+){0,3}", axis) or axis.partition(".")[0] in _OWN):
        raise Unexpected("a key of the question, such as dtype or logits.shape", f"{axis!r:.80}")
    labelled = {_label(choice): choice for choice in choices} if isinstance(choices, list) else choices
    if not isinstance(labelled, dict) or not labelled or len(labelled) < len(choices):
        raise Unexpected("a list of different values, or a mapping from labels to values", kind(choices))
    for label, choice in labelled.items():
        check_label(label)
        if axis == "vary" and not isinstance(choice, dict):
            raise Unexpected("a mapping with keys of a case", kind(choice), label)
        if axis == "vary" and (own := _OWN & choice.keys()):
            raise Unexpected("keys of the question", ", ".join(sorted(own)), label)
    return labelled


def _nested(keys: list[str], value: Any) -> Any:
    for key in reversed(keys):
        value = {key: value}
    return value


def _values(value: Any) -> int:
    """How many values a part of a document consists of."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(_values, parts))


def _label(value: Any) -> str:
    if isinstance(value, list):
        return "x".join(map(_label, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
