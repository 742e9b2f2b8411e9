"""Values as bytes between two processes: a JSON header and plain buffers, never a pickle.

What is passed is dataclasses of xentcheck, field by field, so that a new field of a type known here comes along by itself; a type
that is not known here is an error at once, with its place. A field whose metadata say ``sent: False`` stays where it is, and is its
default on the other side.
"""

from __future__ import annotations

import importlib
import json
import struct
from collections.abc import Generator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

TOKEN = 16  # bytes that only the two ends of a conversation know, so that nothing else can pass for a frame
_PREFIX = struct.Struct(f"<{TOKEN}sQ")  # token, length of the header
_DOUBLE = struct.Struct("<d")
_LARGE = 1 << 14
_PLAIN = (type(None), bool, int)
_COLLECTIONS: dict[type, str] = {tuple: "tuple", list: "list", frozenset: "frozenset"}
_MAKE = {name: kind for kind, name in _COLLECTIONS.items()}


class GarbledError(Exception):
    """Bytes that are no frame."""


def frame(token: bytes, value: Any) -> list[memoryview]:
    """A value as what is to be written, one after another. Raises TypeError for what cannot be passed."""
    buffers: list[np.ndarray] = []
    body = _encoded(value, buffers, type(value).__name__)
    header = json.dumps({"value": body, "sizes": [buffer.nbytes for buffer in buffers]}).encode()
    return [memoryview(_PREFIX.pack(token, len(header)) + header), *(b.data for b in buffers if b.nbytes)]


def reading(token: bytes | None = None) -> Generator[memoryview, None, tuple[bytes, Any]]:
    """Yields the memory that is to be filled next, however many reads that takes; returns token and value.

    token: what the frame must begin with. Raises GarbledError for anything else.
    """
    prefix = bytearray(_PREFIX.size)
    yield memoryview(prefix)
    found, length = _PREFIX.unpack(prefix)
    if token is not None and found != token:
        raise GarbledError(f"expected an answer; found {bytes(prefix)!r}")
    header = bytearray(length)
    yield memoryview(header)
    parts = json.loads(header)
    buffers = [np.empty(size, dtype=np.uint8) for size in parts["sizes"]]
    for buffer in buffers:
        if buffer.nbytes:
            yield buffer.data
    return found, _decoded(parts["value"], buffers)


def _encoded(value: Any, buffers: list[np.ndarray], place: str) -> Any:
    """As JSON: what is plain stands for itself, anything else is a list that begins with its kind."""
    kind = type(value)
    if kind in _PLAIN or isinstance(value, str):  # torch.__version__ is no plain string, but arrives as one
        return value
    if kind is float:
        return ["float", _DOUBLE.pack(value).hex()]  # every bit of it, of a NaN as well
    if kind in _COLLECTIONS:
        return [_COLLECTIONS[kind], [_encoded(v, buffers, f"{place}[{i}]") for i, v in enumerate(value)]]
    if kind is dict:
        return [
            "dict",
            [[_encoded(k, buffers, place), _encoded(v, buffers, f"{place}[{k!r}]")] for k, v in value.items()],
        ]
    if kind is np.ndarray and value.dtype.kind in "biufc":
        return [
            "array",
            value.dtype.str,
            list(value.shape),
            _placed(np.ascontiguousarray(value).reshape(-1).view(np.uint8), buffers),
        ]
    if kind is Tensor and _is_plain(value):
        # The whole storage, whose gaps are part of what a loss may read by mistake.
        buffers.append(torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage()).numpy())  # type: ignore[call-overload]
        layout = [list(value.shape), list(value.stride()), value.storage_offset()]
        return ["tensor", str(value.dtype).removeprefix("torch."), *layout, len(buffers) - 1]
    if is_dataclass(kind) and kind.__module__.startswith("xentcheck."):
        sent = {
            f.name: _encoded(getattr(value, f.name), buffers, f"{place}.{f.name}") for f in fields(kind) if _is_sent(f)
        }
        return ["dataclass", f"{kind.__module__}:{kind.__qualname__}", sent]
    raise TypeError(
        f"{place}: expected None, a number, a string, a collection, an array, a plain CPU tensor or a dataclass of these; "
        f"found {kind.__module__}.{kind.__qualname__}, which cannot be passed to a worker"
    )


def _placed(data: np.ndarray, buffers: list[np.ndarray]) -> int:
    """The number of a buffer with these bytes. The answer to the same call again is mostly the same, and large ones take time to pass."""
    if data.nbytes >= _LARGE and data.nbytes % 8 == 0:
        for number, other in enumerate(buffers):
            if other.nbytes == data.nbytes and np.array_equal(other.view(np.int64), data.view(np.int64)):
                return number
    buffers.append(data)
    return len(buffers) - 1


def _decoded(body: Any, buffers: list[np.ndarray]) -> Any:
    if not isinstance(body, list):
        return body
    kind, *rest = body
    if kind == "float":
        return _DOUBLE.unpack(bytes.fromhex(rest[0]))[0]
    if kind in _MAKE:
        return _MAKE[kind](_decoded(v, buffers) for v in rest[0])
    if kind == "dict":
        return {_decoded(k, buffers): _decoded(v, buffers) for k, v in rest[0]}
    if kind == "array":
        dtype, shape, number = rest
        return buffers[number].view(dtype).reshape(shape)
    if kind == "tensor":
        dtype, shape, stride, offset, number = rest
        storage = torch.from_numpy(buffers[number]).untyped_storage()
        return torch.empty(0, dtype=getattr(torch, dtype)).set_(storage, offset, shape, stride)  # type: ignore[call-overload]
    module, _, name = rest[0].partition(":")
    made_of = getattr(importlib.import_module(module), name)
    made = object.__new__(made_of)  # as it was, without being made anew
    for field in fields(made_of):
        value = _decoded(rest[1][field.name], buffers) if field.name in rest[1] else _default(field)
        object.__setattr__(made, field.name, value)
    return made


def _is_plain(tensor: Tensor) -> bool:
    strided = tensor.layout == torch.strided and not tensor.is_conj() and not tensor.is_neg()
    return strided and tensor.device.type == "cpu" and not tensor.requires_grad


def _is_sent(field: Field[Any]) -> bool:
    return field.metadata.get("sent", True)


def _default(field: Field[Any]) -> Any:
    return field.default if field.default is not MISSING else field.default_factory()  # type: ignore[misc]
