"""Route of many logits on the CPU: the gradient is made along with the loss, in one buffer of the logits' size or in their place."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .blockwise import blockwise_pass, scale_in_place
from .call import Call
from .formula import Objective, reduced, scale_of, working_dtype
from .route_composed import composed_gradient


def loss(call: Call) -> Tensor:
    objective = call.objective()
    if call.wants_gradient:
        return _Blockwise.apply(call.input, objective, call.overwrites)
    return reduced(blockwise_pass(call.input, objective, None)[0], objective).to(objective.dtype)


class _Blockwise(torch.autograd.Function):
    """The loss; and, made of the softmax at hand, its gradient for an upstream gradient of 1.

    For another one, the backward pass scales it in place in float32 and float64, and makes it anew in half types, where
    the rounding has to come last. Of losses of positions nobody knows the upstream gradients yet: there, the gradient is
    left to the backward pass.

    In place, the gradient is saved instead of the logits, which it has overwritten. They are gone then: bfloat16 rounds a
    second time for an upstream gradient that is not a power of two. In float16 a gradient for 1 would be too small to be
    told from 0, which is what a scaled loss is for; there it is left to the backward pass as well.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, objective: Objective, inplace: bool) -> Tensor:
        waits = objective.reduction == "none" or (inplace and input.dtype == torch.float16)
        scale = None if waits else _reciprocal(objective.denominator)
        is_overwritten = inplace and scale is not None
        losses, gradient = blockwise_pass(input, objective, scale, into=input if is_overwritten else None)
        if is_overwritten:
            gradient = _moved(gradient, input)
        ctx.save_for_backward(None if is_overwritten else input, *objective[:3], gradient)
        ctx.options, ctx.inplace = objective[3:], inplace
        return reduced(losses, objective).to(objective.dtype, copy=True)  # a view could not be changed in place

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        input, target, ignored, weight, gradient = ctx.saved_tensors
        objective = Objective(target, ignored, weight, *ctx.options)
        if torch.is_grad_enabled() or not torch._C._has_storage(upstream):  # create_graph; a wrapper of vmap
            if ctx.inplace:
                raise RuntimeError(
                    "inplace=True: expected a plain backward pass, for the logits are gone; pass inplace=False"
                )
            return composed_gradient(input, upstream, objective), None, None
        return _gradient(ctx, input, objective, upstream, gradient), None, None


def _gradient(
    ctx: Any, input: Tensor | None, objective: Objective, upstream: Tensor, gradient: Tensor | None
) -> Tensor:
    may_change = not is_graph_kept()
    if gradient is None:
        room = input.detach() if ctx.inplace and may_change else None
        scale = scale_of(upstream, objective, working_dtype(input))
        _, gradient = blockwise_pass(input if room is None else room, objective, scale, wants_losses=False, into=room)
        return gradient if room is None else _moved(gradient, room)
    factor, gradient = float(upstream), gradient.detach()
    if factor == 1:
        return gradient if may_change else gradient.clone()
    if input is not None and input.dtype != working_dtype(input):
        scale = factor * _reciprocal(objective.denominator)
        return blockwise_pass(input, objective, scale, wants_losses=False, into=gradient if may_change else None)[1]
    return scale_in_place(gradient if may_change else gradient.clone(), factor, objective.ignored)


def _moved(gradient: Tensor, logits: Tensor) -> Tensor:
    """The gradient in the place of the logits, where it is already unless their strides did not allow it."""
    return logits if gradient.data_ptr() == logits.data_ptr() else logits.copy_(gradient)


def _reciprocal(denominator: Tensor | float) -> float:
    assert not isinstance(denominator, Tensor)  # values have been looked at
    return 1 / denominator if denominator else math.inf


def is_graph_kept() -> bool:
    """Whether backward may come again (retain_graph), so that what it has saved must stay."""
    asked = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return asked is None or asked()
