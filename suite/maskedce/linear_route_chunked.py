"""Route of a plain call: loss and gradients chunk by chunk, without ever holding the logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import linear_route_composed
from .formula import working_dtype
from .linear_chunks import (
    LinearCall,
    Options,
    Positions,
    can_be_scaled,
    gradients_anew,
    loss_and_gradients,
    positions_of,
    wanted_gradients,
    without_autocast,
)
from .route_blockwise import is_graph_kept


def loss(call: LinearCall) -> Tensor:
    hidden, matrix, bias, target, weight, options = call
    positions = positions_of(target, len(matrix), weight, options, working_dtype(hidden))
    wanted = wanted_gradients(hidden, matrix, bias)
    return _Chunked.apply(hidden, matrix, bias, target, weight, positions, options, wanted)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        matrix: Tensor,
        bias: Tensor | None,
        target: Tensor,
        weight: Tensor | None,
        positions: Positions,
        options: Options,
        wanted: Sequence[bool],
    ) -> Tensor:
        loss, gradients = loss_and_gradients(hidden, matrix, bias, positions, options, wanted)
        ctx.save_for_backward(hidden, matrix, bias, target, weight, *gradients)
        ctx.positions, ctx.options = positions, options
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, matrix, bias, target, weight, *gradients = ctx.saved_tensors
        positions, options, wanted = ctx.positions, ctx.options, ctx.needs_input_grad[:3]
        nothing = (None,) * 5
        with without_autocast(hidden):
            if torch.is_grad_enabled() or not torch._C._has_storage(upstream):  # create_graph; a wrapper of vmap
                with torch.enable_grad():
                    # Views, for the hidden states may be made of the matrix: what reaches it by them is not for here.
                    hidden, matrix, bias = (None if t is None else t.view_as(t) for t in (hidden, matrix, bias))
                    value = linear_route_composed.loss(LinearCall(hidden, matrix, bias, target, weight, options))
                    inputs = [t for t, w in zip((hidden, matrix, bias), wanted, strict=True) if w]
                    found = iter(torch.autograd.grad(value, inputs, upstream, create_graph=True))
                return *(next(found) if w else None for w in wanted), *nothing
            is_unit = options.reduction != "none" and upstream == 1
            # An infinite one by 0 would be NaN at ignored states.
            if is_unit or (can_be_scaled(hidden, options.reduction) and upstream.isfinite()):
                factor, may_change = None if is_unit else upstream, not is_graph_kept()
                return *(g if g is None else _scaled(g, factor, may_change) for g in gradients), *nothing
            return *gradients_anew(upstream, hidden, matrix, bias, positions, wanted), *nothing


def _scaled(gradient: Tensor, factor: Tensor | None, may_change: bool) -> Tensor:
    if factor is None:
        return gradient if may_change else gradient.clone()
    return gradient.mul_(factor) if may_change else gradient * factor
