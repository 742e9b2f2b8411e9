"""Three matrix products for one chunk of positions: its logits, and what their gradient d gives for hidden states and matrix.

Each class here has the same methods: fill and logits; place, where d goes; times_matrix, d V; add_outer and outer, d^T h of
all chunks.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from . import buffers, thresholds
from .formula import working_dtype

_CPU = Path("/proc/cpuinfo")


def product_for(matrix: Tensor, chunk: int, chunks: int) -> Plain | Split | Widened:
    has_faster = matrix.is_cpu and chunk * matrix.numel() >= thresholds.ONEDNN_MULTIPLICATIONS and onednn_is_faster()
    if has_faster and matrix.dtype == torch.float32 and (matrix.is_contiguous() or matrix.T.is_contiguous()):
        return InBlocks(matrix, chunk)
    if matrix.dtype == working_dtype(matrix):
        return Plain(matrix, chunk)
    if matrix.dtype == torch.bfloat16 and matrix.is_cpu and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return Split(matrix, chunk, chunks)
    return Widened(matrix, chunk, OneDNN if has_faster else MM)


def rounded(count: int) -> int:
    """As many positions, or up to a sixteenth more: one of sixteen sizes for each power of two.

    oneDNN keeps the code that it makes for each shape, some 0.6 MiB, and how many positions are valid differs from step to step.
    """
    step = 1 << max(0, count.bit_length() - 5)
    return -(-count // step) * step


class Plain:
    """In the dtype of the matrix."""

    def __init__(self, matrix: Tensor, chunk: int) -> None:
        self.matrix = matrix
        self.sum: Tensor | None = None
        shape = (chunk, matrix.shape[0])  # rows stand far apart, and a product fills a few at a time: a huge page each
        self.room = buffers.empty(shape, matrix.dtype) if matrix.is_cpu else matrix.new_empty(shape)

    def fill(self, hidden: Tensor) -> None:
        torch.mm(hidden, self.matrix.T, out=self.room[: len(hidden)])

    def logits(self, few: slice) -> Tensor:
        return self.room[few]

    def place(self, few: slice) -> Tensor:
        return self.room[few]

    def times_matrix(self, count: int) -> Tensor:
        return torch.mm(self.room[:count], self.matrix)

    def add_outer(self, hidden: Tensor) -> None:
        d = self.room[: len(hidden)]
        self.sum = torch.mm(d.T, hidden) if self.sum is None else self.sum.addmm_(d.T, hidden)

    def outer(self) -> Tensor:
        return _zeros(self.matrix) if self.sum is None else self.sum


class InBlocks(Plain):
    """float32 by oneDNN, which makes a tensor for each product: some classes at a time, so that these stay in the cache."""

    def fill(self, hidden: Tensor) -> None:
        for some in _blocks_of_classes(self.matrix, thresholds.ONEDNN_BLOCK, len(hidden)):
            self.room[: len(hidden), some] = OneDNN.product(hidden, self.matrix[some])

    def times_matrix(self, count: int) -> Tensor:
        return OneDNN.product(self.room[:count], self.matrix.T)

    def add_outer(self, hidden: Tensor) -> None:
        is_first, d = self.sum is None, self.room[: len(hidden)]
        self.sum = self.matrix.new_empty(self.matrix.shape) if self.sum is None else self.sum
        for some in _blocks_of_classes(self.matrix, thresholds.OUTER_BLOCK, len(hidden)):
            if is_first:
                self.sum[some] = OneDNN.product(d[:, some].T, hidden.T)
            else:
                OneDNN.add(self.sum[some], d[:, some].T, hidden.T)


class Split:
    """bfloat16 on a CPU, whose products sum in float32 but are rounded: the rounded product and what that leaves.

    The rest comes from the same product with the rounded one taken off before the second rounding; both together have 16 bits.
    So do the logits have them, and what each chunk adds to d^T h.
    """

    def __init__(self, matrix: Tensor, chunk: int, chunks: int) -> None:
        self.matrix, self.chunks = matrix, chunks
        self.rounded, self.rest = matrix.new_empty(2, chunk, matrix.shape[0])
        self.few: Tensor | None = None
        self.sum: Tensor | None = None

    def fill(self, hidden: Tensor) -> None:
        rounded, rest = self.rounded[: len(hidden)], self.rest[: len(hidden)]
        torch.mm(hidden, self.matrix.T, out=rounded)
        torch.addmm(rounded, hidden, self.matrix.T, beta=-1, out=rest)
        if not rounded.amin() > -torch.inf:
            rest.masked_fill_(rounded.isneginf(), 0)  # -inf + inf would be NaN

    def logits(self, few: slice) -> Tensor:
        if self.few is None:
            self.few = torch.empty_like(self.rounded[few], dtype=torch.float32)
        return self.few[: few.stop - few.start].copy_(self.rounded[few]).add_(self.rest[few])

    def place(self, few: slice) -> Tensor:
        return self.rounded[few]

    def times_matrix(self, count: int) -> Tensor:
        return torch.mm(self.rounded[:count], self.matrix)

    def add_outer(self, hidden: Tensor) -> None:
        d = self.rounded[: len(hidden)]
        if self.chunks == 1:
            self.sum = torch.mm(d.T, hidden)
            return
        self.sum = _zeros(self.matrix, torch.float32) if self.sum is None else self.sum
        for some in _blocks_of_classes(self.matrix, thresholds.OUTER_BLOCK, len(hidden)):
            rounded = torch.mm(d[:, some].T, hidden)
            rest = torch.addmm(rounded, d[:, some].T, hidden, beta=-1)
            self.sum[some].add_(rounded).add_(rest)

    def outer(self) -> Tensor:
        return _zeros(self.matrix) if self.sum is None else self.sum.to(self.matrix.dtype)


class Widened:
    """Half types elsewhere: in float32, into which the matrix is brought some classes at a time."""

    def __init__(self, matrix: Tensor, chunk: int, library: type[Library]) -> None:
        self.matrix, self.library = matrix, library
        self.room = matrix.new_empty(chunk, matrix.shape[0], dtype=torch.float32)
        self.sum: Tensor | None = None

    def fill(self, hidden: Tensor) -> None:
        wide = hidden.float()
        for some in self._blocks(len(hidden)):
            self.room[: len(hidden), some] = self.library.product(wide, self.matrix[some].float())

    def logits(self, few: slice) -> Tensor:
        return self.room[few]

    def place(self, few: slice) -> Tensor:
        return self.room[few]

    def times_matrix(self, count: int) -> Tensor:
        product = self.room.new_zeros(count, self.matrix.shape[1])
        for some in self._blocks(count):
            self.library.add(product, self.room[:count, some], self.matrix[some].float().T)
        return product.to(self.matrix.dtype)

    def add_outer(self, hidden: Tensor) -> None:
        d, wide = self.room[: len(hidden)], hidden.float()
        self.sum = _zeros(self.matrix, torch.float32) if self.sum is None else self.sum
        for some in self._blocks(len(hidden)):
            self.library.add(self.sum[some], d[:, some].T, wide.T)

    def outer(self) -> Tensor:
        return _zeros(self.matrix) if self.sum is None else self.sum.to(self.matrix.dtype)

    def _blocks(self, count: int) -> list[slice]:
        return _blocks_of_classes(self.matrix, thresholds.WIDENED_BLOCK, count)


class Library(Protocol):
    """product: a b^T. add: the same added to a tensor in its place."""

    @staticmethod
    def product(a: Tensor, b: Tensor) -> Tensor: ...

    @staticmethod
    def add(to: Tensor, a: Tensor, b: Tensor) -> None: ...


class MM:
    """Whatever torch.mm takes."""

    @staticmethod
    def product(a: Tensor, b: Tensor) -> Tensor:
        return a @ b.T

    @staticmethod
    def add(to: Tensor, a: Tensor, b: Tensor) -> None:
        to.addmm_(a, b.T)


class OneDNN:
    """By operators that torch keeps for what torch.compile makes. They are not documented, so they are tried before they are used."""

    @staticmethod
    def product(a: Tensor, b: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")

    @staticmethod
    def add(to: Tensor, a: Tensor, b: Tensor) -> None:
        to.copy_(torch.ops.mkldnn._linear_pointwise.binary(a, to, b, None, "add"))


def onednn_is_faster() -> bool:
    """Whether torch.mm is MKL's, which takes AVX-512 on Intel's CPUs only: oneDNN has float32 products of twice its speed elsewhere."""
    return _mkl_is_slow() and torch.backends.mkldnn.enabled


@functools.cache
def _mkl_is_slow() -> bool:
    if not (torch.backends.mkl.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"):
        return False
    try:
        is_known = "AuthenticAMD" in _CPU.read_text()
    except OSError:
        return False
    return is_known and torch.backends.mkldnn.is_available() and _onednn_works()


def _onednn_works() -> bool:
    a, b = (torch.full((1, 1), value, dtype=torch.float32, device="cpu") for value in (2, 3))
    try:
        product = OneDNN.product(a, b)
        OneDNN.add(product, a, b)
    except (AttributeError, RuntimeError, TypeError):  # as another version of torch may have it
        return False
    return float(product) == 12


def _zeros(matrix: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Contiguous, as every gradient that is a product is, whatever the strides of the matrix."""
    return torch.zeros_like(matrix, dtype=dtype, memory_format=torch.contiguous_format)


def _blocks_of_classes(matrix: Tensor, size: int, positions: int) -> list[slice]:
    """So many classes together that neither their part of the matrix nor that of the logits has more elements than ``size``."""
    step = max(1, size // max(1, matrix.shape[1], positions))
    return [slice(c, c + step) for c in range(0, len(matrix), step)]
