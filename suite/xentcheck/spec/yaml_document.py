"""YAML as the case files use it: the scalars of YAML 1.2, safe, bounded, without duplicate keys, and with the line of every value.

Values are built from the parser's events, so that nothing in a file names a type or a constructor, and so that what is too large is refused
before it is built.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from xentcheck.spec.files import size_of_regular
from xentcheck.spec.mistakes import CaseFileError, Mistake, Unexpected

MAX_BYTES = 1_000_000
MAX_VALUES = 50_000  # keys and values, those of an alias counted anew wherever it stands
MAX_DEPTH = 24

_LARGE = "large data belongs in a safetensors file"
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# libyaml is twenty times as fast, where PyYAML was built with it.
_PARSER: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader

Location = tuple[Any, ...]  # keys and list indices from the top of the document


@dataclass(frozen=True)
class Document:
    """A YAML document as dictionaries, lists and plain values; lines: where each of them starts, counted from 1."""

    value: Any
    lines: dict[Location, int]

    def line(self, where: Location) -> int:
        """The line of a value; of the nearest that contains it, where it does not exist."""
        while where and where not in self.lines:
            where = where[:-1]
        return self.lines.get(where, 1)


def read(path: Path) -> Document:
    """Reads one file. Raises CaseFileError for anything that is not one plain, bounded YAML document."""
    try:
        if (size := size_of_regular(path)) > MAX_BYTES:
            raise Unexpected(f"at most {MAX_BYTES:,} bytes; {_LARGE}", f"{size:,}")
        return parse(path.read_bytes().decode("utf-8-sig"), path)
    except Unexpected as error:
        raise CaseFileError(Mistake(f"cannot be read: {error}", path)) from error
    except OSError as error:
        raise CaseFileError(Mistake(f"cannot be read: {error.strerror}", path)) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        found = f"expected UTF-8 text; found the byte {error.object[error.start]:#04x}"
        raise CaseFileError(Mistake(found, path, line)) from error


def parse(text: str, path: Path, parser: Any = _PARSER) -> Document:
    """A text as a document. Raises CaseFileError as ``read`` does. parser: a loader of PyYAML, of which only the events are used."""
    if found := _UNPRINTABLE.search(text):
        where = text.count("\n", 0, found.start()) + 1
        raise CaseFileError(Mistake(f"expected printable text; found the character {found[0]!r}", path, where))
    try:
        return _Builder(path, yaml.parse(text, Loader=parser)).document()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        hint = "; indent with spaces, not tabs" if "\t" in "".join(text.split("\n")[:line][-1:]) else ""
        raise CaseFileError(Mistake(f"not valid YAML: {getattr(error, 'problem', error)}{hint}", path, line)) from error


class _Builder:
    """Builds the value of one document from the parser's events."""

    def __init__(self, path: Path, events: Iterator[Any]) -> None:
        self.path, self.events = path, events
        self.lines: dict[Location, int] = {}
        self.anchors: dict[str, tuple[Any, int]] = {}  # the value, and how many values it consists of
        self.count = 0

    def document(self) -> Document:
        next(self.events)  # the start of the stream
        if isinstance(next(self.events), yaml.StreamEndEvent):
            raise CaseFileError(Mistake("expected a case file; found an empty document", self.path, 1))
        value = self._value(next(self.events), ())
        next(self.events)  # the end of the document
        following = next(self.events)
        if not isinstance(following, yaml.StreamEndEvent):
            self._fail(following, "expected one document; found another one")
        return Document(value, self.lines)

    def _fail(self, event: Any, text: str) -> NoReturn:
        raise CaseFileError(Mistake(text, self.path, event.start_mark.line + 1))

    def _value(self, event: Any, here: Location) -> Any:
        self.lines.setdefault(here, event.start_mark.line + 1)
        before = self.count
        self._add(event, 1)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                self._fail(event, f"alias *{event.anchor:.80} comes before the end of its anchor, or has none")
            value, count = self.anchors[event.anchor]
            self._add(event, count)
            return value
        if event.tag:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._fail(event, f"tag {tag!r:.80} is not allowed; expected a plain value")
        if len(here) >= MAX_DEPTH and not isinstance(event, yaml.ScalarEvent):
            self._fail(event, f"expected at most {MAX_DEPTH} levels of nesting; found more")
        if isinstance(event, yaml.MappingStartEvent):
            value = self._mapping(here)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(item := next(self.events), yaml.SequenceEndEvent):
                value.append(self._value(item, (*here, len(value))))
        else:
            value = self._plain(event) if event.implicit[0] else event.value
        if event.anchor:
            self.anchors[event.anchor] = value, self.count - before
        return value

    def _mapping(self, here: Location) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(key := next(self.events), yaml.MappingEndEvent):
            if not isinstance(key, yaml.ScalarEvent) or key.tag:
                self._fail(key, "expected a plain word as key; found another value")
            place = (*here, key.value)
            if key.value in mapping:
                self._fail(key, f"key {key.value!r:.80} is given twice; the first is on line {self.lines[place]}")
            self.lines[place] = key.start_mark.line + 1
            self._add(key, 1)
            mapping[key.value] = self._value(next(self.events), place)
        return mapping

    def _plain(self, event: Any) -> Any:
        text = event.value
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.fullmatch(text):
            if len(text) > 1000:
                self._fail(event, f"expected at most 1,000 digits; found {len(text):,}")
            return int(text)
        if _FLOAT.fullmatch(text):
            if math.isinf(float(text)):
                self._fail(event, f"expected a number that float64 can hold, or inf; found {text:.80}")
            return float(text)
        return text

    def _add(self, event: Any, count: int) -> None:
        self.count += count
        if self.count > MAX_VALUES:
            self._fail(event, f"expected at most {MAX_VALUES:,} values; found more; {_LARGE}")
