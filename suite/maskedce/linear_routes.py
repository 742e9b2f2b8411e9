"""Which way the loss of a linear layer's output is computed: the first route of ``LINEAR_ROUTES`` whose condition holds."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from . import linear_route_chunked, linear_route_compiled, linear_route_composed, thresholds
from .formula import working_dtype
from .linear_chunks import LinearCall
from .routes import Route, is_anything_else


def is_compiled_with_few_logits_or_needs_plain_operations(call: LinearCall) -> bool:
    few = len(call.hidden) * len(call.matrix) < thresholds.ALL_LOGITS and not _has_large_copy(call.matrix)
    return (is_compiling() and few) or _needs_plain_operations(call.hidden, call.matrix, call.bias, call.weight)


def is_compiled(call: LinearCall) -> bool:
    return is_compiling()


LINEAR_ROUTES = (
    Route(
        "composed",
        is_compiled_with_few_logits_or_needs_plain_operations,
        linear_route_composed.loss,
        "linear_route_composed.py",
        "the product, then what the loss of logits takes; all logits, and copies of half types in float32",
        "Can be traced, mapped and differentiated any number of times; few logits, the compiler fuses well.",
    ),
    Route(
        "compiled operator",
        is_compiled,
        linear_route_compiled.loss,
        "linear_route_compiled.py",
        "as chunked",
        "The chunked pass as one operator, which the compiler takes as it is.",
    ),
    Route(
        "chunked",
        is_anything_else,
        linear_route_chunked.loss,
        "linear_route_chunked.py",
        "three products for each chunk, once; again in the backward pass where the loss cannot know its factor; a seventh of the logits and the gradients",
        "Logits, not the products, are what does not fit into memory: they become their gradient a chunk at a time.",
    ),
)


def _has_large_copy(matrix: Tensor) -> bool:
    """Whether the composed route would make a large copy of the matrix, and keep it for the backward pass."""
    return matrix.dtype != working_dtype(matrix) and matrix.numel() >= thresholds.ALL_LOGITS


def _needs_plain_operations(*tensors: Tensor | None) -> bool:
    """Whether a branch on a value would fail or break a graph."""
    return (
        any(type(t) not in (Tensor, nn.Parameter) or t.device.type == "meta" for t in tensors if t is not None)
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )
