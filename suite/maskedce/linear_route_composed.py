"""Route of all logits: operations that can be differentiated any number of times, traced and mapped."""

from __future__ import annotations

from torch import Tensor, nn

from .arguments import is_ignored
from .cross_entropy import masked_cross_entropy
from .formula import working_dtype
from .linear_chunks import LinearCall


def loss(call: LinearCall) -> Tensor:
    hidden, matrix, bias, target, weight, options = call
    dtype = working_dtype(hidden)
    ignored = is_ignored(target, options.ignored)
    kept = hidden.masked_fill(ignored.unsqueeze(1), 0).to(dtype)
    x = nn.functional.linear(kept, matrix.to(dtype), None if bias is None else bias.to(dtype))
    value = masked_cross_entropy(
        x,
        target,
        weight=weight,
        ignore_index=options.ignored,
        reduction=options.reduction,
        label_smoothing=options.smoothing,
        normalizer=options.normalizer,
    )
    return value.to(options.dtype)
