"""Route of plain torch operations that never branch on a value: other devices, torch.func, torch.compile, second derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from .call import Call
from .formula import Objective, losses_of, reduced, scale_of, shares_of, smoothed, weighed, working_dtype


def loss(call: Call) -> Tensor:
    return composed(call.input, call.objective())


def composed(input: Tensor, objective: Objective) -> Tensor:
    x = _blanked(input, objective)
    x = x - x.detach().amax(1, keepdim=True)
    # Unlike log_softmax, this sums carefully, in the backward pass too; logsumexp, whose maximum is the one above over again, is
    # compiled wrongly by torch 2.13 where the classes are not last in memory.
    log_p = x - x.exp().sum(1, keepdim=True).log()
    if objective.has_class_indices:
        # Compiled by older versions of torch, a negative index counts from the end.
        target = torch.where(objective.target < 0, input.shape[1], objective.target)
        losses = losses_of(log_p, target, shares_of(input, target, objective))
    else:
        losses = weighed(-log_p, smoothed(objective.target, objective, x.dtype)).sum(1, keepdim=True)
    if objective.ignored is not None:
        losses = losses.masked_fill(objective.ignored, 0)
    return reduced(losses, objective).to(objective.dtype)


def composed_gradient(input: Tensor, upstream: Tensor, objective: Objective) -> Tensor:
    """The gradient, to be differentiated again with respect to ``input`` and ``upstream``."""
    p = _blanked(input, objective).softmax(1)
    p = p / p.sum(1, keepdim=True)  # not quite 1: softmax adds up carelessly
    if objective.has_class_indices:
        shares = shares_of(input, objective.target, objective)
        gradient = (shares.total * p).scatter_add(1, objective.target, -shares.target.expand(objective.target.shape))
        if shares.classes is not None:
            gradient = gradient - shares.classes
    else:
        share = smoothed(objective.target, objective, p.dtype)
        gradient = share.sum(1, keepdim=True) * p - share
    gradient = gradient * scale_of(upstream, objective, p.dtype)
    if objective.ignored is not None:
        gradient = gradient.masked_fill(objective.ignored, 0)
    return gradient.to(input.dtype)


def _blanked(input: Tensor, objective: Objective) -> Tensor:
    x = input if objective.ignored is None else input.masked_fill(objective.ignored, 0)
    return x.to(working_dtype(input))
