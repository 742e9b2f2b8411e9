"""Where the values of a tensor lie in memory: strides, offsets and gaps."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from xentcheck.spec.mistakes import Unexpected


def rounded(values: np.ndarray, dtype: torch.dtype) -> Tensor:
    """The values as a contiguous tensor of the dtype, each rounded once."""
    return torch.from_numpy(np.require(values, requirements=["C", "W"])).reshape(values.shape).to(dtype)


def lay_out(tensor: Tensor, layout: str, filler: float = float("nan")) -> Tensor:
    """The same values with other strides; memory that does not belong to the tensor is full of ``filler``.

    Args:
        tensor: of any shape and dtype. ``expanded`` keeps its first row and repeats it.
        layout: one of ``fields.Layout``.
        filler: a value that cannot be read without being noticed.

    Raises:
        Unexpected: a tensor of this shape cannot have the layout.
    """
    if layout == "contiguous" or tensor.dim() == 0:
        return tensor.contiguous()
    if layout == "transposed":
        order = tuple(reversed(range(tensor.dim())))
        return tensor.permute(order).contiguous().permute(order)
    if layout == "expanded":
        return tensor[:1].clone().expand(tensor.shape)
    if layout == "channels_last":
        if tensor.dim() != 4:
            raise Unexpected("a tensor of four dimensions for channels_last", f"the shape {tuple(tensor.shape)}")
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        buffer = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1]), filler, dtype=tensor.dtype)
        view = buffer[..., ::2]
    else:  # offset
        buffer = torch.full((tensor.shape[0] + 2, *tensor.shape[1:]), filler, dtype=tensor.dtype)
        view = buffer[1:-1]
    return view.copy_(tensor)


def copied(tensor: Tensor) -> Tensor:
    """A copy of the tensor's whole storage under the same strides, so that the gaps come along."""
    storage = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage().clone())  # type: ignore[arg-type]
    return storage.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def float64(tensor: Tensor) -> np.ndarray:
    """The values as float64, which holds every dtype exactly."""
    return tensor.detach().double().cpu().numpy()
