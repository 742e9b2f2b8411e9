"""The state of the process that a loss must leave as it found it: what it was, what changed, and how to put it back."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import random
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

_LEAST_NORMAL = sys.float_info.min


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _flushes_denormals() -> bool:
    """torch has no way to read it."""
    return _LEAST_NORMAL * 0.5 == 0.0


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set by the newer names, fp32_precision, to what the older ones cannot say
        return ""


def _set_matmul_precision(precision: str) -> None:
    if precision:
        torch.set_float32_matmul_precision(precision)


def _tf32_of_cudnn() -> bool | None:
    try:
        return torch._C._get_cudnn_allow_tf32()
    except RuntimeError:
        return None


# torch's compiler sets variables of its own.
_TORCHS = tuple(os.environ.encodekey(prefix) for prefix in ("TORCH", "PYTORCH", "TRITON"))


_last_environment: tuple[dict[Any, Any], dict[Any, Any]] = {}, {}  # all of it, and what is not torch's


def _environment() -> dict[Any, Any]:
    """As os.environ keeps it: decoding all of it takes as long as everything else together."""
    global _last_environment
    raw = os.environ._data  # type: ignore[attr-defined]
    if raw != _last_environment[0]:
        _last_environment = raw.copy(), {k: v for k, v in raw.items() if not k.startswith(_TORCHS)}
    return _last_environment[1]


def _set_environment(values: dict[Any, Any]) -> None:
    decoded = {os.environ.decodekey(k): os.environ.decodevalue(v) for k, v in values.items()}
    for added in _environment().keys() - values.keys():
        del os.environ[os.environ.decodekey(added)]
    os.environ.update(decoded)


def _directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return ""


def _set_directory(path: str) -> None:
    if path:
        os.chdir(path)


def _umask() -> int:
    """It can only be read by setting it; what another thread creates meanwhile is for its owner alone."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _set_filters(filters: tuple[Any, ...]) -> None:
    warnings.filters[:] = filters  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _collector() -> tuple[bool, tuple[int, int, int]]:
    return gc.isenabled(), gc.get_threshold()


def _set_collector(state: tuple[bool, tuple[int, int, int]]) -> None:
    (gc.enable if state[0] else gc.disable)()
    gc.set_threshold(*state[1])


def _numpy_state() -> Any:
    """The bytes of NumPy's generator: reading them as numbers takes a hundred times as long."""
    generator = np.random.mtrand._rand._bit_generator
    if type(generator).__name__ != "MT19937":  # by np.random.set_bit_generator
        return _hashable(np.random.get_state())
    return ctypes.string_at(generator.ctypes.state_address, 4 * 624 + 4)


def _set_numpy_state(state: Any) -> None:
    if isinstance(state, bytes):  # 624 words and a position; nothing is left of a pair of normal numbers
        numbers = np.frombuffer(state, dtype=np.uint32)
        state = ("MT19937", numbers[:624].tobytes(), int(numbers[624]), 0, 0.0)
    np.random.set_state((state[0], np.frombuffer(state[1], dtype=np.uint32), *state[2:]))


# name: how to read it, how to write it
_SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "default device": (torch.get_default_device, lambda v: torch.set_default_device(None if v.type == "cpu" else v)),
    "error handling of NumPy": (np.geterr, lambda v: np.seterr(**v)),
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "number of threads": (torch.get_num_threads, torch.set_num_threads),
    "deterministic algorithms": (_deterministic, lambda v: torch.use_deterministic_algorithms(v[0], warn_only=v[1])),
    "anomaly detection": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "autocast": (lambda: torch.is_autocast_enabled("cpu"), lambda v: torch.set_autocast_enabled("cpu", v)),
    "autocast dtype": (lambda: torch.get_autocast_dtype("cpu"), lambda v: torch.set_autocast_dtype("cpu", v)),
    "float32 matmul precision": (_matmul_precision, _set_matmul_precision),
    "random state of torch": (
        lambda: torch.get_rng_state().numpy().tobytes(),
        lambda v: torch.set_rng_state(torch.frombuffer(bytearray(v), dtype=torch.uint8)),
    ),
    "random state of NumPy": (_numpy_state, _set_numpy_state),
    "random state of Python": (random.getstate, random.setstate),
    "flushing of denormal numbers": (_flushes_denormals, torch.set_flush_denormal),
    "TF32 in cuDNN": (_tf32_of_cudnn, lambda v: None if v is None else torch._C._set_cudnn_allow_tf32(v)),
    "oneDNN": (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
    "working directory": (_directory, _set_directory),
    "umask": (_umask, os.umask),
    "trace function": (sys.gettrace, sys.settrace),
    "profile function": (sys.getprofile, sys.setprofile),
    "sys.stdout": (lambda: sys.stdout, lambda v: setattr(sys, "stdout", v)),
    "sys.stderr": (lambda: sys.stderr, lambda v: setattr(sys, "stderr", v)),
    "garbage collection": (_collector, _set_collector),
    "recursion limit": (sys.getrecursionlimit, sys.setrecursionlimit),
    "environment variables": (_environment, _set_environment),
    "filters of warnings": (lambda: tuple(warnings.filters), _set_filters),
}
try:
    _C = ctypes.CDLL(None)
    _SETTINGS["rounding mode"] = (_C.fegetround, _C.fesetround)
