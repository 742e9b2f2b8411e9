"""Tensors and options as Python text that makes them again, with the same values, dtype and strides."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

WRITTEN_OUT = 400  # up to so many values are written out; more are packed
WIDTH = 8  # values in a line


def options_literal(options: Mapping[str, Any]) -> str:
    """Lines that assign the tensors among the options, by their names, and ``options``."""
    tensors = [tensor_literal(name, value) for name, value in options.items() if isinstance(value, Tensor)]
    shown = {name: name if isinstance(value, Tensor) else repr(value) for name, value in options.items()}
    return "\n".join([*tensors, "options = {" + ", ".join(f'"{n}": {v}' for n, v in shown.items()) + "}"])


def tensor_literal(name: str, tensor: Tensor) -> str:
    """Lines that assign a tensor. A large one is packed; the script must then import base64 and zlib."""
    dtype, shape = str(tensor.dtype), tuple(tensor.shape)
    flat = tensor.detach().reshape(-1)
    if flat.numel() <= WRITTEN_OUT:
        values = [_number(v) for v in flat.tolist()]
        rows = [", ".join(values[i : i + WIDTH]) for i in range(0, len(values), WIDTH)]
        body = f"[{rows[0]}]" if len(rows) == 1 else "[\n    " + ",\n    ".join(rows) + ",\n]" if rows else "[]"
        text = f"{name} = torch.tensor({body}, dtype={dtype}).reshape({shape})"
    else:
        data = flat.contiguous().view(torch.uint8).numpy().tobytes()
        packed = base64.b64encode(zlib.compress(data, 9)).decode()
        lines = "\n".join(f'    "{packed[i : i + 110]}"' for i in range(0, len(packed), 110))
        text = f"{name} = torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(\n{lines}\n))), dtype={dtype}).reshape({shape})"
    return text if tensor.is_contiguous() else f"{text}\n{_strided(name, tensor)}"


def _strided(name: str, tensor: Tensor) -> str:
    stride, shape = tuple(tensor.stride()), tuple(tensor.shape)
    if any(s == 0 for s in stride):
        index = ", ".join("slice(0, 1)" if s == 0 else "slice(None)" for s in stride)
        return f"{name} = {name}[{index}].clone().expand({shape})"
    size = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    memory = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    gaps = torch.ones(len(memory), dtype=torch.bool)
    gaps[torch.arange(len(memory)).as_strided(shape, stride, tensor.storage_offset())] = False
    filler = _number(memory[gaps][0].item()) if gaps.any() else "0"
    return f"{name} = torch.full(({size},), {filler}, dtype={name}.dtype).as_strided({shape}, {stride}).copy_({name})"


def _number(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)
