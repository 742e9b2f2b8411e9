"""A failing document with less in it: no key that is not needed, few positions and classes, plain numbers instead of fills."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from xentcheck.spec.batch import Batch

SPELLED_OUT = 24  # at most so many logits are written as numbers
# Keys that a document may do without; a dot leads into a mapping.
OPTIONAL = (
    *("mode", "upstream", "upstream.layout", "upstream.zero", "target.layout", "logits.layout", "logits.set"),
    *("logits.fill", "logits.shift", "logits.scale", "target.dtype", "weight", "label_smoothing", "reduction"),
    *("target.ignore", "ignore_index", "target.classes", "target", "dtype"),
)
Entry = dict[str, Any]
Step = Callable[[Entry], Entry | None]  # gives a document with less, or None where there is nothing to take away
StillFails = Callable[[Entry], Any]  # None where the document no longer fails as before


def reduced(entry: Entry, steps: Iterable[Step], still_fails: StillFails) -> Entry:
    """The document after those steps that leave it failing as before."""
    for step in steps:
        smaller = step(entry)
        if smaller is not None and smaller != entry and still_fails(smaller) is not None:
            entry = smaller
    return entry


def without_keys() -> list[Step]:
    return [partial(_without, key=key) for key in OPTIONAL]


def minimised(entry: Entry, still_fails: Callable[[Entry], Batch | None]) -> Entry:
    """What Hypothesis leaves, with less.

    still_fails: the batch of a document that fails as before, or None.
    """
    if {"error", "convention"} & set(entry.get("expect", {})):
        return entry  # the expectation would stay when its cause is gone
    entry = reduced(entry, without_keys(), still_fails)
    sizes = [partial(_with_size, axis=axis, size=n) for axis in range(5) for n in (1, 2, 3, 4, 5, 8, 17)]
    entry = reduced(entry, sizes, still_fails)
    batch = still_fails(entry)
    if batch is None or not 0 < batch.input.numel() <= 8 * SPELLED_OUT:
        return entry
    for digits in (1, 2, 3, 4, 6, 9, 17):
        written = _spelled_out(entry, batch, digits)
        if still_fails(written) is not None:
            written = reduced(written, without_keys(), still_fails)  # again, since the numbers now stay as they are
            logits = _array(written["logits"]["values"])
            if logits.ndim == 2 and isinstance(written.get("target", {}).get("values"), list):
                written = reduced(written, _smaller(*logits.shape), still_fails)
                logits = _array(written["logits"]["values"])
            plainer = [partial(_with_number, index=i, plain=n) for i in range(logits.size) for n in (0, 1, None)]
            return reduced(written, plainer, still_fails) if logits.size <= SPELLED_OUT else entry
    return entry


def _without(entry: Entry, key: str) -> Entry | None:
    """Without a key, where the document has it."""
    first, _, rest = key.partition(".")
    if first not in entry or (rest and not (isinstance(entry[first], dict) and rest in entry[first])):
        return None
    if rest and len(entry[first]) > 1:
        return {**entry, first: {k: v for k, v in entry[first].items() if k != rest}}
    return {k: v for k, v in entry.items() if k != first}


def _with_size(entry: Entry, axis: int, size: int) -> Entry | None:
    """With logits of another size along an axis, where that is smaller."""
    shape = list(entry["logits"].get("shape", ()))
    if axis >= len(shape) or shape[axis] <= size:
        return None
    shape[axis] = size
    return {**entry, "logits": {**entry["logits"], "shape": shape}}


def _spelled_out(entry: Entry, batch: Batch, digits: int) -> Entry:
    """The same batch in numbers of so many digits, so that it no longer depends on the case's id."""
    logits, target = entry.get("logits", {}), entry.get("target", {})
    kept = {k: v for k, v in logits.items() if k == "layout"}
    entry = {**entry, "logits": {"values": _numbers(batch.input, digits), **kept}}
    if batch.target.numel() == batch.input.numel() // max(batch.classes, 1):
        kept = {k: v for k, v in target.items() if k in ("layout", "dtype")}
        entry["target"] = {"values": batch.target.tolist(), **kept}
    if entry.get("weight") == "random":
        entry["weight"] = _numbers(batch.options["weight"], digits)
    if batch.upstream is not None and batch.upstream.dim() and entry.get("upstream") == "per-position":
        entry["upstream"] = _numbers(batch.upstream, digits)
    return entry


def _smaller(positions: int, classes: int) -> Iterator[Step]:
    """Steps for (N, C) logits whose numbers are written out: fewer positions, the first class as target, fewer classes."""
    yield from (partial(_without_position, position=n) for n in reversed(range(positions)))
    yield from (partial(_with_number, index=n, plain=0, key="target") for n in range(positions))
    yield from (partial(_without_class, label=c) for c in reversed(range(classes)))


def _without_position(entry: Entry, position: int) -> Entry | None:
    parts = {key: {**entry[key], "values": _cut(entry[key]["values"], position)} for key in ("logits", "target")}
    if isinstance(entry.get("upstream"), list):
        parts["upstream"] = _cut(entry["upstream"], position)
    return {**entry, **parts} if parts["target"]["values"] else None


def _without_class(entry: Entry, label: int) -> Entry | None:
    logits, target = entry["logits"]["values"], entry["target"]["values"]
    if label in target:
        return None

    def renumbered(value: int) -> int:
        return value - (label < value < len(logits[0]))

    parts: Entry = {"logits": {**entry["logits"], "values": _cut(logits, label, axis=1)}}
    parts["target"] = {**entry["target"], "values": [renumbered(t) for t in target]}
    if isinstance(entry.get("ignore_index"), int):
        parts["ignore_index"] = renumbered(entry["ignore_index"])
    if isinstance(entry.get("weight"), list):
        parts["weight"] = _cut(entry["weight"], label)
    return {**entry, **parts}


def _with_number(entry: Entry, index: int, plain: int | None, key: str = "logits") -> Entry | None:
    """With a plainer number among the logits or targets; None: rounded to a whole one."""
    values = _array(entry[key]["values"])
    value = float(values.flat[index]) if index < values.size else 0.0
    if plain is None:
        plain = round(value) if np.isfinite(value) else 0
    if abs(value) <= abs(plain):
        return None
    values.flat[index] = plain
    return {**entry, key: {**entry[key], "values": values.tolist()}}


def _array(values: Any) -> np.ndarray:
    """Nested lists of numbers and words, such as ``nan``."""
    return np.array(values, dtype=object)


def _cut(values: Any, index: int, axis: int = 0) -> Any:
    return np.delete(_array(values), index, axis=axis).tolist()


def _numbers(tensor: Tensor, digits: int) -> Any:
    def plain(value: float) -> Any:
        if not np.isfinite(value):
            return str(value)
        short = float(f"{value:.{digits}g}")
        return int(short) if short == int(short) and abs(short) < 1e6 else short

    return np.frompyfunc(plain, 1, 1)(_array(tensor.double().tolist())).tolist()
