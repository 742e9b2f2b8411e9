"""The numbers of a case as NumPy arrays, before they are rounded to a dtype and laid out in memory.

They are the same on every machine and with every release of NumPy and torch: they come from PCG64's raw 64-bit stream, seeded with
the case's id. NumPy promises that stream. It does not promise ``Generator.normal`` and the like, which may change between releases,
so the few distributions needed are built here from sums of uniform numbers, in exact arithmetic.

The order of the draws is part of the specification: logits, target, class weights, linear layer, upstream gradient, direction.
Changing it changes every case that draws more than one of them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from xentcheck.spec.case import MAX_NUMBERS, Case, Ignore, Linear, Pattern, Question, Upstream
from xentcheck.spec.files import tensor_file
from xentcheck.spec.mistakes import Unexpected, about, one_line

TILE = 65_537  # a prime, so that no two rows are equal, whatever the usual number of classes

Array = np.ndarray


@dataclass(frozen=True)
class LinearLayer:
    """hidden: (N, H). matrix: (C, H). bias: (C,), if there is one."""

    hidden: Array
    matrix: Array
    bias: Array | None


@dataclass(frozen=True)
class Numbers:
    """The numbers of a case, in float64 unless another dtype is given here.

    logits: (C,), (N, C) or (N, C, d1, ...); float32 where that is exact and saves memory. target: classes as int64, or numbers in the
    shape of the logits where they are class probabilities. weight: (C,). upstream: of the shape of the loss; None stands for a plain
    ``loss.backward()``. direction: of the shape of the logits, in mode double_backward. With a linear layer, the logits give no more
    than the shape.
    """

    logits: Array
    target: Array
    weight: Array | None
    linear: LinearLayer | None
    upstream: Array | None
    direction: Array | None


def numbers(case: Case) -> Numbers:
    """All numbers of a case. Raises Unexpected, with the key, where the case's parts do not fit together."""
    question, stream = case.question, Stream(case.id)
    with about("logits"):
        logits = _logits(case, stream)
        axis = 0 if logits.ndim == 1 else 1
        positions = logits.shape[:axis] + logits.shape[axis + 1 :]
        classes = logits.shape[axis] if logits.ndim else 0
    with about("target"):
        if question.target.probabilities is not None:
            target, losses = _probabilities(question, stream, logits.shape), positions
        else:
            target = _classes(case, stream, classes, positions)
            losses = target.shape
    with about("logits.set"):
        logits = _with_patterns(logits, axis, target, question)
    weight = _weight(question, stream, classes)
    with about("linear"):
        linear = _linear(question.linear, stream, target, question) if question.linear else None
    with about("upstream"):
        upstream = _upstream(question.upstream, stream, losses if question.reduction == "none" else ())
    direction = stream.normal(logits.shape) if question.mode == "double_backward" else None
    return Numbers(logits, target, weight, linear, upstream, direction)


class Stream:
    """Random numbers that depend on nothing but the case's id."""

    def __init__(self, seed: str) -> None:
        self._bits = np.random.PCG64(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16], "little"))

    def uniform(self, shape: tuple[int, ...]) -> Array:
        """In [0, 1), with 53 bits."""
        count = math.prod(shape)
        return ((self._bits.random_raw(count) >> np.uint64(11)) * 2.0**-53).reshape(shape) if count else np.zeros(shape)

    def normal(self, shape: tuple[int, ...]) -> Array:
        """Mean 0, variance 1, within +-6: the sum of twelve uniform numbers, less 6."""
        total = np.full(shape, -6.0)
        for _ in range(12):
            total += self.uniform(shape)
        return total

    def below(self, bound: int, shape: tuple[int, ...]) -> Array:
        """Whole numbers from 0 to ``bound`` - 1."""
        return np.minimum((self.uniform(shape) * bound).astype(np.int64), bound - 1)


# What safetensors calls the dtypes that a case can have.
_STORED = {
    **{"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16", "bool": "BOOL"},
    **{"int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8"},
}


