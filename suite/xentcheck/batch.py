"""Turns a ``Case`` into tensors, the same ones on every machine, torch version and device.

Random numbers come from PCG64's raw 64-bit stream, seeded from the case's id. NumPy promises that stream; it does not promise
``Generator.normal`` and its like, which may change between releases, so the few distributions needed are built here from sums
of uniform numbers, in exact arithmetic.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from xentcheck.case import WITHOUT_GRADIENT, Case, Ignore, Linear, Pattern, Question, Upstream, ZeroDim
from xentcheck.loader import CaseFileError

DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16")}
TARGET_DTYPES = {
    name: getattr(torch, name) for name in ("int64", "uint8", "int32", "int16", "int8", "bool", "float32", "float64")
}

TILE = 65_537  # a prime, so that no two rows of a usual number of classes are equal


@dataclass(frozen=True)
class Batch:
    """What an implementation is called with.

    With a matrix among the options (``linear_weight`` of shape (C, H), perhaps with ``linear_bias`` of shape (C,)) the input is hidden
    states (N, H), whose product with the matrix are the logits. Otherwise
    input: (C,), (N, C) or (N, C, d1, ...), in the case's dtype and layout. target: class indices (), (N,) or (N, d1, ...), or
    class probabilities in the shape and dtype of the input. options: the keyword arguments that the case sets (weight as a tensor of
    shape (C,)). upstream: the gradient from above, of the loss's shape, its values exact in the case's dtype; None stands for a plain
    ``loss.backward()``. direction: float64, of the input's shape, where the gradient is to be differentiated as well (mode
    double_backward): along which direction. padded_to: among how many samples, all others ignored, the batch is to stand.
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
        if self.mode in WITHOUT_GRADIENT:
            return {}
        others = ("linear_weight", "linear_bias")
        return {"input": self.input, **{name: self.options[name] for name in others if name in self.options}}

    @property
    def logits(self) -> np.ndarray:
        """The logits of all positions as float64, (positions, C)."""
        if self.is_linear:
            bias = self.options.get("linear_bias")
            with np.errstate(all="ignore"):
                product = _float64(self.input) @ _float64(self.options["linear_weight"]).T
                return product if bias is None else product + _float64(bias)
        values = np.moveaxis(_float64(self.input), 0 if self.input.dim() == 1 else 1, -1)
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
            k: list(v) if isinstance(v, list) else _like(v) if isinstance(v, Tensor) else v
            for k, v in self.options.items()
        }
        upstream = None if self.upstream is None else _like(self.upstream)
        return replace(self, input=_like(self.input), target=_like(self.target), options=options, upstream=upstream)


def build(case: Case) -> Batch:
    """The batch of a case. Raises CaseFileError where the case's parts do not fit together."""
    try:
        return _build(case)
    except (
        IndexError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        OSError,
        OverflowError,
        SafetensorError,
    ) as error:
        if isinstance(error, CaseFileError):
            raise
        raise CaseFileError(f"{case.path}:{case.line}: case {case.id}: no batch can be made of it: {error}") from error


