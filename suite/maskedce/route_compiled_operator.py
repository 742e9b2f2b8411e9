"""Route of many logits under torch.compile on the CPU: the blockwise passes as an operator.

The operator is taken as it is, without a look inside or a break of the graph. Its forward pass makes no gradient:
compiled, the two passes are two calls that share nothing but their arguments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .arguments import check_range
from .blockwise import blockwise_pass, goes_by_rows
from .call import Call
from .formula import Objective, as_tensor, dtype_of_loss, reduced, scale_of, working_dtype

_ARGUMENTS = "Tensor input, Tensor target, Tensor? weight, int[] ignored, float smoothing, str reduction, Tensor? normalizer, bool widened"


def loss(call: Call) -> Tensor:
    input, normalizer = call.input, call.normalizer
    normalizer = None if normalizer is None else as_tensor(normalizer, input.device)
    options = (call.weight, list(call.ignored_values), call.smoothing, call.reduction, normalizer)
    widened = dtype_of_loss(input) != input.dtype
    return torch.ops.maskedce.masked_cross_entropy(input, call.target, *options, widened)


@torch.library.custom_op(
    "maskedce::masked_cross_entropy", mutates_args=(), device_types="cpu", schema=f"({_ARGUMENTS}) -> Tensor"
)
def _loss(input: Tensor, *arguments: Any) -> Tensor:
    objective = _objective_of(input, *arguments)
    return reduced(blockwise_pass(input, objective, None)[0], objective).to(objective.dtype, copy=True)


@_loss.register_fake
def _(
    input: Tensor,
    target: Tensor,
    weight: Any,
    ignored: Any,
    smoothing: Any,
    reduction: str,
    normalizer: Any,
    widened: bool,
) -> Tensor:
    shape = (input.shape[0], *input.shape[2:]) if reduction == "none" else ()
    return input.new_empty(shape, dtype=working_dtype(input) if widened else input.dtype)


@torch.library.custom_op(
    "maskedce::masked_cross_entropy_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor upstream, {_ARGUMENTS}) -> Tensor",
)
def _gradient(upstream: Tensor, input: Tensor, *arguments: Any) -> Tensor:
    objective = _objective_of(input, *arguments)
    return blockwise_pass(input, objective, scale_of(upstream, objective, working_dtype(input)), wants_losses=False)[1]


@_gradient.register_fake
def _(upstream: Tensor, input: Tensor, *arguments: Any) -> Tensor:
    if input.dim() > 2 and goes_by_rows(input):
        return input.new_empty((input.shape[0], *input.shape[2:], input.shape[1])).movedim(-1, 1)
    return input.new_empty(input.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, target, weight, *options, normalizer, widened = inputs
    ctx.save_for_backward(input, target, weight, normalizer)
    ctx.options, ctx.widened = options, widened


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    refuse_second_derivatives()
    input, target, weight, normalizer = ctx.saved_tensors
    gradient = torch.ops.maskedce.masked_cross_entropy_backward(
        upstream, input, target, weight, *ctx.options, normalizer, ctx.widened
    )
    return gradient, *[None] * 7


def refuse_second_derivatives() -> None:
    """Where a backend of torch.compile runs the operators as they stand, the gradient would count as a constant."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "create_graph: expected False under torch.compile, which has no second derivatives, found True"
        )


_loss.register_autograd(_backward, setup_context=_remember)


def _objective_of(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    values: list[int],
    smoothing: float,
    reduction: str,
    normalizer: Tensor | None,
    widened: bool,
) -> Objective:
    objective = Objective.of(input, target, tuple(values), weight, smoothing, reduction, normalizer, True)
    if objective.has_class_indices:
        check_range(objective.target.squeeze(1), input.shape[1], tuple(values))
    return objective._replace(dtype=working_dtype(input) if widened else input.dtype)
