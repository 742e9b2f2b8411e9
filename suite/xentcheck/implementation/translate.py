"""From a case's layout to a library's and back, for tensors of torch and arrays of NumPy alike. Imports neither torch nor what needs it."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

_ARRAYS = (np.ndarray, np.generic)  # what NumPy makes of an array without axes is a scalar of its own


class Translation:
    """The layout of one call: what goes to the library by ``logits`` and ``labels``, and back by ``loss`` and ``gradient``.

    Args:
        input: the case's logits, of shape (C,), (N, C) or (N, C, d1, ...).
        layout: one of ``adapter.LAYOUTS``.
        shifts: whether the library takes position i's label from position i + 1. It then gets one more row of logits, of zeros, at the end
            and one more label at the start.
    """

    def __init__(self, input: Any, layout: str, shifts: bool) -> None:
        self.layout, self.shifts = layout, shifts
        self.shape = tuple(input.shape)
        self.axis = 0 if len(self.shape) == 1 else 1
        self.positions = self.shape[: self.axis] + self.shape[self.axis + 1 :]
        self.count = math.prod(self.positions)

    @property
    def losses_shape(self) -> tuple[int, ...]:
        """The shape of the losses of all positions in the library's layout."""
        if self.layout == "sequence":
            return (1, self.count + self.shifts)
        return (self.count,) if self.layout == "flat" else self.positions

    def logits(self, values: Any) -> Any:
        """Also class probabilities, which have the same shape. The very same object where its layout is the library's already."""
        if self.layout == "channels":
            return values
        rows = values if self.axis == len(self.shape) - 1 else _moved(values, self.axis, -1)
        if self.layout == "classes-last":
            return rows
        if self.layout == "flat":
            return _shaped(rows, (self.count, self.shape[self.axis]))
        rows = _shaped(rows, (1, self.count, self.shape[self.axis]))
        return _joined([rows, _zeros(rows, (1, 1, self.shape[self.axis]))]) if self.shifts else rows

    def labels(self, target: Any) -> Any:
        """Labels that do not fit the logits are handed on as they are, for the library to refuse. Raises ValueError where it would take
        them for others, which fit."""
        if tuple(target.shape) == self.shape and len(self.shape) > 1 and _is_floating(target):
            return self.logits(target)
        if self.layout not in ("flat", "sequence"):
            return target
        if tuple(target.shape) != self.positions:
            would_fit = tuple(target.shape) in ((self.count,), (1, self.count), self.losses_shape)
            if would_fit or (self.shifts and math.prod(target.shape) == self.count + 1):
                raise ValueError(f"expected labels of shape {self.positions}; found {tuple(target.shape)}")
            return target
        if self.layout == "flat":
            return _shaped(target, (self.count,))
        row = _shaped(target, (1, self.count))
        return _joined([_zeros(row, (1, 1)), row]) if self.shifts else row

    def upstream(self, values: Any) -> Any:
        """The gradient from above, of a loss of positions or of one number."""
        if tuple(values.shape) != self.positions or not self.positions:
            return values
        values = _shaped(values, self.losses_shape if not self.shifts else (1, self.count))
        return _joined([values, _zeros(values, (1, 1))]) if self.shifts else values

    def loss(self, value: Any) -> Any:
        """Losses of positions in the case's layout. What has another shape than the layout's stays as it is: that is the library's doing."""
        if self.layout not in ("flat", "sequence") or not hasattr(value, "shape"):
            return value
        lengths = {self.count, self.count + self.shifts}  # one that shifts gives a loss of 0 for the last row, or none
        if tuple(value.shape) not in {
            shape for n in lengths for shape in ((n,), (1, n))[: 1 + (self.layout == "sequence")]
        }:
            return value
        return _shaped(_shaped(value, (-1,))[: self.count], self.positions)

    def gradient(self, value: Any) -> Any:
        """A gradient of the library's logits as one of the case's. What has another shape than they have stays as it is."""
        if self.layout == "channels" or not hasattr(value, "shape"):
            return value
        classes = self.shape[self.axis]
        if self.layout == "sequence" and tuple(value.shape) == (*self.losses_shape, classes):
            value = value[:, : self.count]
        if math.prod(value.shape) != math.prod(self.shape) or value.shape[-1] != classes:
            return value
        rows = _shaped(value, (*self.positions, classes))
        return rows if self.axis == len(self.shape) - 1 else _moved(rows, -1, self.axis)


def _moved(values: Any, source: int, destination: int) -> Any:
    return (
        np.moveaxis(values, source, destination)
        if isinstance(values, np.ndarray)
        else values.movedim(source, destination)
    )


def _shaped(values: Any, shape: tuple[int, ...]) -> Any:
    return values if tuple(values.shape) == shape else values.reshape(shape)


def _joined(parts: list[Any]) -> Any:
    return np.concatenate(parts, 1) if isinstance(parts[0], np.ndarray) else sys.modules["torch"].cat(parts, 1)


def _zeros(like: Any, shape: tuple[int, ...]) -> Any:
    return np.zeros(shape, like.dtype) if isinstance(like, np.ndarray) else like.new_zeros(shape)


def _is_floating(values: Any) -> bool:
    return values.dtype.kind not in "iub" if isinstance(values, np.ndarray) else values.is_floating_point()


def where(condition: Any, one: Any, other: Any) -> Any:
    if isinstance(condition, _ARRAYS):
        first, second = (value if isinstance(value, _ARRAYS) else None for value in (one, other))
        dtype = (second if first is None else first).dtype  # type: ignore[union-attr]
        return np.where(
            condition,
            *(
                np.zeros((), dtype) if not isinstance(v, _ARRAYS) and v == 0 else np.asarray(v, dtype)
                for v in (one, other)
            ),
        )
    return sys.modules["torch"].where(condition, one, other)


def one_like(values: Any) -> Any:
    """The number 1, in the dtype of the values."""
    return as_dtype_of(np.ones(()), values) if isinstance(values, np.ndarray) else values.new_ones(())


def wide(values: Any) -> Any:
    """As float64."""
    if not isinstance(values, _ARRAYS):
        return values.double()
    return (widened(values) if values.dtype.names else values).astype(np.float64)


def as_dtype_of(values: Any, like: Any) -> Any:
    if not isinstance(like, np.ndarray):
        return values.to(like.dtype)
    return rounded(values, like.dtype) if like.dtype.names else np.asarray(values).astype(like.dtype)


def widened(values: Any) -> Any:
    """The bits of bfloat16 numbers, an array with the field ``bfloat16``, as float32."""
    return np.asarray(np.asarray(values["bfloat16"]).astype(np.uint32) << 16).view(np.float32)


def rounded(values: Any, dtype: Any) -> Any:
    """The inverse, to the nearest number and of two to the even one."""
    wide = np.array(values, np.float32, ndmin=1)
    bits = wide.view(np.uint32).astype(np.uint64)
    upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    upper = np.where(np.isnan(wide), 0x7FC0, upper).astype(np.uint16)
    return upper.view(dtype).reshape(np.shape(values))


def shares_memory(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return bool(np.may_share_memory(one, other))
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def bits_of(values: Any) -> bytes:
    """The values as bytes, whatever the strides."""
    if isinstance(values, np.ndarray):
        return np.ascontiguousarray(values).tobytes()
    torch = sys.modules["torch"]
    whole = values.detach().cpu().clone(memory_format=torch.contiguous_format)
    return whole.view(-1).view(torch.uint8).numpy().tobytes() if values.numel() else b""