def capabilities_needed(case: Case, batch: Batch) -> frozenset[str]:
    """What an implementation must offer to be asked this case."""
    question, needed = case.question, set(case.question.needs)
    needed.add(question.dtype)
    if question.ignore_index is not None:
        needed.add("ignore_index_list" if not isinstance(question.ignore_index, int) else "ignore_index")
        if any(0 <= value < batch.classes for value in batch.ignore_values):
            needed.add("ignore_index_in_range")
    elif not batch.target.is_floating_point() and (batch.target.long() == -100).any():  # ignored by default
        needed.add("ignore_index")
    if case.expects_error:
        # What cannot be right must be refused by everybody, whether or not the rest of the call is on offer.
        return frozenset(needed - {"ignore_index_in_range"})
    needed |= {name for name in ("weight", "label_smoothing", "normalizer") if name in batch.options}
    if batch.has_probabilities:
        needed.add("class_probabilities")
    needed.add(f"reduction_{batch.reduction}")
    if "reduction" in batch.options:
        needed.add("reduction_option")
    if batch.input.dim() != 2:
        needed.add("unbatched" if batch.input.dim() == 1 else "k_dim")
    if batch.classes > 4096 and not batch.is_linear:  # an identity matrix would be large
        needed.add("many_classes")
    if batch.is_linear:
        needed |= {"linear", "linear_bias"} if "linear_bias" in batch.options else {"linear"}
    elif not torch.isfinite(batch.input).all():
        needed.add("non_finite")
    if batch.target.dtype == torch.uint8:
        needed.add("uint8_target")
    layouts = [question.logits.layout, question.target.layout, question.upstream.layout, question.weight_layout]
    layouts += [question.linear.layout, question.linear.matrix_layout] if question.linear else []
    if any(layout != "contiguous" for layout in layouts):
        needed.add("non_contiguous")
    if case.has_gradient:
        needed.add("backward")
    if question.mode in ("compile", "autocast", "func_grad", "vmap", "double_backward"):
        needed.add(question.mode)
    return frozenset(needed)


def _build(case: Case) -> Batch:
    question, dtype = case.question, DTYPES[case.question.dtype]
    draw = _Draw(case.id)
    logits = _logits(case, draw)
    class_axis = 0 if logits.ndim == 1 else 1
    classes = logits.shape[class_axis] if logits.ndim else 0
    positions = logits.shape[:class_axis] + logits.shape[class_axis + 1 :]
    probabilities = question.target.probabilities is not None
    target = _probabilities(case, draw, logits.shape) if probabilities else _target(case, draw, classes, positions)
    logits = _set_patterns(logits, class_axis, target, question)
    if question.logits.layout == "expanded":
        logits = np.broadcast_to(logits[:1], logits.shape)
    options: dict[str, Any] = {}
    if question.weight is not None:
        weight = (
            0.25 + 1.75 * draw.uniform((classes,))
            if question.weight == "random"
            else np.asarray(question.weight, dtype=np.float64)
        )
        options["weight"] = _lay_out(torch.from_numpy(weight).to(dtype), question.weight_layout, filler=math.nan)
    if question.ignore_index is not None:
        options["ignore_index"] = (
            question.ignore_index if isinstance(question.ignore_index, int) else list(question.ignore_index)
        )
    if question.reduction is not None:
        options["reduction"] = question.reduction
    if question.label_smoothing is not None:
        options["label_smoothing"] = question.label_smoothing
    if question.normalizer is not None:
        given = question.normalizer
        options["normalizer"] = torch.tensor(given.tensor) if isinstance(given, ZeroDim) else given
    input_ = _lay_out(
        _rounded(logits, torch.int64 if question.logits.dtype else dtype), question.logits.layout, filler=math.nan
    )
    if question.linear is not None:
        input_, parts = _linear(question.linear, draw, target, question, dtype)
        options |= parts
    # The gaps of a strided target hold a class that does not exist: reading them cannot go unnoticed.
    target_ = (
        _lay_out(_rounded(target, dtype), question.target.layout, filler=math.nan)
        if probabilities
        else _lay_out(
            torch.from_numpy(target).to(TARGET_DTYPES[question.target.dtype]), question.target.layout, filler=classes
        )
    )
    losses = positions if probabilities else target.shape
    upstream = _upstream(question.upstream, draw, losses if options.get("reduction") == "none" else (), dtype)
    direction = draw.normal(logits.shape) if question.mode == "double_backward" else None
    if direction is not None and dtype != torch.float64:
        direction = _rounded(direction, dtype).double().numpy()
    batch = Batch(input_, target_, options, upstream, question.mode, direction, question.padded_to)
    _check_the_mode(batch)
    if not case.expects_error:
        _check_there_is_an_answer(batch)
    return batch


