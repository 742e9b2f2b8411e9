"""The types of what stands in a case file: numbers, sizes, names, texts, and the words for dtypes and layouts.

Each takes exactly what it names. ``true``, ``1.0`` and ``'3'`` are not the integer that Python would make of them.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Strict, WithJsonSchema

from xentcheck.spec.mistakes import Unexpected, kind

_NAME = "[a-z0-9]+(-[a-z0-9]+)*"
WORDS = {"inf": math.inf, "+inf": math.inf, "-inf": -math.inf, "nan": math.nan}
MAX_NAME, MAX_TEXT, MAX_DIMENSIONS = 200, 1000, 8


# --- numbers


def _integer(value: Any) -> int:
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise Unexpected("an integer of 64 bits")
    return value


def _number(value: Any) -> float:
    """A number of YAML, or one of the words for values that YAML has no number for."""
    if isinstance(value, str) and value.lower() in WORDS:
        return WORDS[value.lower()]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Unexpected("a number, inf, -inf or nan")
    try:
        number = float(value)
    except OverflowError:
        raise Unexpected("a number that float64 can hold", "an integer beyond its range") from None
    if number != value and isinstance(value, int):
        raise Unexpected("a number that float64 holds exactly, such as 1e30")
    return number


def _class(value: Any) -> float | int:
    """A number, or an integer of 64 bits that float64 does not hold exactly."""
    return value if type(value) is int and 2**53 < abs(value) < 2**63 else _number(value)


def _bytes(value: Any) -> int:
    """``6 GiB`` or a number of bytes."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([KMG]i)?B", value) if isinstance(value, str) else None
    if match:
        value = int(float(match[1]) * {None: 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}[match[2]])
    if type(value) is not int or not 0 < value < 2**63:
        raise Unexpected("a size such as 6 GiB")
    return value


def _nested(number: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def nested(value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            return number(value)
        parts: list[Any] = []
        for index, part in enumerate(value):
            try:
                parts.append(nested(part))
            except Unexpected as error:
                key = f"{index}.{error.key}" if error.key else str(index)
                raise Unexpected(error.expected, error.found or kind(part), key) from error
            if shape_of(parts[0]) != shape_of(parts[-1]):
                found = f"{shape_of(parts[0])} and {shape_of(parts[-1])}"
                raise Unexpected("parts of the same shape", found, str(index))
        if len(shape_of(tuple(parts))) > MAX_DIMENSIONS:
            raise Unexpected(f"at most {MAX_DIMENSIONS} levels of lists", "more")
        return tuple(parts)

    return nested


def shape_of(nested: Any) -> tuple[int, ...]:
    """The shape of literal numbers."""
    return (len(nested), *(shape_of(nested[0]) if nested else ())) if isinstance(nested, tuple) else ()


def flat(nested: Any) -> Iterator[float | int]:
    """Literal numbers, one after another."""
    return itertools.chain.from_iterable(map(flat, nested)) if isinstance(nested, tuple) else iter((nested,))


_NUMBER_SCHEMA: dict[str, Any] = {"anyOf": [{"type": "number"}, {"enum": [*WORDS]}]}
_NESTED_SCHEMA = WithJsonSchema({"anyOf": [*_NUMBER_SCHEMA["anyOf"], {"type": "array"}]})

Int = Annotated[int, BeforeValidator(_integer)]
Ints = Annotated[tuple[Int, ...], Field(fail_fast=True)]
Chosen = Annotated[tuple[Int, ...], Field(min_length=1, fail_fast=True)]  # one index or more
Size = Annotated[Int, Field(ge=0)]
Shape = Annotated[tuple[Size, ...], Field(max_length=MAX_DIMENSIONS, fail_fast=True)]
Flag = Annotated[bool, Strict()]
Number = Annotated[float, BeforeValidator(_number), WithJsonSchema(_NUMBER_SCHEMA)]
Numbers = Annotated[tuple[Number, ...], Field(fail_fast=True)]
# A number, or lists of lists of numbers: literal logits, targets and answers, as tuples.
Nested = Annotated[Any, BeforeValidator(_nested(_number)), _NESTED_SCHEMA]
NestedClasses = Annotated[Any, BeforeValidator(_nested(_class)), _NESTED_SCHEMA]
Bytes = Annotated[int, BeforeValidator(_bytes), WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string"}]})]


# --- texts


def text(value: Any, at_most: int = MAX_TEXT) -> str:
    """One line that a terminal, Markdown and HTML show as it is. Raises Unexpected for an empty or longer text, and for line breaks,
    control characters and whatever else cannot be printed."""
    if not isinstance(value, str):
        raise Unexpected("a string")
    if not value.strip() or not value.isprintable() or len(value) > at_most:
        long = f"{len(value):,} characters" if len(value) > at_most else None
        raise Unexpected(f"one line of 1 to {at_most} printable characters", long)
    return value


def _name(value: Any) -> str:
    if not re.fullmatch(_NAME, text(value, MAX_NAME)):
        raise Unexpected("lower-case letters and digits, in words with dashes between them")
    return value


def check_label(label: str) -> None:
    """Raises Unexpected for what cannot name a point of a matrix."""
    if not re.fullmatch(r"[\w.+-]{1,100}", label, re.ASCII):
        expected = "labels of 1 to 100 letters, digits and _ . + -, in a mapping from labels to values"
        raise Unexpected(expected, f"{label!r:.80}")


def _match(value: Any) -> str:
    if set(text(value)) & set(r"\^$*+?{}()[]") or not all(part.strip() for part in value.split("|")):
        raise Unexpected(r"a text, or texts with | between them, without \ ^ $ * + ? { } ( ) [ ]")
    return value


Text = Annotated[str, BeforeValidator(text), Field(min_length=1, max_length=MAX_TEXT)]
Texts = Annotated[tuple[Text, ...], Field(fail_fast=True)]
Name = Annotated[str, BeforeValidator(_name), WithJsonSchema({"type": "string", "pattern": f"^{_NAME}$"})]
# Of regular expressions only alternatives, so that no search takes long.
Match = Annotated[str, BeforeValidator(_match), Field(min_length=1, max_length=MAX_TEXT)]

Dtype = Literal["float64", "float32", "bfloat16", "float16"]
TargetDtype = Literal["int64", "uint8", "int32", "int16", "int8", "bool", "float32", "float64"]
Layout = Literal["contiguous", "transposed", "strided", "expanded", "offset", "channels_last"]
