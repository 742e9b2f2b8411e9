"""A ``Batch`` is a case as tensors: the arguments of one call, the same on every machine, torch version and device.

``draw`` makes the numbers, ``layout`` lays them out in memory; ``build`` joins both and checks that the parts fit together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from xentcheck.spec.case import Case, Question, ZeroDim
from xentcheck.spec.case_modes import MODES, micro_batches
from xentcheck.spec.draw import LinearLayer, Numbers, numbers
from xentcheck.spec.fields import Dtype, TargetDtype
from xentcheck.spec.layout import copied, float64, lay_out, rounded
from xentcheck.spec.mistakes import CaseFileError, Mistake, Unexpected, about

MAX_PADDED = 2**32  # logits, with those of the ignored samples
DTYPES = {name: getattr(torch, name) for name in get_args(Dtype)}
TARGET_DTYPES = {name: getattr(torch, name) for name in get_args(TargetDtype)}


@dataclass(frozen=True)
class Batch:
    """The arguments of one call.

    input: (C,), (N, C) or (N, C, d1, ...), in the case's dtype and layout. With a linear layer, hidden states (N, H), whose product with
        the option ``linear_weight`` (C, H), plus ``linear_bias`` (C,), are the logits.
    target: class indices (), (N,) or (N, d1, ...), or class probabilities in the shape and dtype of the input.
    options: the keyword arguments that the case sets. Class weights have the shape (C,).
    upstream: the gradient from above, of the loss's shape, exact in the case's dtype. None stands for a plain ``loss.backward()``.
    direction: float64, of the input's shape, in mode double_backward: the gradient is differentiated along it.
    padded_to: how many samples the call gets, the added ones ignored.
    """

    input: Tensor
    target: Tensor
    options: dict[str, Any]
    upstream: Tensor | None
    mode: str
    direction: np.ndarray | None = None
    padded_to: int | None = None

    @property
    def class_axis(self) -> int:
        return 0 if self.input.dim() == 1 else 1

    @property
    def is_linear(self) -> bool:
        return "linear_weight" in self.options

    @property
    def differentiated(self) -> dict[str, Tensor]:
        """The arguments that a gradient is asked of, by name; the input comes first."""
        if not MODES[self.mode].has_gradient:
            return {}
        others = ("linear_weight", "linear_bias")
        return {"input": self.input, **{name: self.options[name] for name in others if name in self.options}}

    @property
    def logits(self) -> np.ndarray:
        """The logits of all positions as float64, (positions, C)."""
        if self.is_linear:
            bias = self.options.get("linear_bias")
            with np.errstate(all="ignore"):
                product = float64(self.input) @ float64(self.options["linear_weight"]).T
                return product if bias is None else product + float64(bias)
        values = np.moveaxis(float64(self.input), 0 if self.input.dim() == 1 else 1, -1)
        return values.reshape(math.prod(values.shape[:-1]), values.shape[-1])

    @property
    def classes(self) -> int:
        if self.is_linear:
            return len(self.options["linear_weight"])
        return self.input.shape[0] if self.input.dim() == 1 else self.input.shape[1] if self.input.dim() > 1 else 0

    @property
    def reduction(self) -> str:
        return self.options.get("reduction", "mean")

    @property
    def ignore_values(self) -> tuple[int, ...]:
        value = self.options.get("ignore_index", -100)
        return (value,) if isinstance(value, int) else tuple(value)

    @property
    def padding(self) -> tuple[int, ...]:
        """The ignore values that the target's dtype can hold; others would wrap to a class."""
        limits = torch.iinfo(self.target.dtype)
        return tuple(value for value in self.ignore_values if limits.min <= value <= limits.max)

    @property
    def has_probabilities(self) -> bool:
        return self.target.is_floating_point() and self.target.shape == self.input.shape

    @property
    def positions(self) -> tuple[int, ...]:
        """The shape of the losses of all positions: the input's without its class axis."""
        shape = list(self.input.shape)
        del shape[self.class_axis : self.class_axis + 1]
        return tuple(shape)

    @property
    def valid(self) -> np.ndarray:
        """Which of the flattened positions count."""
        if self.has_probabilities:
            return np.ones(math.prod(self.positions), dtype=bool)
        return ~np.isin(self.target.cpu().numpy().reshape(-1), self.ignore_values)

    def fresh(self) -> Batch:
        """A copy that shares no memory with this one and has the same strides."""
        options = {
            k: list(v) if isinstance(v, list) else copied(v) if isinstance(v, Tensor) else v
            for k, v in self.options.items()
        }
        upstream = None if self.upstream is None else copied(self.upstream)
        return replace(self, input=copied(self.input), target=copied(self.target), options=options, upstream=upstream)


def build(case: Case) -> Batch:
    """The batch of a case. Raises CaseFileError where the case's parts do not fit together."""
    try:
        batch = _batch(case.question, numbers(case))
        _check_the_mode(batch)
        if not case.expects_error:
            _check_there_is_an_answer(batch)
        return batch
    except CaseFileError:
        raise
    except Unexpected as error:
        raise CaseFileError(Mistake(f"{error}", case.path, case.line, case.id, error.key)) from error
    except (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError, MemoryError) as error:
        text = f"no batch can be made of it: {error}"
        raise CaseFileError(Mistake(text, case.path, case.line, case.id)) from error


