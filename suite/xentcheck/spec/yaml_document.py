"""YAML as the case files use it: the 1.2 core schema, safe, bounded, without duplicate keys, and with the line of every value."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from xentcheck.spec.mistakes import CaseFileError, Mistake

MAX_BYTES = 1_000_000
MAX_DEPTH = 24
MAX_ALIASES = 64

_TAGS = {
    "mapping": {"tag:yaml.org,2002:map"},
    "sequence": {"tag:yaml.org,2002:seq"},
    "scalar": {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str")},
}
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


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's scalars: ``no`` and ``off`` are strings, ``1e30`` and ``-inf`` are numbers or words for them."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


# The same on libyaml, which is ten times as fast where PyYAML was built with it.
_FastLoader: Any = (
    type("_FastLoader", (yaml.CSafeLoader,), {"yaml_implicit_resolvers": {}}) if yaml.__with_libyaml__ else None
)

for _loader in filter(None, (_PlainLoader, _FastLoader)):
    for _tag, _pattern, _first in (
        ("tag:yaml.org,2002:null", r"^(?:~|null|)$", ["~", "n", ""]),
        ("tag:yaml.org,2002:bool", r"^(?:true|false)$", list("tf")),
        ("tag:yaml.org,2002:int", r"^[-+]?[0-9]+$", list("-+0123456789")),
        (
            "tag:yaml.org,2002:float",
            r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$",
            list("-+.0123456789"),
        ),
    ):
        _loader.add_implicit_resolver(_tag, re.compile(_pattern), _first)
    # PyYAML's own constructors read YAML 1.1 (leading zeros are octal, colons are base 60); the patterns above are plain decimals.
    _loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
    _loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(node.value))


def read(path: Path) -> Document:
    """Reads one file. Raises CaseFileError for anything that is not one plain, bounded YAML document."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CaseFileError(Mistake(f"cannot be read: {error.strerror}", path)) from error
    if len(raw) > MAX_BYTES:
        large = f"expected at most {MAX_BYTES:,} bytes; found {len(raw):,}; put large data into a safetensors file"
        raise CaseFileError(Mistake(large, path))
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CaseFileError(Mistake(f"expected UTF-8 text: {error}", path)) from error
    if _FastLoader is not None:
        try:
            return _document(path, text, _FastLoader)
        except yaml.YAMLError:
            pass  # PyYAML's own parser says better what is wrong, and the same on every machine
    try:
        return _document(path, text, _PlainLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = f"not valid YAML: {getattr(error, 'problem', None) or error}"
        raise CaseFileError(Mistake(what, path, mark.line + 1 if mark else None)) from error
    except RecursionError as error:
        raise CaseFileError(Mistake("nested too deeply", path)) from error


def _document(path: Path, text: str, kind: Any) -> Document:
    _check_bounds(path, text, kind)
    loader = kind(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise CaseFileError(Mistake("expected a case file; found an empty document", path, 1))
        lines: dict[Location, int] = {}
        return Document(_construct(path, loader, node, (), lines), lines)
    finally:
        loader.dispose()


def _check_bounds(path: Path, text: str, kind: Any) -> None:
    """Depth and aliases, on the event stream, before anything is built from it."""
    depth = aliases = 0
    open_anchors: list[int] = []
    for event in yaml.parse(text, Loader=kind):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise CaseFileError(Mistake(f"expected at most {MAX_DEPTH} levels of nesting; found more", path, line))
            if event.anchor:
                open_anchors.append(depth)
        elif isinstance(event, yaml.CollectionEndEvent):
            if open_anchors and open_anchors[-1] == depth:
                open_anchors.pop()
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
            if open_anchors:
                nested = f"alias *{event.anchor} inside an anchored value; aliases may not nest"
                raise CaseFileError(Mistake(nested, path, line))
            if aliases > MAX_ALIASES:
                raise CaseFileError(Mistake(f"expected at most {MAX_ALIASES} aliases; found more", path, line))


def _construct(path: Path, loader: Any, node: yaml.Node, here: Location, lines: dict[Location, int]) -> Any:
    line = lines[here] = node.start_mark.line + 1
    if node.tag not in _TAGS[node.id]:
        raise CaseFileError(Mistake(f"tag {node.tag!r} is not allowed; expected a plain value", path, line))
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise CaseFileError(Mistake(f"expected a plain word as key; found a {key_node.id}", path, line))
            if key in mapping:
                repeated = f"key {key!r} is given twice; the first is on line {lines[(*here, key)]}"
                raise CaseFileError(Mistake(repeated, path, line))
            mapping[key] = _construct(path, loader, value_node, (*here, key), lines)
            lines[(*here, key)] = line
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_construct(path, loader, item, (*here, i), lines) for i, item in enumerate(node.value)]
    try:
        return loader.construct_object(node)
    except (ValueError, KeyError) as error:  # !!int before a word, or more digits than Python reads
        kind = node.tag.rpartition(":")[2]
        raise CaseFileError(Mistake(f"{node.value[:40]!r} cannot be read as {kind}: {error}", path, line)) from error
