"""The state of the process that a loss must leave as it found it: what it was, what changed, and how to put it back."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


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
    "float32 matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "random state of torch": (
        lambda: torch.get_rng_state().numpy().tobytes(),
        lambda v: torch.set_rng_state(torch.frombuffer(bytearray(v), dtype=torch.uint8)),
    ),
    "random state of NumPy": (
        lambda: _hashable(np.random.get_state()),
        lambda v: np.random.set_state((v[0], np.frombuffer(v[1], dtype=np.uint32), *v[2:])),
    ),
    "random state of Python": (random.getstate, random.setstate),
}
_TORCH = Path(torch.__file__).parent
# Namespaces whose existing functions nobody may replace.
_PATCHABLE = (torch, torch.nn.functional, torch.Tensor, torch._C._nn, torch.autograd, time)


class GlobalState:
    """A snapshot of the settings and, unless ``functions`` is False, of the functions of torch."""

    def __init__(self, functions: bool = True) -> None:
        self._settings = {name: read() for name, (read, _) in _SETTINGS.items()}
        self._functions = [(n, dict(vars(n))) for n in _PATCHABLE] if functions else []

    def changed(self) -> tuple[str, ...]:
        """The names of the functions that have been replaced since; nothing is put back."""
        return tuple(
            f"{namespace.__name__}.{name}"
            for namespace, functions in self._functions
            for name, function in functions.items()
            if callable(function) and not _is_torchs_own(now := vars(namespace).get(name)) and now is not function
        )

    def restore(self) -> tuple[str, ...]:
        """Puts everything back; returns the names of what had changed."""
        changed = []
        for name, (read, write) in _SETTINGS.items():
            if read() != self._settings[name]:
                changed.append(name)
                write(self._settings[name])
        for namespace, functions in self._functions:
            if vars(namespace) == functions:
                continue
            now = dict(vars(namespace))
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


def _is_torchs_own(function: Any) -> bool:
    """torch wraps a few of its functions itself when it first imports its compiler."""
    code = getattr(function, "__code__", None)
    return code is not None and Path(code.co_filename).is_relative_to(_TORCH)


def _hashable(state: Any) -> tuple[Any, ...]:
    return (state[0], state[1].tobytes(), *state[2:])
