"""Values as bytes between two processes: a JSON head and a body of plain buffers, never a pickle.

What is passed is dataclasses of xentcheck, field by field, so that a new field of a type known here comes along by itself; a type
that is not known here is an error at once, with its place. A field whose metadata say ``sent: False`` stays where it is, and is its
default on the other side.

Nothing here imports torch. In a process that has not imported it either, a tensor arrives as an array, or as ``Bits`` where NumPy lacks
its dtype, and a dataclass whose module cannot be imported as a namespace of its fields.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
import socket
import struct
import sys
import time
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

TOKEN = 16  # bytes that only the two ends of a conversation know, so that nothing else can pass for a frame
_PREFIX = struct.Struct(f"<{TOKEN}sQQ")  # token, length of the head, length of the body
_ALIGNED = 64
_PLAIN = (type(None), bool, int, float)
_COLLECTIONS: dict[type, str] = {tuple: "tuple", list: "list", frozenset: "frozenset"}
_MAKE = {name: kind for kind, name in _COLLECTIONS.items()}


@dataclass(frozen=True)
class Bits:
    """A tensor where there is no torch, of a dtype that NumPy lacks.

    dtype: as torch calls it, such as bfloat16. bits: its values as unsigned integers of that width, in its shape.
    """

    dtype: str
    bits: np.ndarray


def send(channel: socket.socket, token: bytes, value: Any) -> None:
    """Writes a frame. Raises TypeError for a value that cannot be passed, and what the socket raises."""
    for part in frame(token, value):
        channel.sendall(part)


def receive(channel: socket.socket, token: bytes | None = None, until: float | None = None) -> tuple[bytes, Any]:
    """The token and the value of the next frame.

    Args:
        channel: a connected socket.
        token: what the frame must begin with.
        until: when to give up, by ``time.monotonic``.

    Raises:
        ValueError: it begins with something else.
        TimeoutError: it is not complete by then.
        EOFError: the other end was closed.
    """
    prefix = _exactly(channel, _PREFIX.size, until)
    found, head, body = _PREFIX.unpack(prefix.data)
    if token is not None and found != token:
        raise ValueError(f"expected an answer; found {prefix.tobytes()!r}")
    tree = json.loads(_exactly(channel, head, until).tobytes())
    return found, _decoded(tree, _exactly(channel, body, until))


def frame(token: bytes, value: Any) -> list[Any]:
    """A value as bytes-like parts. Raises TypeError for what cannot be passed."""
    body = _Body()
    head = json.dumps(_encoded(value, body, type(value).__name__)).encode()
    return [_PREFIX.pack(token, len(head), body.size) + head, *body.parts]


def _exactly(channel: socket.socket, count: int, until: float | None) -> np.ndarray:
    data = np.empty(count, dtype=np.uint8)
    rest = data.data
    while len(rest):
        if until is not None:
            if (left := until - time.monotonic()) <= 0:
                raise TimeoutError
            channel.settimeout(left)
        read = channel.recv_into(rest)
        if not read:
            raise EOFError
        rest = rest[read:]
    return data


class _Body:
    """What follows a head. A part is named by its place, [offset, length]."""

    def __init__(self) -> None:
        self.parts: list[Any] = []
        self.size = 0
        self._storages: dict[tuple[int, int], list[int]] = {}

    def add(self, part: np.ndarray) -> list[int]:
        if gap := -self.size % _ALIGNED:
            self.parts.append(bytes(gap))
        place = [self.size + gap, part.nbytes]
        self.parts.append(part.data)
        self.size = sum(place)
        return place

    def add_storage(self, tensor: Any) -> list[int]:
        """Of a tensor's whole storage, whose gaps are part of what a loss may read by mistake. Tensors that share it share it on the
        other side."""
        torch, storage = sys.modules["torch"], tensor.untyped_storage()
        key = storage.data_ptr(), storage.nbytes()
        if key not in self._storages or not key[1]:
            self._storages[key] = self.add(torch.empty(0, dtype=torch.uint8).set_(storage).numpy())
        return self._storages[key]


def _encoded(value: Any, body: _Body, place: str) -> Any:
    """As JSON: what is plain stands for itself, anything else is a list that begins with its kind."""
    kind, torch = type(value), sys.modules.get("torch")
    if kind in _PLAIN or isinstance(value, str):  # torch.__version__ is no plain string, but arrives as one
        return value
    if kind in _COLLECTIONS:
        return [_COLLECTIONS[kind], [_encoded(v, body, f"{place}[{i}]") for i, v in enumerate(value)]]
    if kind is dict:
        items = [[_encoded(k, body, place), _encoded(v, body, f"{place}[{k!r}]")] for k, v in value.items()]
        return ["dict", items]
    if kind is np.ndarray and value.dtype.kind in "biufc":
        return ["array", value.dtype.str, list(value.shape), body.add(_bytes_of(value))]
    if kind is Bits:
        shape, size = value.bits.shape, value.bits.itemsize
        stride = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        return ["tensor", value.dtype, size, list(shape), stride, 0, body.add(_bytes_of(value.bits))]
    if torch and kind is torch.Tensor and _is_plain(value):
        dtype, layout = str(value.dtype).removeprefix("torch."), (list(value.shape), list(value.stride()))
        return ["tensor", dtype, value.element_size(), *layout, value.storage_offset(), body.add_storage(value)]
    if is_dataclass(kind) and kind.__module__.startswith("xentcheck."):
        sent = {name: _encoded(getattr(value, name), body, f"{place}.{name}") for name in _sent(kind)}
        return ["dataclass", f"{kind.__module__}:{kind.__qualname__}", sent]
    raise TypeError(
        f"{place}: expected None, a number, a string, a collection, an array, a plain CPU tensor or a dataclass of these; "
        f"found {kind.__module__}.{kind.__qualname__}, which cannot be passed to a worker"
    )


def _decoded(tree: Any, body: np.ndarray) -> Any:
    if not isinstance(tree, list):
        return tree
    kind, *about = tree
    if kind in _MAKE:
        return _MAKE[kind](_decoded(v, body) for v in about[0])
    if kind == "dict":
        return {_decoded(k, body): _decoded(v, body) for k, v in about[0]}
    if kind == "dataclass":
        return _made(about[0], {name: _decoded(value, body) for name, value in about[1].items()})
    offset, length = about.pop()
    part = body[offset : offset + length]
    if kind == "array":
        return part.view(about[0]).reshape(about[1])
    dtype, size, shape, stride, start = about
    if torch := sys.modules.get("torch"):
        storage = torch.from_numpy(part).untyped_storage()
        return torch.empty(0, dtype=getattr(torch, dtype)).set_(storage, start, shape, stride)
    has = dtype == "bool" or hasattr(np, dtype)
    steps = [step * size for step in stride]
    array = np.ndarray(shape, dtype if has else f"u{size}", part.data, start * size, steps)
    return array if has else Bits(dtype, array)


def _bytes_of(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _is_plain(tensor: Any) -> bool:
    strided = str(tensor.layout) == "torch.strided" and not tensor.is_conj() and not tensor.is_neg()
    return strided and tensor.device.type == "cpu" and not tensor.requires_grad


def _made(place: str, values: dict[str, Any]) -> Any:
    """A dataclass as it was, without its constructor."""
    try:
        made_of = _named(place)
    except ImportError:
        return SimpleNamespace(**values)
    made: Any = object.__new__(made_of)
    for field in fields(made_of):
        object.__setattr__(made, field.name, values[field.name] if field.name in values else _default(field))
    return made


@functools.cache
def _sent(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind) if field.metadata.get("sent", True))


@functools.cache
def _named(place: str) -> type:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _default(field: Field[Any]) -> Any:
    return field.default if field.default is not MISSING else field.default_factory()  # type: ignore[operator]
