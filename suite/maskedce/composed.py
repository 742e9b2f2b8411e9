"""The loss in plain torch operations that never branch on a value: other devices, torch.func, torch.compile, second derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from .terms import Question, losses_of, reduced, scale_of, shares_of, smoothed, weighed, working_dtype


def composed(input: Tensor, question: Question) -> Tensor:
    x = _blanked(input, question)
    x = x - x.detach().amax(1, keepdim=True)
    # Unlike log_softmax, this sums carefully, in the backward pass too; logsumexp, whose maximum is the one above over again, is
    # compiled wrongly by torch 2.13 where the classes are not last in memory.
    log_p = x - x.exp().sum(1, keepdim=True).log()
    if question.is_about_classes:
        # Compiled by older versions of torch, a negative index counts from the end.
        target = torch.where(question.target < 0, input.shape[1], question.target)
        losses = losses_of(log_p, target, shares_of(input, target, question))
    else:
        losses = weighed(-log_p, smoothed(question.target, question, x.dtype)).sum(1, keepdim=True)
    if question.ignored is not None:
        losses = losses.masked_fill(question.ignored, 0)
    return reduced(losses, question).to(question.dtype)


def composed_gradient(input: Tensor, upstream: Tensor, question: Question) -> Tensor:
    """The gradient, to be differentiated again with respect to ``input`` and ``upstream``."""
    p = _blanked(input, question).softmax(1)
    p = p / p.sum(1, keepdim=True)  # not quite 1: softmax adds up carelessly
    if question.is_about_classes:
        shares = shares_of(input, question.target, question)
        gradient = (shares.total * p).scatter_add(1, question.target, -shares.target.expand(question.target.shape))
        if shares.classes is not None:
            gradient = gradient - shares.classes
    else:
        share = smoothed(question.target, question, p.dtype)
        gradient = share.sum(1, keepdim=True) * p - share
    gradient = gradient * scale_of(upstream, question, p.dtype)
    if question.ignored is not None:
        gradient = gradient.masked_fill(question.ignored, 0)
    return gradient.to(input.dtype)


def _blanked(input: Tensor, question: Question) -> Tensor:
    x = input if question.ignored is None else input.masked_fill(question.ignored, 0)
    return x.to(working_dtype(input))
