"""The loss of few logits on the CPU: torch's own, kept from what it gets wrong."""

from __future__ import annotations

import math

from torch import Tensor, nn

from .arguments import check_range, is_ignored
from .terms import working_dtype


def torch_is_right(classes: int, weight: Tensor | None, smoothing: float) -> bool:
    """Whether 0 * inf cannot occur, nor a careless sum over many classes (smoothing; log_softmax's backward pass)."""
    return (not smoothing or (smoothing < 1 and classes <= 256)) and (weight is None or bool(weight.all()))


def guarded(
    input: Tensor, target: Tensor, values: tuple[int, ...], weight: Tensor | None, smoothing: float, reduction: str
) -> Tensor:
    """torch's own loss, in the working dtype, with what it cannot cope with put out of its way."""
    x = input if input.dtype == working_dtype(input) else input.float()
    ignored = is_ignored(target, values)
    if not target.numel():
        reduction = "none" if reduction == "none" else "sum"
    elif ignored.any():
        if not math.isfinite(x.detach().sum()):
            x = x.masked_fill(ignored.unsqueeze(1), 0)
        if len(values) > 1:
            target = target.masked_fill(ignored, values[0])
        if reduction == "mean" and ignored.all():
            reduction = "sum"
    try:
        loss = nn.functional.cross_entropy(
            x, target, weight, ignore_index=values[0], reduction=reduction, label_smoothing=smoothing
        )
    except IndexError:
        check_range(target.masked_fill(ignored, 0), input.shape[1], values)
        raise
    return loss if x.dtype == input.dtype else loss.to(input.dtype)