def _captured(case: Case, file: str, name: str, dtype: str) -> Array:
    """A tensor of a file. It must have the dtype that the case says: another one would be cast to something else."""
    from safetensors import SafetensorError, safe_open

    with tensor_file(case, f"{name}.file", file) as path:
        try:
            with safe_open(path, framework="pt") as tensors:  # NumPy has no bfloat16
                if name not in (names := sorted(tensors.keys())):
                    raise Unexpected(f"a tensor named {name}", one_line(", ".join(names), 100) or "none")
                stored = tensors.get_slice(name)
                if stored.get_dtype() != _STORED[dtype]:
                    raise Unexpected(f"a tensor of dtype {dtype}, as the case says", stored.get_dtype())
                if math.prod(stored.get_shape()) > MAX_NUMBERS:
                    raise Unexpected(f"at most {MAX_NUMBERS:,} numbers", f"the shape {stored.get_shape()}")
                tensor = tensors.get_tensor(name)
        except SafetensorError as error:
            raise Unexpected("a safetensors file", str(error)) from error
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()


def _indices(chosen: Sequence[int], count: int, key: str) -> Array:
    for index in chosen:
        if not -count <= index < count:
            raise Unexpected(f"indices from {-count} to {count - 1}", str(index), key)
    return np.asarray(chosen, dtype=np.int64)


# --- logits


def _logits(case: Case, stream: Stream) -> Array:
    spec = case.question.logits
    if spec.values is not None:
        return np.asarray(spec.values, dtype=np.float64)
    if spec.file is not None:
        return _captured(case, spec.file, "logits", spec.dtype or case.question.dtype)
    shape = tuple(spec.shape or ())
    if spec.fill == "tiled":
        block = stream.normal((TILE,)) * spec.scale + spec.shift
        return np.resize(block.astype(np.float32), shape)  # half the memory; exact in float64, too
    fills: dict[str, Callable[[], Array]] = {
        "normal": lambda: stream.normal(shape),
        "uniform": lambda: stream.uniform(shape),
        "constant": lambda: np.zeros(shape),
        "ramp": lambda: np.arange(math.prod(shape), dtype=np.float64).reshape(shape) / max(math.prod(shape), 1),
    }
    return fills[spec.fill]() * spec.scale + spec.shift


def _with_patterns(logits: Array, axis: int, target: Array, question: Question) -> Array:
    """The logits with the patterns of ``logits.set`` written over them, one after another."""
    if not question.logits.set:
        return logits
    moved = np.moveaxis(logits, axis, -1)
    flat = moved.reshape(-1, logits.shape[axis]).copy()
    if question.target.probabilities is not None:
        target = np.moveaxis(target, axis, -1).argmax(axis=-1)
        ignored = np.zeros(target.size, dtype=bool)
    else:
        ignored = np.isin(target.reshape(-1), question.ignore_values)
    for number, pattern in enumerate(question.logits.set):
        with about(str(number)):
            _set(flat, target.reshape(-1), ignored, pattern)
    return np.moveaxis(flat.reshape(moved.shape), -1, axis)


def _set(flat: Array, target: Array, ignored: Array, pattern: Pattern) -> None:
    rows = _rows(pattern.rows, ignored)
    if not isinstance(pattern.classes, str):
        flat[np.ix_(rows, _indices(pattern.classes, flat.shape[1], "classes"))] = pattern.value
    elif pattern.classes == "all":
        flat[rows] = pattern.value
    else:
        if ignored[rows].any():
            raise Unexpected(f"valid rows, since ignored ones have no {pattern.classes}", "ignored rows, too", "rows")
        is_target = np.arange(flat.shape[1]) == target[rows, None]
        flat[rows] = np.where(is_target == (pattern.classes == "target"), pattern.value, flat[rows])


def _rows(chosen: Sequence[int] | str, ignored: Array) -> Array:
    if not isinstance(chosen, str):
        return _indices(chosen, len(ignored), "rows")
    return np.flatnonzero({"all": np.ones_like(ignored), "ignored": ignored, "valid": ~ignored}[chosen])


# --- target


def _classes(case: Case, stream: Stream, classes: int, positions: tuple[int, ...]) -> Array:
    question, spec = case.question, case.question.target
    if spec.values is not None:
        return np.asarray(spec.values, dtype=np.float64 if spec.dtype.startswith("float") else np.int64)
    if spec.file is not None:
        return _captured(case, spec.file, "target", spec.dtype)
    shape = positions if spec.shape is None else spec.shape
    ignored_values = frozenset(question.ignore_values)
    allowed = [c for c in spec.classes or range(classes) if c not in ignored_values]
    target = _drawn_classes(allowed, shape, stream)
    if spec.layout == "expanded" and target.ndim:
        target[:] = target[:1]
    flat = target.reshape(-1)
    ignored = _ignored_rows(spec.ignore, flat.size, stream)
    valid = np.setdiff1d(np.arange(flat.size), ignored)
    if valid.size and spec.layout != "expanded":
        flat[valid[0]] = allowed[-1]  # the last class is where off-by-one mistakes show
    values = spec.ignore.value if spec.ignore and spec.ignore.value is not None else question.ignore_values
    if len(ignored):
        flat[ignored] = np.resize(np.asarray(values, dtype=np.int64), len(ignored))
    return flat.reshape(shape)


