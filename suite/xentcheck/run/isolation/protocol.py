"""Values as bytes between two processes: a JSON header and plain buffers, never a pickle.

What is passed is dataclasses of xentcheck, field by field, so that a new field of a type known here comes along by itself; a type
that is not known here is an error at once, with its place. A field whose metadata say ``sent: False`` stays where it is, and is its
default on the other side.
"""

from __future__ import annotations

import functools
import importlib
import json
import struct
from collections.abc import Generator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

AT_ONCE = 512  # parts of a frame in one system call, which takes 1024
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
    buffers = _Buffers()
    body = _encoded(value, buffers, type(value).__name__)
    header = json.dumps({"value": body, "sizes": [part.nbytes for part in buffers.parts]}).encode()
    return [
        memoryview(_PREFIX.pack(token, len(header)) + header),
        *(part.data for part in buffers.parts if part.nbytes),
    ]


def rest(parts: list[memoryview], count: int) -> list[memoryview]:
    """What is left of the memory after its first ``count`` bytes."""
    for number, part in enumerate(parts):
        if count < part.nbytes:
            return [part[count:], *parts[number + 1 :]]
        count -= part.nbytes
    return []


def reading(token: bytes | None = None) -> Generator[list[memoryview], None, tuple[bytes, Any]]:
    """Yields the memory that is to be filled next, however many reads that takes; returns token and value.

    token: what the frame must begin with. Raises GarbledError for anything else.
    """
    prefix = bytearray(_PREFIX.size)
    yield [memoryview(prefix)]
    found, length = _PREFIX.unpack(prefix)
    if token is not None and found != token:
        raise GarbledError(f"expected an answer; found {bytes(prefix)!r}")
    header = bytearray(length)
    yield [memoryview(header)]
    parts = json.loads(header)
    buffers = [np.empty(size, dtype=np.uint8) for size in parts["sizes"]]
    if filled := [buffer.data for buffer in buffers if buffer.nbytes]:
        yield filled
    return found, _decoded(parts["value"], buffers)


class _Buffers:
    """What follows a header, each part once: large ones take time to pass."""

    def __init__(self) -> None:
        self.parts: list[np.ndarray] = []
        self._storages: dict[tuple[int, int], int] = {}

    def of_storage(self, tensor: Tensor) -> int:
        """The number of the part with the tensor's whole storage, whose gaps are part of what a loss may read by mistake. Tensors that
        share it share it on the other side."""
        storage = tensor.untyped_storage()
        key = storage.data_ptr(), storage.nbytes()
        if key not in self._storages or not key[1]:
            self._storages[key] = self._add(torch.empty(0, dtype=torch.uint8).set_(storage).numpy())
        return self._storages[key]

    def of_values(self, data: np.ndarray) -> int:
        """The number of a part with these bytes; the answer to the same call again is mostly the same."""
        if data.nbytes >= _LARGE and data.nbytes % 8 == 0:
            for number, other in enumerate(self.parts):
                if other.nbytes == data.nbytes and np.array_equal(other.view(np.int64), data.view(np.int64)):
                    return number
        return self._add(data)

    def _add(self, part: np.ndarray) -> int:
        self.parts.append(part)
        return len(self.parts) - 1


def _encoded(value: Any, buffers: _Buffers, place: str) -> Any:
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
            buffers.of_values(np.ascontiguousarray(value).reshape(-1).view(np.uint8)),
        ]
    if kind is Tensor and _is_plain(value):
        layout = [list(value.shape), list(value.stride()), value.storage_offset()]
        return ["tensor", str(value.dtype).removeprefix("torch."), *layout, buffers.of_storage(value)]
    if is_dataclass(kind) and kind.__module__.startswith("xentcheck."):
        sent = {name: _encoded(getattr(value, name), buffers, f"{place}.{name}") for name in _sent(kind)}
        return ["dataclass", f"{kind.__module__}:{kind.__qualname__}", sent]
    raise TypeError(
        f"{place}: expected None, a number, a string, a collection, an array, a plain CPU tensor or a dataclass of these; "
        f"found {kind.__module__}.{kind.__qualname__}, which cannot be passed to a worker"
    )


def _decoded(body: Any, buffers: list[np.ndarray]) -> Any:
    if not isinstance(body, list):
        return body
    kind, *about = body
    if kind == "float":
        return _DOUBLE.unpack(bytes.fromhex(about[0]))[0]
    if kind in _MAKE:
        return _MAKE[kind](_decoded(v, buffers) for v in about[0])
    if kind == "dict":
        return {_decoded(k, buffers): _decoded(v, buffers) for k, v in about[0]}
    if kind == "array":
        dtype, shape, number = about
        return buffers[number].view(dtype).reshape(shape)
    if kind == "tensor":
        dtype, shape, stride, offset, number = about
        storage = torch.from_numpy(buffers[number]).untyped_storage()
        return torch.empty(0, dtype=getattr(torch, dtype)).set_(storage, offset, shape, stride)
    made_of = _named(about[0])
    made: Any = object.__new__(made_of)  # as it was, without being made anew
    for field in fields(made_of):
        value = _decoded(about[1][field.name], buffers) if field.name in about[1] else _default(field)
        object.__setattr__(made, field.name, value)
    return made


def _is_plain(tensor: Tensor) -> bool:
    strided = tensor.layout == torch.strided and not tensor.is_conj() and not tensor.is_neg()
    return strided and tensor.device.type == "cpu" and not tensor.requires_grad


@functools.cache
def _sent(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind) if field.metadata.get("sent", True))


@functools.cache
def _named(place: str) -> type:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _default(field: Field[Any]) -> Any:
    return field.default if field.default is not MISSING else field.default_factory()  # type: ignore[operator]
