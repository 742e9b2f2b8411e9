"""What the losses take, and the messages for what they do not."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

_LARGEST = torch.finfo(torch.float64).max
_FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_INTEGER = (torch.int64, torch.int32, torch.uint8)


def ignore_values(ignore_index: int | Sequence[int] | None) -> tuple[int, ...]:
    if ignore_index is None:
        return (-100,)
    several = isinstance(ignore_index, Sequence) and not isinstance(ignore_index, (str, bytes))
    try:
        values = tuple(map(operator.index, ignore_index if several else (ignore_index,)))
    except TypeError:
        raise TypeError(expected("ignore_index", "an int or a sequence of ints", repr(ignore_index))) from None
    if not all(-(2**63) <= value < 2**63 for value in values):
        raise ValueError(expected("ignore_index", "values that fit into int64, as targets do", repr(ignore_index)))
    return values


def is_ignored(target: Tensor, values: tuple[int, ...]) -> Tensor:
    if len(values) == 1:
        return target == values[0]
    return torch.isin(target, torch.tensor(values, dtype=torch.int64, device=target.device))


def expected(what: str, expected: object, found: object) -> str:
    return f"{what}: expected {expected}, found {found}"


def as_torch_takes_it(number: Tensor | float | None) -> Tensor | float | None:
    """A number of another library as Python's own; a large int as a float, which is what it becomes anyway."""
    if number is None or isinstance(number, Tensor) or (isinstance(number, (int, float)) and number < 2**63):
        return number
    return float(number)


def check_options(reduction: str, smoothing: float, normalizer: Tensor | float | None = None) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(expected("reduction", "'none', 'mean' or 'sum'", repr(reduction)))
    try:
        is_share = 0 <= smoothing <= 1
    except TypeError:
        raise TypeError(expected("label_smoothing", "a number from 0 to 1", repr(smoothing))) from None
    if not is_share:
        raise ValueError(expected("label_smoothing", "a number from 0 to 1", repr(smoothing)))
    if normalizer is None:
        return
    if reduction != "mean":
        raise ValueError(
            expected("normalizer", "reduction='mean', which is what it replaces the divisor of", repr(reduction))
        )
    if isinstance(normalizer, Tensor):
        if normalizer.dim() or normalizer.is_complex() or normalizer.dtype == torch.bool:
            found = f"{normalizer.dtype} of shape {tuple(normalizer.shape)}"
            raise ValueError(expected("normalizer", "a number, or a real tensor of shape ()", found))
        if normalizer.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                expected("requires_grad of normalizer", "False, for it gets no gradient (detach it)", "True")
            )
    elif isinstance(normalizer, bool) or not isinstance(normalizer, Real):
        raise TypeError(expected("normalizer", "a number or a tensor of shape ()", repr(normalizer)))
    elif not 0 <= normalizer <= _LARGEST:
        raise ValueError(expected("normalizer", "a finite number that is not negative", repr(normalizer)))