def micro_batches(batch: Batch) -> list[slice]:
    """The samples of a batch in three unequal parts, for mode accumulated."""
    samples = batch.input.shape[0]
    bounds = sorted({0, 1, 1 + (samples - 1) // 3, samples})
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


def _check_there_is_an_answer(batch: Batch) -> None:
    positions, weight = batch.positions, batch.options.get("weight")
    if weight is not None and weight.shape != (batch.classes,):
        raise ValueError(f"weight: expected {batch.classes} class weights, or expect.error; found {len(weight)}")
    if batch.has_probabilities:
        return
    if tuple(batch.target.shape) != positions:
        raise ValueError(f"target: expected the shape {positions}, or expect.error; found {tuple(batch.target.shape)}")
    if batch.target.is_floating_point():
        raise ValueError(f"target: expected integers for classes, or expect.error; found {batch.target.dtype}")
    target = batch.target.numpy().reshape(-1)
    beyond = np.flatnonzero(batch.valid & ((target < 0) | (target >= batch.classes)))
    if len(beyond):
        raise ValueError(
            f"target: expected a class from 0 to {batch.classes - 1}, one of the ignore values {list(batch.ignore_values)}, or expect.error; "
            f"found {target[beyond[0]]} at position {beyond[0]}"
        )


def _check_the_mode(batch: Batch) -> None:
    if batch.padded_to is not None:
        if batch.input.dim() < 2 or batch.padded_to < batch.input.shape[0] or batch.has_probabilities:
            raise ValueError("padded_to: expected class indices, (N, C, ...) logits and at least N samples in all")
        if not batch.padding:
            raise ValueError(
                f"padded_to: there is no ignore value that targets of {batch.target.dtype} could be padded with"
            )
    if batch.mode == "accumulated":
        if batch.input.dim() < 2 or batch.input.shape[0] < 3:
            raise ValueError("mode: accumulated splits the batch, so it needs at least three samples")
        valid = batch.valid.reshape(batch.positions)
        is_counted = "normalizer" in batch.options or batch.reduction == "sum"
        if not is_counted and not all(valid[part].any() for part in micro_batches(batch)):
            raise ValueError("mode: accumulated with a mean needs a position that counts in each micro-batch")


def _linear(
    spec: Linear, draw: _Draw, target: np.ndarray, question: Question, dtype: torch.dtype
) -> tuple[Tensor, dict[str, Tensor]]:
    """The hidden states, and the options that hold matrix and bias."""
    count, classes = question.logits.shape or (0, 0)
    scale = question.logits.scale / math.sqrt(spec.features)
    given = [None if v is None else np.asarray(v, dtype=np.float64) for v in (spec.hidden, spec.matrix)]
    hidden = draw.normal((count, spec.features)) if given[0] is None else given[0]
    matrix = draw.normal((classes, spec.features)) * scale if given[1] is None else given[1]
    for name, found, wanted in (
        ("hidden", hidden, (count, spec.features)),
        ("matrix", matrix, (classes, spec.features)),
    ):
        if found.shape != wanted:
            raise ValueError(f"linear.{name}: expected the shape {wanted}; found {found.shape}")
    ignored = np.isin(target, question.ignore_values)
    words = {"all": np.ones_like(ignored), "ignored": ignored, "valid": ~ignored}
    for pattern in spec.set:
        rows = np.flatnonzero(words[pattern.rows]) if isinstance(pattern.rows, str) else np.asarray(pattern.rows)
        columns = np.arange(spec.features) if isinstance(pattern.features, str) else np.asarray(pattern.features)
        hidden[np.ix_(rows, columns)] = pattern.value
    parts = {"linear_weight": _lay_out(_rounded(matrix, dtype), spec.matrix_layout, filler=math.nan)}
    if spec.bias is not False:
        bias = draw.normal((classes,)) if spec.bias is True else np.asarray(spec.bias, dtype=np.float64)
        parts["linear_bias"] = _rounded(bias, dtype)
    return _lay_out(_rounded(hidden, dtype), spec.layout, filler=math.nan), parts


class _Draw:
    """Random numbers that depend on nothing but the case's id."""

    def __init__(self, seed: str) -> None:
        self._bits = np.random.PCG64(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16], "little"))

    def uniform(self, shape: tuple[int, ...]) -> np.ndarray:
        """In [0, 1), with 53 bits."""
        count = math.prod(shape)
        return ((self._bits.random_raw(count) >> np.uint64(11)) * 2.0**-53).reshape(shape) if count else np.zeros(shape)

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        """Mean 0, variance 1, within +-6: the sum of twelve uniform numbers, less 6."""
        total = np.full(shape, -6.0)
        for _ in range(12):
            total += self.uniform(shape)
        return total

    def below(self, bound: int, shape: tuple[int, ...]) -> np.ndarray:
        return np.minimum((self.uniform(shape) * bound).astype(np.int64), bound - 1)