def _batch(question: Question, drawn: Numbers) -> Batch:
    dtype = DTYPES[question.dtype]
    options = _options(question, drawn, dtype)
    if drawn.linear is None:
        kind = torch.int64 if question.logits.dtype else dtype
        input_ = _tensor("logits.layout", drawn.logits, kind, question.logits.layout)
    else:
        input_, layer = _linear(question, drawn.linear, dtype)
        options |= layer
    above = drawn.upstream
    upstream = None if above is None else _tensor("upstream.layout", above, dtype, question.upstream.layout)
    direction = None if drawn.direction is None else rounded(drawn.direction, dtype).double().numpy()
    target = _target(question, drawn, dtype)
    return Batch(input_, target, options, upstream, question.mode, direction, question.padded_to)


def _tensor(key: str, values: np.ndarray, dtype: torch.dtype, layout: str, filler: float = math.nan) -> Tensor:
    with about(key):
        return lay_out(rounded(values, dtype), layout, filler)


def _target(question: Question, drawn: Numbers, dtype: torch.dtype) -> Tensor:
    spec = question.target
    if spec.probabilities is not None:
        return _tensor("target.layout", drawn.target, dtype, spec.layout)
    axis = 0 if drawn.logits.ndim == 1 else 1
    # The gaps of a strided target hold a class that does not exist: reading them cannot go unnoticed.
    beyond = drawn.logits.shape[axis] if drawn.logits.ndim else 0
    dtype = TARGET_DTYPES[spec.dtype]
    changed = drawn.target[drawn.target != rounded(drawn.target, dtype).numpy()]
    if len(changed):
        raise Unexpected(f"classes and ignore values that {spec.dtype} can hold", str(changed[0]), "target")
    return _tensor("target.layout", drawn.target, dtype, spec.layout, beyond)


def _options(question: Question, drawn: Numbers, dtype: torch.dtype) -> dict[str, Any]:
    """The keyword arguments that the case sets. What it leaves out is not passed."""
    weight, ignore, normalizer = drawn.weight, question.ignore_index, question.normalizer
    options = {
        "weight": None if weight is None else _tensor("weight_layout", weight, dtype, question.weight_layout),
        "ignore_index": list(ignore) if isinstance(ignore, tuple) else ignore,
        "reduction": question.reduction,
        "label_smoothing": question.label_smoothing,
        "normalizer": torch.tensor(normalizer.tensor) if isinstance(normalizer, ZeroDim) else normalizer,
    }
    return {name: value for name, value in options.items() if value is not None}


def _linear(question: Question, layer: LinearLayer, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """The hidden states, and the options that hold matrix and bias."""
    spec = question.linear
    assert spec is not None
    options = {"linear_weight": _tensor("linear.matrix_layout", layer.matrix, dtype, spec.matrix_layout)}
    if layer.bias is not None:
        options["linear_bias"] = rounded(layer.bias, dtype)
    return _tensor("linear.layout", layer.hidden, dtype, spec.layout), options


def _check_there_is_an_answer(batch: Batch) -> None:
    positions, weight = batch.positions, batch.options.get("weight")
    if weight is not None and weight.shape != (batch.classes,):
        raise Unexpected(f"{batch.classes} class weights, or expect.error", str(len(weight)), "weight")
    if batch.has_probabilities:
        return
    if tuple(batch.target.shape) != positions:
        raise Unexpected(f"the shape {positions}, or expect.error", f"{tuple(batch.target.shape)}", "target")
    if batch.target.is_floating_point():
        raise Unexpected("integers for classes, or expect.error", f"{batch.target.dtype}", "target")
    target = batch.target.numpy().reshape(-1)
    beyond = np.flatnonzero(batch.valid & ((target < 0) | (target >= batch.classes)))
    if len(beyond):
        classes = f"a class from 0 to {batch.classes - 1}, one of the ignore values {list(batch.ignore_values)}"
        found = f"{target[beyond[0]]} at position {beyond[0]}"
        raise Unexpected(f"{classes}, or expect.error", found, "target")


def _check_the_mode(batch: Batch) -> None:
    if batch.padded_to is not None:
        if batch.input.dim() < 2 or batch.padded_to < batch.input.shape[0] or batch.has_probabilities:
            wanted = "class indices, (N, C, ...) logits and at least N samples in all"
            found = f"{batch.padded_to} samples and logits of {tuple(batch.input.shape)}"
            raise Unexpected(wanted, found, "padded_to")
        if (size := batch.padded_to * math.prod(batch.input.shape[1:])) > MAX_PADDED:
            raise Unexpected(f"at most {MAX_PADDED:,} logits in all", f"{size:,}", "padded_to")
        if not batch.padding:
            wanted = f"an ignore value that targets of {batch.target.dtype} can hold"
            raise Unexpected(wanted, f"{list(batch.ignore_values)}", "padded_to")
    if batch.mode == "accumulated":
        if batch.input.dim() < 2 or batch.input.shape[0] < 3:
            found = f"logits of {tuple(batch.input.shape)}"
            raise Unexpected("at least three samples, since accumulated splits the batch", found, "mode")
        valid = batch.valid.reshape(batch.positions)
        is_counted = "normalizer" in batch.options or batch.reduction == "sum"
        if not is_counted and not all(valid[part].any() for part in micro_batches(len(batch.input))):
            wanted = "a position that counts in each micro-batch of accumulated with a mean"
            raise Unexpected(wanted, "one that is all ignored", "mode")
