"""Memory to work in."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Box:
    """Room for one block at a time, made when it is asked for."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.room = torch.empty(0, dtype=dtype)

    def shaped(self, *shape: int) -> Tensor:
        size = math.prod(shape)
        if size > len(self.room):
            self.room = torch.empty(size, dtype=self.dtype)
        return self.room[:size].view(shape)


def load(x: Tensor, at: slice | Tensor, box: Box) -> Tensor:
    """The logits of a block, contiguous and in the working dtype: where they are, or copied to the box."""
    if isinstance(at, Tensor) and x.dtype == box.dtype:
        return torch.index_select(x, 0, at, out=box.shaped(len(at), x.shape[1]))
    block = x[at] if isinstance(at, slice) else x.index_select(0, at)
    if block.dtype == box.dtype and block.is_contiguous():
        return block
    return box.shaped(*block.shape).copy_(block)
