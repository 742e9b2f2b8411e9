"""The sweep as an operator that torch.compile takes as it is, without looking inside or breaking the graph.

For many logits on the CPU it is faster than what the compiler makes of the plain operations. The forward pass makes no
gradient: compiled, the two passes are two calls that share nothing but their arguments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .arguments import check_range
from .sweep import classes_lie_together, sweep
from .terms import Question, reduced, scale_of, working_dtype

_ARGUMENTS = "Tensor input, Tensor target, Tensor? weight, int[] ignored, float smoothing, str reduction, Tensor? normalizer, bool widened"


def loss_of_many_logits(
    input: Tensor,
    target: Tensor,
    values: tuple[int, ...],
    weight: Tensor | None,
    smoothing: float,
    reduction: str,
    normalizer: Tensor | float | None,
    dtype: torch.dtype,
) -> Tensor:
    if normalizer is not None and not isinstance(normalizer, Tensor):
        normalizer = torch.full((), normalizer, dtype=torch.float64)
    options = (weight, list(values), smoothing, reduction, normalizer, dtype != input.dtype)
    return torch.ops.xentcheck.masked_cross_entropy(input, target, *options)


@torch.library.custom_op(
    "xentcheck::masked_cross_entropy", mutates_args=(), device_types="cpu", schema=f"({_ARGUMENTS}) -> Tensor"
)
def _loss(input: Tensor, *arguments: Any) -> Tensor:
    question = _asked(input, *arguments)
    return reduced(sweep(input, question, None)[0], question).to(question.dtype, copy=True)


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
    "xentcheck::masked_cross_entropy_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor upstream, {_ARGUMENTS}) -> Tensor",
)
def _gradient(upstream: Tensor, input: Tensor, *arguments: Any) -> Tensor:
    question = _asked(input, *arguments)
    return sweep(input, question, scale_of(upstream, question, working_dtype(input)), wants_losses=False)[1]


@_gradient.register_fake
def _(upstream: Tensor, input: Tensor, *arguments: Any) -> Tensor:
    if input.dim() > 2 and classes_lie_together(input):
        return input.new_empty((input.shape[0], *input.shape[2:], input.shape[1])).movedim(-1, 1)
    return input.new_empty(input.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, target, weight, *options, normalizer, widened = inputs
    ctx.save_for_backward(input, target, weight, normalizer)
    ctx.options, ctx.widened = options, widened


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    input, target, weight, normalizer = ctx.saved_tensors
    gradient = torch.ops.xentcheck.masked_cross_entropy_backward(
        upstream, input, target, weight, *ctx.options, normalizer, ctx.widened
    )
    return gradient, *[None] * 7


_loss.register_autograd(_backward, setup_context=_remember)


def _asked(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    values: list[int],
    smoothing: float,
    reduction: str,
    normalizer: Tensor | None,
    widened: bool,
) -> Question:
    question = Question.ask(input, target, tuple(values), weight, smoothing, reduction, normalizer, True)
    if question.is_about_classes:
        check_range(question.target.squeeze(1), input.shape[1], tuple(values))
    return question._replace(dtype=working_dtype(input) if widened else input.dtype)
