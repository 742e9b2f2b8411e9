"""Route of many logits under torch.compile: the chunked pass as an operator that it takes as it is, without a look inside or a break
of the graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .arguments import is_ignored
from .formula import as_tensor, working_dtype
from .linear_chunks import (
    LinearCall,
    Options,
    Positions,
    can_be_scaled,
    gradients_anew,
    loss_and_gradients,
    positions_of,
    wanted_gradients,
)
from .route_compiled_operator import refuse_second_derivatives

_ARGUMENTS = "Tensor hidden, Tensor matrix, Tensor? bias, Tensor target, Tensor? weight, int[] ignored, str reduction, float smoothing, bool widened, Tensor? normalizer, bool[] wanted"


def loss(call: LinearCall) -> Tensor:
    hidden, matrix, bias, target, weight, options = call
    ignored, reduction, smoothing, normalizer, dtype = options
    normalizer = None if normalizer is None else as_tensor(normalizer, hidden.device)
    wanted = wanted_gradients(hidden, matrix, bias)
    given = (list(ignored), reduction, smoothing, dtype != hidden.dtype, normalizer, wanted)
    return torch.ops.maskedce.linear_masked_cross_entropy(hidden, matrix, bias, target, weight, *given)[0]


@torch.library.custom_op(
    "maskedce::linear_masked_cross_entropy",
    mutates_args=(),
    schema=f"({_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _loss(hidden: Tensor, matrix: Tensor, bias: Tensor | None, *others: Any) -> tuple[Tensor, ...]:
    """The loss, and the gradients for an upstream gradient of 1, each empty where it is not wanted or not known yet."""
    positions, options, wanted = _positions_and_options(hidden, matrix, *others)
    loss, gradients = loss_and_gradients(hidden, matrix, bias, positions, options, wanted)
    return loss, *_filled(gradients, hidden)


@_loss.register_fake
def _(
    hidden: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    target: Tensor,
    weight: Any,
    ignored: Any,
    reduction: str,
    smoothing: Any,
    widened: bool,
    normalizer: Any,
    wanted: list[bool],
) -> tuple[Tensor, ...]:
    dtype = _dtype_of_loss(hidden, widened)
    if reduction == "none":
        return hidden.new_empty(target.shape, dtype=dtype), *_like_wanted(hidden, matrix, bias, [False] * 3)
    return hidden.new_empty((), dtype=dtype), *_like_wanted(hidden, matrix, bias, wanted)


@torch.library.custom_op(
    "maskedce::linear_masked_cross_entropy_backward",
    mutates_args=(),
    schema=f"(Tensor upstream, Tensor[] gradients, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
)
def _gradients(
    upstream: Tensor, gradients: list[Tensor], hidden: Tensor, matrix: Tensor, bias: Tensor | None, *others: Any
) -> tuple[Tensor, ...]:
    positions, options, wanted = _positions_and_options(hidden, matrix, *others)
    if options.reduction != "none" and upstream == 1:
        return tuple(g.clone() for g in gradients)
    return tuple(_filled(gradients_anew(upstream, hidden, matrix, bias, positions, wanted), hidden))


@_gradients.register_fake
def _(
    upstream: Tensor, gradients: list[Tensor], hidden: Tensor, matrix: Tensor, bias: Tensor | None, *others: Any
) -> tuple[Tensor, ...]:
    return tuple(_like_wanted(hidden, matrix, bias, others[-1]))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, matrix, bias, target, weight, *options, normalizer, wanted = inputs
    ctx.save_for_backward(hidden, matrix, bias, target, weight, normalizer, *output[1:])
    ctx.options, ctx.wanted = options, wanted
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    hidden, matrix, bias, target, weight, normalizer, *gradients = ctx.saved_tensors
    nothing = (None,) * 8
    refuse_second_derivatives()
    if upstream is None:
        return None, None, None, *nothing
    if can_be_scaled(hidden, ctx.options[1]):
        found = [gradient * upstream for gradient in gradients]
        if ctx.wanted[0]:  # 0 * inf
            found[0] = found[0].masked_fill(is_ignored(target, tuple(ctx.options[0])).unsqueeze(1), 0)
    else:
        arguments = (hidden, matrix, bias, target, weight, *ctx.options, normalizer, ctx.wanted)
        found = torch.ops.maskedce.linear_masked_cross_entropy_backward(upstream, gradients, *arguments)
    return *(g if w else None for g, w in zip(found, ctx.wanted, strict=True)), *nothing


_loss.register_autograd(_backward, setup_context=_remember)


def _positions_and_options(
    hidden: Tensor,
    matrix: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignored: list[int],
    reduction: str,
    smoothing: float,
    widened: bool,
    normalizer: Tensor | None,
    wanted: list[bool],
) -> tuple[Positions, Options, list[bool]]:
    options = Options(tuple(ignored), reduction, smoothing, normalizer, _dtype_of_loss(hidden, widened))
    return positions_of(target, len(matrix), weight, options, working_dtype(hidden)), options, wanted


def _dtype_of_loss(hidden: Tensor, widened: bool) -> torch.dtype:
    return working_dtype(hidden) if widened else hidden.dtype


def _filled(gradients: list[Tensor | None], like: Tensor) -> list[Tensor]:
    return [like.new_empty(0) if g is None else g for g in gradients]


def _like_wanted(hidden: Tensor, matrix: Tensor, bias: Tensor | None, wanted: list[bool]) -> list[Tensor]:
    tensors = (hidden, matrix, hidden if bias is None else bias)
    return [hidden.new_empty(t.shape if w else (0,)) for t, w in zip(tensors, wanted, strict=True)]