def _drawn_classes(allowed: list[int], shape: tuple[int, ...], stream: Stream) -> Array:
    if allowed:
        return np.asarray(allowed, dtype=np.int64)[stream.below(len(allowed), shape)]
    if math.prod(shape):
        raise Unexpected("a class to draw targets from", "none that is not an ignore value", "classes")
    return np.zeros(shape, dtype=np.int64)


def _ignored_rows(ignore: Ignore | None, count: int, stream: Stream) -> Array:
    everything = np.arange(count)
    words = {"none": everything[:0], "all": everything, "first": everything[:1], "last": everything[-1:]}
    if ignore is None:
        return words["none"]
    if isinstance(ignore.rows, str):
        return words[ignore.rows]
    if ignore.rows is not None:
        return everything[_indices(ignore.rows, count, "ignore.rows")]
    if ignore.prefix is not None:
        return everything[: ignore.prefix]
    if ignore.suffix is not None:
        return everything[max(count - ignore.suffix, 0) :]
    if ignore.every is not None:
        return everything[:: ignore.every]
    order = np.argsort(stream.uniform((count,)), kind="stable")
    return np.sort(order[: round(count * (ignore.fraction or 0))])


def _probabilities(question: Question, stream: Stream, shape: tuple[int, ...]) -> Array:
    """Of the shape of the logits; drawn ones add up to 1 over the classes of a position, before they are rounded."""
    spec, axis = question.target.probabilities, 0 if len(shape) == 1 else 1
    if spec == "random":
        drawn = stream.uniform(shape) ** 3 + 1e-3
        return drawn / drawn.sum(axis=axis, keepdims=True)
    if spec == "one-hot":
        classes = stream.below(shape[axis], shape[:axis] + shape[axis + 1 :])
        probabilities = np.zeros(shape)
        np.put_along_axis(probabilities, np.expand_dims(classes, axis), 1.0, axis)
        return probabilities
    return np.asarray(spec, dtype=np.float64)


# --- options and gradients from above


def _weight(question: Question, stream: Stream, classes: int) -> Array | None:
    if question.weight == "random":
        return 0.25 + 1.75 * stream.uniform((classes,))
    return None if question.weight is None else np.asarray(question.weight, dtype=np.float64)


def _linear(spec: Linear, stream: Stream, target: Array, question: Question) -> LinearLayer:
    count, classes = question.logits.shape or (0, 0)
    scale = question.logits.scale / math.sqrt(spec.features)
    literal = [None if v is None else np.asarray(v, dtype=np.float64) for v in (spec.hidden, spec.matrix)]
    hidden = stream.normal((count, spec.features)) if literal[0] is None else literal[0]
    matrix = stream.normal((classes, spec.features)) * scale if literal[1] is None else literal[1]
    ignored = np.isin(target, question.ignore_values)
    for number, pattern in enumerate(spec.set):
        with about(f"set.{number}"):
            chosen = range(spec.features) if isinstance(pattern.features, str) else pattern.features
            columns = _indices(chosen, spec.features, "features")
            hidden[np.ix_(_rows(pattern.rows, ignored), columns)] = pattern.value
    bias = None
    if spec.bias is not False:
        bias = stream.normal((classes,)) if spec.bias is True else np.asarray(spec.bias, dtype=np.float64)
    return LinearLayer(hidden, matrix, bias)


def _upstream(spec: Upstream, stream: Stream, shape: tuple[int, ...]) -> Array | None:
    if spec == Upstream(scalar=1.0) and shape == ():
        return None
    if spec.per_position:
        values = (0.5 + 1.5 * stream.uniform(shape)) * np.where(stream.uniform(shape) < 0.5, -1.0, 1.0)
    else:
        given = np.asarray(spec.scalar if spec.values is None else spec.values, dtype=np.float64)
        try:
            values = np.broadcast_to(given, shape).copy()
        except ValueError:
            raise Unexpected(f"the shape of the loss, {shape}", f"{given.shape}", "values") from None
    values.reshape(-1)[_indices(spec.zero, values.size, "zero")] = 0.0
    return values