def check_tensors(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: object = None, inplace: bool = False
) -> None:
    shape = input.shape
    if input.dtype not in _FLOATING:
        raise TypeError(expected("dtype of input", "float64, float32, bfloat16 or float16", input.dtype))
    if not shape or not shape[:2][-1]:
        raise ValueError(expected("shape of input", "(C), (N, C) or (N, C, d1, ..., dk) with C > 0", tuple(shape)))
    if len(shape) == 1:
        positions, dimension = (), 0
    else:
        positions, dimension = (shape[0], *shape[2:]), 1
    if target.is_floating_point() and target.shape == shape:
        if target.dtype not in _FLOATING:
            raise TypeError(
                expected("dtype of class probabilities", "float64, float32, bfloat16 or float16", target.dtype)
            )
        if ignore_index is not None:
            raise ValueError(
                expected("ignore_index", "none beside class probabilities, which it cannot mark", repr(ignore_index))
            )
    elif target.dtype not in _INTEGER:
        wanted = f"class indices in int64, int32 or uint8 of shape {tuple(positions)}, or class probabilities"
        raise TypeError(
            expected(
                "dtype of target", f"{wanted} of shape {tuple(shape)}", f"{target.dtype} of shape {tuple(target.shape)}"
            )
        )
    elif target.shape != torch.Size(positions):
        wanted = f"{tuple(positions)} for logits of shape {tuple(shape)} with the classes in dimension {dimension}"
        raise ValueError(expected("shape of target", wanted, tuple(target.shape)))
    if inplace and input.is_leaf and input.requires_grad and torch.is_grad_enabled():
        found = "a leaf that requires a gradient, whose values would be lost"
        raise ValueError(expected("inplace=True", "logits that something computed, for they are overwritten", found))
    if target.device != input.device:
        raise ValueError(expected("device of target", f"{input.device} as for the input", target.device))
    if weight is None:
        return
    if weight.shape != shape[dimension : dimension + 1]:
        raise ValueError(
            expected("shape of weight", f"({shape[dimension]},), one weight per class", tuple(weight.shape))
        )
    if not weight.is_floating_point():
        raise TypeError(expected("dtype of weight", "floating point", weight.dtype))
    if weight.device != input.device:
        raise ValueError(expected("device of weight", f"{input.device} as for the input", weight.device))
    if weight.requires_grad and torch.is_grad_enabled():
        raise ValueError(expected("requires_grad of weight", "False, for it gets no gradient (detach it)", "True"))


def check_range(target: Tensor, classes: int, values: tuple[int, ...]) -> None:
    """target: with a class in place of what is ignored."""
    if not target.numel():
        return
    least, largest = torch.aminmax(target)
    if least < 0 or largest >= classes:
        position = tuple(((target < 0) | (target >= classes)).nonzero()[0].tolist())
        wanted = f"a class from 0 to {classes - 1}, or {' or '.join(map(str, values)) or 'nothing'} to be ignored"
        raise IndexError(expected("target", wanted, f"{int(target[position])} at position {position}"))


def check_linear_tensors(
    hidden: Tensor, matrix: Tensor, target: Tensor, bias: Tensor | None, weight: Tensor | None
) -> None:
    if hidden.dtype not in _FLOATING:
        raise TypeError(expected("dtype of hidden", "float64, float32, bfloat16 or float16", hidden.dtype))
    if target.dtype not in _INTEGER:
        hint = " (class probabilities are not supported)" if target.is_floating_point() else ""
        raise TypeError(expected("dtype of target", "class indices in int64, int32 or uint8", f"{target.dtype}{hint}"))
    if not hidden.dim():
        raise ValueError(expected("shape of hidden", "(H) or (N, ..., H)", "()"))
    if matrix.dim() != 2 or not len(matrix) or matrix.shape[1] != hidden.shape[-1]:
        wanted = f"(C, {hidden.shape[-1]}) with C > 0 for hidden states of shape {tuple(hidden.shape)}"
        raise ValueError(expected("shape of linear_weight", wanted, tuple(matrix.shape)))
    if target.shape != hidden.shape[:-1]:
        wanted = f"{tuple(hidden.shape[:-1])} for hidden states of shape {tuple(hidden.shape)}"
        raise ValueError(expected("shape of target", wanted, tuple(target.shape)))
    for name, tensor in (("linear_bias", bias), ("weight", weight)):
        if tensor is not None and tensor.shape != matrix.shape[:1]:
            raise ValueError(
                expected(f"shape of {name}", f"({len(matrix)},), one number per class", tuple(tensor.shape))
            )
    for name, tensor in (("linear_weight", matrix), ("linear_bias", bias)):
        if tensor is not None and tensor.dtype != hidden.dtype:
            raise ValueError(expected(f"dtype of {name}", f"{hidden.dtype} as of hidden", tensor.dtype))
    named = (("linear_weight", matrix), ("target", target), ("linear_bias", bias), ("weight", weight))
    for name, tensor in named:
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(expected(f"device of {name}", f"{hidden.device} as of hidden", tensor.device))
    if weight is not None and not weight.is_floating_point():
        raise TypeError(expected("dtype of weight", "floating point", weight.dtype))
    if weight is not None and weight.requires_grad and torch.is_grad_enabled():
        raise ValueError(expected("requires_grad of weight", "False, for it gets no gradient (detach it)", "True"))
