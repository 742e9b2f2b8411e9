"""Validates a document with a model, and reports for each mistake where it is, what was expected and what was found."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from xentcheck.spec.mistakes import MAX_MISTAKES, CaseFileError, Mistake, Unexpected, kind
from xentcheck.spec.patterns import nearest
from xentcheck.spec.yaml_document import Location, read

M = typing.TypeVar("M", bound=BaseModel)

# What each type of error expected, in the words of somebody who writes YAML. The types of ``fields`` have words of their own.
_EXPECTED = {
    "literal_error": "{expected}",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "too_short": "a list of {min_length} or more",
    "too_long": "a list of at most {max_length}",
    "string_pattern_mismatch": "text that matches {pattern}",
    "greater_than_equal": "at least {ge:g}",
    "less_than_equal": "at most {le:g}",
}


def parsed(model: type[M], path: Path) -> M:
    """A whole file as the model. Raises CaseFileError that lists all mistakes in it."""
    document = read(path)
    try:
        return model.model_validate(document.value)
    except ValidationError as error:
        found = explained(error, document.value, model)
        mistakes = [Mistake(text, path, document.line(where), key=".".join(map(str, where))) for where, text in found]
        raise CaseFileError(*mistakes) from error


def explained(error: ValidationError, value: Any, model: type[BaseModel]) -> Iterator[tuple[Location, str]]:
    """Pydantic's errors, one for each place in the document. Those after ``MAX_MISTAKES`` have no text, which would take long.

    Args:
        error: what pydantic raised.
        value: what was validated.
        model: the model whose keys are suggested for an unknown one.
    """
    grouped: dict[Location, list[ErrorDetails]] = {}
    for item in error.errors(include_url=False):
        grouped.setdefault(_place(item, value), []).append(item)
    # Every branch of a union complains; the branch that came furthest is the one that was meant.
    containers = {where[:end] for where in grouped for end in range(len(where))}
    places = [where for where in grouped if where not in containers]
    for number, where in enumerate(places):
        yield where, _text(where, grouped[where], model) if number < MAX_MISTAKES else ""


def _text(where: Location, items: Iterable[ErrorDetails], model: type[BaseModel]) -> str:
    by_type = {item["type"]: item for item in items}
    if "extra_forbidden" in by_type:
        known = _keys_at(model, where[:-1])
        return f"unknown key{nearest(str(where[-1]), known, 1)} Expected one of: {', '.join(known)}"
    if "missing" in by_type:
        return "required, but missing"
    expected, found = [], None
    for item in items:
        ours = _ours(item)
        if ours is None:
            template = _EXPECTED.get(item["type"])
            expected.append(template.format(**item.get("ctx", {})) if template else f"another value ({item['msg']})")
        else:
            expected.append(ours.expected)
            found = ours.found if found is None else found
    found = kind(next(iter(by_type.values()))["input"]) if found is None else found
    return f"expected {' or '.join(dict.fromkeys(expected))}; found {found}"


def _ours(item: ErrorDetails) -> Unexpected | None:
    cause = item.get("ctx", {}).get("error")
    return cause if isinstance(cause, Unexpected) else None


def _place(item: ErrorDetails, value: Any) -> Location:
    """Where in the document the error is: its location without the names of union branches, which do not exist there."""
    where: list[Any] = []
    for step in item["loc"]:
        exists = step in value if isinstance(value, dict) else isinstance(value, list) and step in range(len(value))
        if exists:
            where.append(step)
            value = value[step]
    if item["type"] == "missing":
        where.append(item["loc"][-1])
    ours = _ours(item)
    below = ours.key.split(".") if ours is not None and ours.key else ()
    return (*where, *(int(step) if step.isdecimal() else step for step in below))


def _keys_at(model: type[BaseModel], where: Location) -> list[str]:
    """The keys that are allowed at a place of the document."""
    models = [model]
    for step in where:
        if not isinstance(step, int):
            annotations = [m.model_fields[step].annotation for m in models if step in m.model_fields]
            models = [m for annotation in annotations for m in _models_in(annotation)]
    return sorted({name for m in models for name in m.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in typing.get_args(annotation) for m in _models_in(argument)]
