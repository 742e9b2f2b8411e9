"""The types of a case's fields: numbers, sizes, and the words for dtypes and layouts."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, WithJsonSchema

from xentcheck.spec.mistakes import Unexpected

WORDS = {"inf": math.inf, "+inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def _number(value: Any) -> Any:
    """The words for the values that plain YAML has no number for; everything else is left to pydantic."""
    if isinstance(value, str) and value.lower() in WORDS:
        return WORDS[value.lower()]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Unexpected("a number, inf, -inf or nan", repr(value))
    return float(value)


def _bytes(value: Any) -> Any:
    """``6 GiB`` or a number of bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i)?B", value) if isinstance(value, str) else None
    if match:
        return int(float(match[1]) * {None: 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}[match[2]])
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise Unexpected("a size such as 6 GiB")
    return value


def _nested(value: Any) -> Any:
    return tuple(_nested(v) for v in value) if isinstance(value, (list, tuple)) else _number(value)


NUMBER_SCHEMA: dict[str, Any] = {"anyOf": [{"type": "number"}, {"enum": [*WORDS]}]}
Number = Annotated[float, BeforeValidator(_number), WithJsonSchema(NUMBER_SCHEMA)]
# A number, or lists of lists of numbers: literal logits, targets and answers.
Nested = Annotated[
    Any, BeforeValidator(_nested), WithJsonSchema({"anyOf": [*NUMBER_SCHEMA["anyOf"], {"type": "array"}]})
]

Bytes = Annotated[int, BeforeValidator(_bytes), WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string"}]})]

Dtype = Literal["float64", "float32", "bfloat16", "float16"]
TargetDtype = Literal["int64", "uint8", "int32", "int16", "int8", "bool", "float32", "float64"]
Layout = Literal["contiguous", "transposed", "strided", "expanded", "offset", "channels_last"]
