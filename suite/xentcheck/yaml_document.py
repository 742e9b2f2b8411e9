"""YAML as the case files use it: the 1.2 core schema, safe, bounded, without duplicate keys, and with the line of every value."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from xentcheck.mistakes import CaseFileError

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
    value: Any
    lines: dict[Location, int]


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's scalars: ``no`` and ``off`` are strings, ``1e30`` and ``-inf`` are numbers or words for them."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:null", r"^(?:~|null|)$", ["~", "n", ""]),
    ("tag:yaml.org,2002:bool", r"^(?:true|false)$", list("tf")),
    ("tag:yaml.org,2002:int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    ("tag:yaml.org,2002:float", r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), _first)
# PyYAML's own constructors read YAML 1.1 (leading zeros are octal, colons are base 60); the patterns above are plain decimals.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(node.value))


def read(path: Path) -> Document:
    """Reads one file. Raises CaseFileError for anything that is not one plain, bounded YAML document."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CaseFileError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > MAX_BYTES:
        raise CaseFileError(
            f"{path}: expected at most {MAX_BYTES:,} bytes, found {len(raw):,}; put large data into a safetensors file"
        )
    try:
        text = raw.decode("utf-8")
        _check_bounds(path, text)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                raise CaseFileError(f"{path}:1: expected a case file, found an empty document")
            lines: dict[Location, int] = {}
            return Document(_construct(path, loader, node, (), lines), lines)
        finally:
            loader.dispose()
    except UnicodeDecodeError as error:
        raise CaseFileError(f"{path}: expected UTF-8 text: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise CaseFileError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    except RecursionError as error:
        raise CaseFileError(f"{path}: nested too deeply") from error


def _check_bounds(path: Path, text: str) -> None:
    """Depth and aliases, on the event stream, before anything is built from it."""
    depth = aliases = 0
    open_anchors: list[int] = []
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise CaseFileError(f"{path}:{line}: expected at most {MAX_DEPTH} levels of nesting, found more")
            if event.anchor:
                open_anchors.append(depth)
        elif isinstance(event, yaml.CollectionEndEvent):
            if open_anchors and open_anchors[-1] == depth:
                open_anchors.pop()
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
            if open_anchors:
                raise CaseFileError(
                    f"{path}:{line}: alias *{event.anchor} inside an anchored value; aliases may not nest"
                )
            if aliases > MAX_ALIASES:
                raise CaseFileError(f"{path}:{line}: expected at most {MAX_ALIASES} aliases, found more")


def _construct(path: Path, loader: _Loader, node: yaml.Node, here: Location, lines: dict[Location, int]) -> Any:
    lines[here] = node.start_mark.line + 1
    if node.tag not in _TAGS[node.id]:
        raise CaseFileError(f"{path}:{lines[here]}: tag {node.tag!r} is not allowed; expected a plain value")
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise CaseFileError(f"{path}:{line}: expected a plain word as key, found a {key_node.id}")
            if key in mapping:
                raise CaseFileError(
                    f"{path}:{line}: key {key!r} stands twice; the first is on line {lines[(*here, key)]}"
                )
            mapping[key] = _construct(path, loader, value_node, (*here, key), lines)
            lines[(*here, key)] = line
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_construct(path, loader, item, (*here, i), lines) for i, item in enumerate(node.value)]
    try:
        return loader.construct_object(node)
    except (ValueError, KeyError) as error:  # !!int on what is none, or more digits than Python reads
        raise CaseFileError(
            f"{path}:{lines[here]}: {node.value[:40]!r} is no {node.tag.rpartition(':')[2]}: {error}"
        ) from error
