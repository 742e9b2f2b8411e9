"""What answers and times depend on besides the implementation, as a record names it."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_ALLOCATOR_SETTINGS = ("THP_MEM_ALLOC_ENABLE", "MALLOC_CONF", "LD_PRELOAD", "PYTORCH_CUDA_ALLOC_CONF")


def environment() -> dict[str, Any]:
    """torch, python, cpu and its vector capability, gpu (None without one), threads, os, and the allocator's settings."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": _cpu_model(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "os": platform.platform(),
        "allocator": {name: os.environ[name] for name in _ALLOCATOR_SETTINGS if name in os.environ},
    }


def edition() -> str:
    """The installed version of the suite."""
    try:
        return metadata.version("xentcheck")
    except metadata.PackageNotFoundError:
        return "uninstalled"


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
        return next(line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