def _logits(case: Case, draw: _Draw) -> np.ndarray:
    spec = case.question.logits
    if spec.values is not None:
        return np.asarray(spec.values, dtype=np.float64)
    if spec.file is not None:
        return load_file(case.folder / spec.file)["logits"].double().numpy()
    shape = tuple(spec.shape or ())
    if spec.fill == "tiled":
        block = draw.normal((TILE,)) * spec.scale + spec.shift
        return np.resize(block.astype(np.float32), shape)  # half the memory; exact in float64, too
    fills: dict[str, Callable[[], np.ndarray]] = {
        "normal": lambda: draw.normal(shape),
        "uniform": lambda: draw.uniform(shape),
        "constant": lambda: np.zeros(shape),
        "ramp": lambda: np.arange(math.prod(shape), dtype=np.float64).reshape(shape) / max(math.prod(shape), 1),
    }
    return fills[spec.fill]() * spec.scale + spec.shift


def _target(case: Case, draw: _Draw, classes: int, positions: tuple[int, ...]) -> np.ndarray:
    question, spec = case.question, case.question.target
    if spec.values is not None:
        return np.asarray(spec.values, dtype=np.float64 if spec.dtype.startswith("float") else np.int64)
    if spec.file is not None:
        return load_file(case.folder / spec.file)["target"].numpy()
    shape = positions if spec.shape is None else spec.shape
    allowed = [c for c in spec.classes or range(classes) if c not in question.ignore_values]
    if not allowed and math.prod(shape):
        raise ValueError("every class is an ignore value; none is left to draw targets from")
    target = (
        np.asarray(allowed, dtype=np.int64)[draw.below(len(allowed), shape)]
        if allowed
        else np.zeros(shape, dtype=np.int64)
    )
    if spec.layout == "expanded" and target.ndim:
        target[:] = target[:1]
    flat = target.reshape(-1)
    ignored = _ignored_rows(spec.ignore, flat.size, draw)
    valid = np.setdiff1d(np.arange(flat.size), ignored)
    if valid.size and spec.layout != "expanded":
        flat[valid[0]] = allowed[-1]  # the last class is where off-by-one mistakes show
    values = spec.ignore.value if spec.ignore and spec.ignore.value is not None else question.ignore_values
    if len(ignored):
        flat[ignored] = np.resize(np.asarray(values, dtype=np.int64), len(ignored))
    return flat.reshape(shape)


def _probabilities(case: Case, draw: _Draw, shape: tuple[int, ...]) -> np.ndarray:
    """Of the shape of the logits; the drawn ones add up to 1 over the classes of a position, before they are rounded."""
    spec, axis = case.question.target.probabilities, 0 if len(shape) == 1 else 1
    if spec == "random":
        drawn = draw.uniform(shape) ** 3 + 1e-3
        return drawn / drawn.sum(axis=axis, keepdims=True)
    if spec == "one-hot":
        classes = draw.below(shape[axis], shape[:axis] + shape[axis + 1 :])
        return np.moveaxis(np.eye(shape[axis])[classes], -1, axis)
    return np.asarray(spec, dtype=np.float64)


