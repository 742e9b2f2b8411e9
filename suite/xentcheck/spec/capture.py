"""Saves a batch from anybody's training step as a case: a loss that went wrong there can be looked at anywhere."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from xentcheck.spec.batch import DTYPES
from xentcheck.spec.case import MAX_NUMBERS
from xentcheck.spec.fields import MAX_DIMENSIONS, MAX_NAME

TARGETS = ("int64", "int32", "uint8")
MAX_WEIGHTS = 1000  # they are written out as text


def capture(
    logits: Tensor, target: Tensor, path: str | os.PathLike[str], *, weight: Tensor | None = None, max_bytes: int = 256_000_000,
    ignore_index: int | Sequence[int] = -100, reduction: str = "mean", label_smoothing: float = 0.0,
) -> Path:  # fmt: skip
    """Writes PATH.safetensors and PATH.yaml, a case file; returns the path of the latter.

    Call it with the arguments of the loss, anywhere in a training step, which it does not change; in a region under
    torch.compile it breaks the graph::

        if step == 100:
            xentcheck.capture(logits, labels, "captured/step-100", label_smoothing=0.1)
        loss = F.cross_entropy(logits, labels, label_smoothing=0.1)

    Then ask any loss: ``pytest suite/ --impl native,maskedce --cases captured/step-100.yaml``. The two files need each
    other and nothing else. The case is ``step-100/batch``, after the file's name in lower-case words with dashes.

    Args:
        logits: (C,), (N, C) or (N, C, d1, ...) in float64, float32, bfloat16 or float16, on any device. Strides are not kept.
        target: class indices, (), (N,) or (N, d1, ...), in int64, int32 or uint8.
        path: with or without suffix. Missing folders are made; an earlier capture is replaced once the new one is complete.
        weight: (C,), in the dtype of the logits, at most 1000.
        max_bytes: how much the logits may take.

    Raises:
        TypeError: an argument is not a dense tensor, or has another dtype.
        ValueError: shapes do not match, a target is neither a class nor ignored, or an option is out of range.
        Nothing is written in either case.
    """
    options = dict(weight=weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing)
    if torch.compiler.is_compiling():  # not a decorator: that would import the compiler, a second, for everybody
        return torch.compiler.disable(capture)(logits, target, path, **options, max_bytes=max_bytes)
    _check(logits, target, max_bytes, **options)
    base = Path(re.sub(r"\.(yaml|safetensors)$", "", os.fspath(path)))
    clause = "-".join(re.findall("[a-z0-9]+", base.name.lower()))[:MAX_NAME].strip("-")
    if not clause or not base.name.isprintable():
        raise ValueError(f"path: expected a printable file name with letters or digits; found {os.fspath(path)!r}")
    data, case = (base.with_name(base.name + suffix) for suffix in (".safetensors", ".yaml"))
    tensors = {"logits": logits.detach().cpu().contiguous(), "target": target.detach().cpu().contiguous()}
    indices, classes = tensors["target"].numpy(), logits.shape[min(logits.dim() - 1, 1)]
    valid = ~np.isin(indices, ignore_index)
    wrong = indices[valid & ((indices < 0) | (indices >= classes))]
    if wrong.size:
        raise ValueError(
            f"target: expected 0 to {classes - 1} or {ignore_index}; found {wrong[0]}, {wrong.size} in all"
        )
    entry = {
        "why": f"{valid.size} positions, {valid.size - valid.sum()} of them ignored; from torch {torch.__version__}",
        "dtype": _name(logits.dtype),
        "logits": f"{{file: {json.dumps(data.name, ensure_ascii=False)}}}",
        "target": f"{{file: {json.dumps(data.name, ensure_ascii=False)}, dtype: {_name(target.dtype)}}}",
        "ignore_index": ignore_index if isinstance(ignore_index, int) else list(ignore_index),
        "weight": None if weight is None else weight.tolist(),
        "reduction": None if reduction == "mean" else reduction,
        "label_smoothing": float(label_smoothing) or None,
        "expect": "{convention: int32_target}" if target.dtype == torch.int32 else None,
    }
    lines = [
        f'clause: "{clause}"',
        f"title: Captured batch {clause}",
        "requirement: The loss and the gradient of a batch from a training step are those of the definition.",
        "sources: [https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html]",
        "cases:\n  - id: batch",
        *(f"    {key}: {value}" for key, value in entry.items() if value is not None),
    ]
    _replace({data: save(tensors), case: ("\n".join(lines) + "\n").encode()})
    return case


def _check(
    logits: Tensor, target: Tensor, max_bytes: int, *, weight: Tensor | None, ignore_index: object, reduction: str,
    label_smoothing: float,
) -> None:  # fmt: skip
    _check_tensor("logits", logits, DTYPES)
    _check_tensor("target", target, TARGETS)
    shape, axis = tuple(logits.shape), 0 if logits.dim() == 1 else 1
    if not shape[axis:] or not shape[axis] or len(shape) > MAX_DIMENSIONS:
        sizes = f"(C,), (N, C) or (N, C, d1, ...), C at least 1, at most {MAX_DIMENSIONS} in all"
        raise ValueError(f"logits: expected the shape {sizes}; found {shape}")
    if target.shape != (positions := shape[:axis] + shape[axis + 1 :]):
        hint = "; classes come second: logits.movedim(-1, 1)" if target.shape == shape[:-1] else ""
        raise ValueError(f"target: expected {positions} for logits of {shape}; found {tuple(target.shape)}{hint}")
    for found, limit, what in ((logits.nbytes, max_bytes, "max_bytes="), (logits.numel(), MAX_NUMBERS, "numbers=")):
        if found > limit:
            raise ValueError(f"logits: expected at most {what}{limit:,}; found {found:,}; capture fewer rows?")
    if weight is not None:
        _check_tensor("weight", weight, [_name(logits.dtype)])
        if weight.shape != shape[axis : axis + 1] or shape[axis] > MAX_WEIGHTS:
            raise ValueError(f"weight: expected ({shape[axis]},), at most {MAX_WEIGHTS}; found {tuple(weight.shape)}")
    values = ignore_index if isinstance(ignore_index, (list, tuple)) else [ignore_index]
    if not all(type(v) is int and -(2**63) <= v < 2**63 for v in values):
        raise TypeError(f"ignore_index: expected an int or a list of ints, of 64 bits each; found {ignore_index!r:.80}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: expected mean, sum or none; found {reduction!r}")
    if type(label_smoothing) not in (int, float) or not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: expected a number from 0 to 1; found {label_smoothing!r}")


def _check_tensor(name: str, value: Tensor, dtypes: Collection[str]) -> None:
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_nested or value.is_meta:
        found = type(value).__name__ if not isinstance(value, Tensor) else f"{value.layout} on {value.device}"
        raise TypeError(f"{name}: expected a dense tensor; found {found}")
    if _name(value.dtype) not in dtypes:
        raise TypeError(f"{name}: expected the dtype {' or '.join(dtypes)}; found {_name(value.dtype)}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _replace(files: dict[Path, bytes]) -> None:
    """Writes all of them under temporary names before the first one takes an earlier file's place."""
    temporary = {path: path.with_name(f".{uuid.uuid4().hex}.tmp") for path in files}
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary[path].write_bytes(content)
        for path in files:
            os.replace(temporary[path], path)
    finally:
        for leftover in temporary.values():
            leftover.unlink(missing_ok=True)
