"""What an implementation holds between calls: tensors, arrays and maps that its functions can reach. Memory taken at import is memory taken."""

from __future__ import annotations

import array
import gc
import mmap
import types
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xentcheck.implementation import Implementation

_MOST = 300_000  # objects that are looked at
_PLAIN = (str, int, float, complex, bool, type(None), torch.dtype, torch.device)


def held_by(implementation: Implementation, ours: Iterable[Tensor] = ()) -> int:
    """Bytes of storage that the implementation can reach before it is called.

    Args:
        ours: tensors that belong to whoever measures, and do not count.
    """
    functions = (
        implementation.cross_entropy,
        implementation.loss_and_gradient,
        implementation.linear_cross_entropy,
    )
    own = {_package(function) for function in functions if function is not None} - {"torch", "numpy", "builtins", ""}
    left: list[Any] = [function for function in functions if function is not None]
    seen: set[int] = set()
    storages: dict[int, int] = {}
    while left and len(seen) < _MOST:
        one = left.pop()
        if isinstance(one, _PLAIN) or id(one) in seen:
            continue
        seen.add(id(one))
        size = _storage(one)
        if size is not None:
            storages.update([size])
        elif isinstance(one, types.ModuleType):
            left += vars(one).values() if _top(one.__name__) in own else []
        elif isinstance(one, type):
            left += vars(one).values() if _top(one.__module__) in own else []
        elif isinstance(one, types.FunctionType) and _top(one.__module__) not in own:
            left += [one.__closure__, one.__defaults__, one.__kwdefaults__, vars(one)]
        else:
            left += gc.get_referents(one)
    for tensor in ours:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def _storage(one: Any) -> tuple[int, int] | None:
    """Where an object has its numbers, and how many bytes; None for an object of another kind."""
    if isinstance(one, Tensor):
        try:
            storage = one.untyped_storage()
            return storage.data_ptr(), storage.nbytes()
        except (RuntimeError, NotImplementedError):  # of a layout without one
            return id(one), one.numel() * one.element_size()
    if isinstance(one, np.ndarray):
        while isinstance(one.base, np.ndarray):
            one = one.base
        return one.ctypes.data, one.nbytes
    if isinstance(one, (bytes, bytearray, mmap.mmap)):
        return id(one), len(one)
    if isinstance(one, array.array):
        return one.buffer_info()[0], len(one) * one.itemsize
    return None


def _package(function: Any) -> str:
    return _top(getattr(function, "__module__", None) or type(function).__module__)


def _top(name: str | None) -> str:
    return (name or "").partition(".")[0]
