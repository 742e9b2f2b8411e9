"""What the losses take, and the messages for what they do not."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor


def ignore_values(ignore_index: int | Sequence[int]) -> tuple[int, ...]:
    if type(ignore_index) is int:
        return (ignore_index,)
    try:
        return tuple(map(operator.index, ignore_index if isinstance(ignore_index, Sequence) else (ignore_index,)))
    except TypeError:
        raise TypeError(_expected("ignore_index", "an int or a sequence of ints", repr(ignore_index))) from None


def is_ignored(target: Tensor, values: tuple[int, ...]) -> Tensor:
    if len(values) == 1:
        return target == values[0]
    return torch.isin(target, torch.tensor(values, dtype=torch.int64, device=target.device))


def _expected(what: str, expected: object, found: object) -> str:
    return f"{what}: expected {expected}, found {found}"


def check_options(reduction: str, smoothing: float) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(_expected("reduction", "'none', 'mean' or 'sum'", repr(reduction)))
    if not 0 <= smoothing <= 1:
        raise ValueError(_expected("label_smoothing", "a number from 0 to 1", repr(smoothing)))


def check_tensors(input: Tensor, target: Tensor, weight: Tensor | None) -> None:
    shape = input.shape
    if input.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise TypeError(_expected("dtype of input", "float64, float32, bfloat16 or float16", input.dtype))
    if target.dtype not in (torch.int64, torch.int32, torch.uint8):
        hint = " (class probabilities are not supported)" if target.is_floating_point() else ""
        raise TypeError(_expected("dtype of target", "class indices in int64, int32 or uint8", f"{target.dtype}{hint}"))
    if not shape or not shape[:2][-1]:
        raise ValueError(_expected("shape of input", "(C), (N, C) or (N, C, d1, ..., dk) with C > 0", tuple(shape)))
    if len(shape) == 1 or target.shape != shape[:1] + shape[2:]:
        positions, dimension = ((shape[0], *shape[2:]), 1) if len(shape) > 1 else ((), 0)
        wanted = f"{positions} for logits of shape {tuple(shape)} with the classes in dimension {dimension}"
        raise ValueError(_expected("shape of target", wanted, tuple(target.shape)))
    if target.device != input.device:
        raise ValueError(_expected("device of target", f"{input.device} as for the input", target.device))
    if weight is None:
        return
    if weight.shape != shape[1:2]:
        raise ValueError(_expected("shape of weight", f"({shape[1]},), one weight per class", tuple(weight.shape)))
    if not weight.is_floating_point():
        raise TypeError(_expected("dtype of weight", "floating point", weight.dtype))
    if weight.device != input.device:
        raise ValueError(_expected("device of weight", f"{input.device} as for the input", weight.device))
    if weight.requires_grad and torch.is_grad_enabled():
        raise ValueError(_expected("requires_grad of weight", "False, for it gets no gradient (detach it)", "True"))


def check_range(target: Tensor, classes: int, values: tuple[int, ...]) -> None:
    """target: with a class in place of what is ignored."""
    wrong = ((target < 0) | (target >= classes)).nonzero()
    if len(wrong):
        position = tuple(wrong[0].tolist())
        wanted = f"a class from 0 to {classes - 1}, or {' or '.join(map(str, values)) or 'nothing'} to be ignored"
        raise IndexError(_expected("target", wanted, f"{int(target[position])} at position {position}"))