except (AttributeError, OSError, TypeError):  # not on Windows
    pass
# What a library may set when it is first imported, which can be in the first call.
_BY_IMPORTS = {"recursion limit", "environment variables", "filters of warnings"}
_TORCH = Path(torch.__file__).parent
# Namespaces whose existing functions nobody may replace.
_PATCHABLE: tuple[Any, ...] = (
    torch,
    torch.nn.functional,
    torch.Tensor,
    torch._C._nn,
    torch.autograd,
    np,
    np.random,
    np.linalg,
    math,
    random,
    time,
)


class GlobalState:
    """A snapshot of the settings and, unless ``functions`` is False, of the functions of torch, NumPy, ``math``, ``random`` and ``time``.

    It is made and compared around every call, so each takes some tens of microseconds (``python tests/studies/overhead.py``).
    """

    def __init__(self, functions: bool = True) -> None:
        self._settings = {name: read() for name, (read, _) in _SETTINGS.items()}
        copies = [vars(namespace).copy() for namespace in _PATCHABLE] if functions else []
        # Thousands of entries are compared in microseconds as a list, not as a dictionary.
        self._functions = [(n, copy, list(copy.values())) for n, copy in zip(_PATCHABLE, copies, strict=False)]
        self._modules = len(sys.modules)

    def changed(self) -> tuple[str, ...]:
        """The names of the functions that have been replaced since; nothing is put back."""
        return tuple(
            f"{namespace.__name__}.{name}"
            for namespace, functions, _ in self._functions
            for name, function in functions.items()
            if callable(function) and not _is_torchs_own(now := vars(namespace).get(name)) and now is not function
        )

    def restore(self) -> tuple[str, ...]:
        """Puts everything back; returns the names of what had changed. What a library sets when it is imported stays and is not named."""
        changed = []
        imported, self._modules = len(sys.modules) != self._modules, len(sys.modules)
        for name, (read, write) in _SETTINGS.items():
            if (value := read()) == self._settings[name]:
                continue
            if imported and name in _BY_IMPORTS:
                self._settings[name] = value
                continue
            changed.append(name)
            write(self._settings[name])
        for namespace, functions, values in self._functions:
            if _are_same(list(vars(namespace).values()), values):
                continue
            now = vars(namespace).copy()
            for name, function in functions.items():
                if callable(function) and now.get(name) is not function and not _is_torchs_own(now.get(name)):
                    changed.append(f"{namespace.__name__}.{name}")
                    setattr(namespace, name, function)
            # A new name on Tensor may hide a method of the class that it inherits from.
            for name in now.keys() - functions.keys() if namespace is torch.Tensor else ():
                if hasattr(torch._C.TensorBase, name):
                    changed.append(f"{namespace.__name__}.{name}")
                    delattr(namespace, name)
        return tuple(changed)


def _are_same(now: list[Any], then: list[Any]) -> bool:
    try:
        return now == then
    except Exception:  # what stands there now cannot be compared, such as an array
        return False


def _is_torchs_own(function: Any) -> bool:
    """torch wraps a few of its functions itself when it first imports its compiler."""
    code = getattr(function, "__code__", None)
    return code is not None and Path(code.co_filename).is_relative_to(_TORCH)


def _hashable(state: Any) -> tuple[Any, ...]:
    return (state[0], state[1].tobytes(), *state[2:])
