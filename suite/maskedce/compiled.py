"""The loss under torch.compile on the CPU: many logits by the sweep, as an operator; few by what the compiler fuses well.

The operator is taken as it is, without a look inside or a break of the graph. Its forward pass makes no gradient:
compiled, the two passes are two calls that share nothing but their arguments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .arguments import check_range, is_ignored
from .sweep import goes_by_rows, sweep
from .terms import Question, as_tensor, reduced, scale_of, weighed, working_dtype

_ARGUMENTS = "Tensor input, Tensor target, Tensor? weight, int[] ignored, float smoothing, str reduction, Tensor? normalizer, bool widened"


def can_be_fused(question: Question) -> bool:
    return question.is_about_classes and (question.weight is None or not question.smoothing)


def loss_of_few_logits(input: Tensor, target: Tensor, values: tuple[int, ...], question: Question) -> Tensor:
    losses = _Fused.apply(input, target.long(), values, question.smoothing)
    if question.weight is not None:
        losses = weighed(losses, question.weight[question.target])
    return reduced(losses, question).to(question.dtype)


class _Fused(torch.autograd.Function):
    """The losses of the positions, for equal weights, in operations that make one loop over the logits each way.

    What is kept between the passes are single numbers per position. No loop over the logits reads a mask of the ignored
    positions, which would take longer than all the rest, and none but the forward pass's sums over classes.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor, values: tuple[int, ...], smoothing: float) -> Tensor:
        ignored = is_ignored(target, values)
        # Compiled by older versions of torch, a negative index counts from the end.
        index = torch.where(ignored, 0, torch.where(target < 0, input.shape[1], target)).unsqueeze(1)
        x = input.to(working_dtype(input))
        largest = x.amax(1, keepdim=True)
        lse = (x - largest).exp().sum(1, keepdim=True).log()
        losses = lse
        if smoothing < 1:
            losses = losses - (1 - smoothing) * (input.gather(1, index).to(x.dtype) - largest)
        if smoothing:
            losses = losses - smoothing * (x - largest).mean(1, keepdim=True)
        ctx.save_for_backward(input, target, largest, lse)
        ctx.values, ctx.smoothing = values, smoothing
        return torch.where(ignored, 0, losses.squeeze(1)).unsqueeze(1)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        input, target, largest, lse = ctx.saved_tensors
        x = input.to(largest.dtype)
        p = (x - largest - lse).exp()
        classes = torch.arange(input.shape[1], device=input.device).view(-1, *[1] * (input.dim() - 2))
        # Asked of another shape than in the forward pass, what is ignored is found again instead of being kept as a mask.
        target = target.unsqueeze(1)
        gradient = torch.where(classes == target, p - (1 - ctx.smoothing), p)
        if ctx.smoothing:
            gradient = gradient - ctx.smoothing / input.shape[1]
        gradient = torch.where(is_ignored(target, ctx.values), 0, gradient * upstream)
        return gradient.to(input.dtype), None, None, None


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
    normalizer = None if normalizer is None else as_tensor(normalizer, input.device)
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
    gradient = torch.ops.xentcheck.masked_cross_entropy_backward(
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
