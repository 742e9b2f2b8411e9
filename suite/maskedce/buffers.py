"""Memory to work in."""

from __future__ import annotations

import contextlib
import math
import mmap

import torch
from torch import Tensor

from . import thresholds

_CAN = all(hasattr(mmap, name) for name in ("MAP_PRIVATE", "MAP_ANONYMOUS", "MADV_HUGEPAGE"))  # on Linux


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """As ``torch.empty``, on the CPU.

    Most of what a large result costs is its first touch, a page of 4 KiB at a time. So what is large is asked for in
    huge pages, which the system gives where it can; it is an anonymous mapping, returned when the tensor is no longer
    used. Tools that watch torch's own allocator do not see it; what the process holds (its resident set) shows it.
    """
    return _mapped(shape, dtype) if is_large(shape, dtype) else torch.empty(shape, dtype=dtype, device="cpu")


def zeros(shape: tuple[int, ...], dtype: torch.dtype, *, sparse: bool = False) -> Tensor:
    """As ``torch.zeros``, on the CPU. Where it is large, pages that are never written cost nothing.

    sparse: whether what will be written is less than a tenth, in pieces below half a huge page; those would be mostly in vain.
    """
    return (
        _mapped(shape, dtype, not sparse) if is_large(shape, dtype) else torch.zeros(shape, dtype=dtype, device="cpu")
    )


def is_large(shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    return _CAN and math.prod(shape) * dtype.itemsize >= thresholds.MAPPED_BYTES


def _mapped(shape: tuple[int, ...], dtype: torch.dtype, in_huge_pages: bool = True) -> Tensor:
    count = math.prod(shape)
    try:
        room = mmap.mmap(-1, count * dtype.itemsize + thresholds.HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:
        return torch.zeros(shape, dtype=dtype, device="cpu")  # or torch's own message about too little memory
    with contextlib.suppress(OSError):  # a kernel without huge pages
        room.madvise(mmap.MADV_HUGEPAGE if in_huge_pages else mmap.MADV_NOHUGEPAGE)
    offset = -torch.frombuffer(room, dtype=torch.uint8, count=1).data_ptr() % thresholds.HUGE_PAGE
    return torch.frombuffer(room, dtype=dtype, count=count, offset=offset).view(shape)


class Scratch:
    """Room for one block at a time, made when it is asked for."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.room = torch.empty(0, dtype=dtype, device="cpu")

    def shaped(self, shape: torch.Size) -> Tensor:
        size = math.prod(shape)
        if size > len(self.room):
            self.room = empty((size,), self.dtype)
        return self.room[:size].view(shape)
