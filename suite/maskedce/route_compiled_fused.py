"""Route of logits under torch.compile that are not many: a loss in operations that the compiler fuses well."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .arguments import is_ignored
from .call import Call
from .formula import reduced, weighed, working_dtype


def loss(call: Call) -> Tensor:
    objective = call.objective()
    losses = _Fused.apply(call.input, call.target.long(), call.ignored_values, objective.smoothing)
    if objective.weight is not None:
        losses = weighed(losses, objective.weight[objective.target])
    return reduced(losses, objective).to(objective.dtype)


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