def _ignored_rows(ignore: Ignore | None, count: int, draw: _Draw) -> np.ndarray:
    everything = np.arange(count)
    if ignore is None or ignore.rows == "none":
        return everything[:0]
    if ignore.rows is not None:
        words = {"all": everything, "first": everything[:1], "last": everything[-1:]}
        return words[ignore.rows] if isinstance(ignore.rows, str) else everything[list(ignore.rows)]
    if ignore.prefix is not None:
        return everything[: ignore.prefix]
    if ignore.suffix is not None:
        return everything[max(count - ignore.suffix, 0) :]
    if ignore.every is not None:
        return everything[:: ignore.every]
    order = np.argsort(draw.uniform((count,)), kind="stable")
    return np.sort(order[: round(count * (ignore.fraction or 0))])


def _set_patterns(logits: np.ndarray, class_axis: int, target: np.ndarray, question: Question) -> np.ndarray:
    if not question.logits.set:
        return logits
    moved = np.moveaxis(logits, class_axis, -1)
    flat = moved.reshape(-1, logits.shape[class_axis]).copy()
    if question.target.probabilities is not None:
        target = np.moveaxis(target, class_axis, -1).argmax(axis=-1)
        ignored = np.zeros(target.size, dtype=bool)
    else:
        ignored = np.isin(target.reshape(-1), question.ignore_values)
    classes = target.reshape(-1)
    for pattern in question.logits.set:
        _set_one(flat, classes, ignored, pattern)
    return np.moveaxis(flat.reshape(moved.shape), -1, class_axis)


def _set_one(flat: np.ndarray, target: np.ndarray, ignored: np.ndarray, pattern: Pattern) -> None:
    words = {"all": np.ones_like(ignored), "ignored": ignored, "valid": ~ignored}
    rows = np.flatnonzero(words[pattern.rows]) if isinstance(pattern.rows, str) else np.asarray(pattern.rows)
    if not isinstance(pattern.classes, str):
        flat[np.ix_(rows, np.asarray(pattern.classes))] = pattern.value
    elif pattern.classes == "all":
        flat[rows] = pattern.value
    else:
        if ignored[rows].any():
            raise ValueError(
                f"logits.set: classes: {pattern.classes} has a meaning for valid rows only; the rows include ignored ones"
            )
        is_target = np.arange(flat.shape[1]) == target[rows, None]
        flat[rows] = np.where(is_target == (pattern.classes == "target"), pattern.value, flat[rows])


def _upstream(spec: Upstream, draw: _Draw, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    if spec == Upstream(scalar=1.0) and shape == ():
        return None
    if spec.per_position:
        values = (0.5 + 1.5 * draw.uniform(shape)) * np.where(draw.uniform(shape) < 0.5, -1.0, 1.0)
    else:
        values = np.broadcast_to(
            np.asarray(spec.scalar if spec.values is None else spec.values, dtype=np.float64), shape
        ).copy()
    if spec.zero:
        values.reshape(-1)[list(spec.zero)] = 0.0
    return _lay_out(_rounded(values, dtype), spec.layout, filler=math.nan)


def _rounded(values: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.require(values, requirements=["C", "W"])).reshape(values.shape).to(dtype)


def _lay_out(tensor: Tensor, layout: str, filler: float) -> Tensor:
    """The same values with other strides; memory that does not belong to the tensor is full of ``filler``."""
    if layout == "contiguous" or tensor.dim() == 0:
        return tensor.contiguous()
    if layout == "transposed":
        order = tuple(reversed(range(tensor.dim())))
        return tensor.permute(order).contiguous().permute(order)
    if layout == "expanded":
        return tensor[:1].clone().expand(tensor.shape)
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        buffer = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1]), filler, dtype=tensor.dtype)
        view = buffer[..., ::2]
    else:  # offset
        buffer = torch.full((tensor.shape[0] + 2, *tensor.shape[1:]), filler, dtype=tensor.dtype)
        view = buffer[1:-1]
    return view.copy_(tensor)


def _float64(tensor: Tensor) -> np.ndarray:
    """The values as float64, which holds every dtype exactly."""
    return tensor.detach().double().cpu().numpy()


def _like(tensor: Tensor) -> Tensor:
    """A copy of the tensor's whole storage under the same strides, so that the gaps come along."""
    storage = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage().clone())  # type: ignore[arg-type]
    return storage.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
