"""The terms of the formula. What belongs to a position keeps a class dimension of size 1: (N, 1, d1, ..., dk)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Question(NamedTuple):
    target: Tensor  # int64, 0 where ignored
    ignored: Tensor | None  # None where it is known that nothing is
    weight: Tensor | None  # (C)
    smoothing: float
    reduction: str

    @staticmethod
    def ask(target: Tensor, ignored: Tensor | None, *options: Any) -> Question:
        if ignored is None:
            return Question(target.unsqueeze(1), None, *options)
        return Question(target.masked_fill(ignored, 0).unsqueeze(1), ignored.unsqueeze(1), *options)


class Shares(NamedTuple):
    """The parts of w q; of shape () where they are the same for all positions or classes."""

    target: Tensor  # w_t (1 - s) of each position
    classes: Tensor | None  # w_c s / C of each class, (C, 1, ...); None without smoothing
    total: Tensor  # A of each position


def shares_of(x: Tensor, target: Tensor, question: Question) -> Shares:
    weight, s = question.weight, question.smoothing
    if weight is None:
        one = torch.ones((), dtype=working_dtype(x), device=x.device)
        of_target = one * (1 - s) if s < 1 else one.new_zeros(target.shape)  # a 0 has to be seen by weighed
        return Shares(of_target, one * (s / x.shape[1]) if s else None, one)
    of_target = weight[target] * (1 - s)
    of_classes = weight.view(-1, *[1] * (x.dim() - 2)) * (s / x.shape[1]) if s else None
    return Shares(of_target, of_classes, of_target + weight.mean() * s)


def losses_of(log_p: Tensor, target: Tensor, shares: Shares) -> Tensor:
    """-sum_c w_c q_c log p_c of each position."""
    if shares.classes is None:
        return weighed(-log_p.gather(1, target), shares.target)
    if shares.classes.dim():
        smooth = weighed(-log_p, shares.classes).sum(1, keepdim=True)
    else:
        smooth = -log_p.sum(1, keepdim=True) * shares.classes
    return smooth + weighed(-log_p.gather(1, target), shares.target)


def weighed(nll: Tensor, share: Tensor) -> Tensor:
    """nll * share, where inf * 0 is 0."""
    if share.dim() == 0:  # the same for all, and not 0
        return nll * share
    return nll.masked_fill((share == 0) & nll.isposinf(), 0) * share


def reduced(losses: Tensor, question: Question) -> Tensor:
    if question.reduction == "none":
        return losses.squeeze(1)
    return losses.sum() / denominator(question, losses.dtype)


def denominator(question: Question, dtype: torch.dtype) -> Tensor:
    """Of the mean, the sum of w_t over the valid positions, or 1 where there is none and the sum is 0; otherwise 1."""
    target, ignored, weight = question[:3]
    if question.reduction != "mean" or not target.numel():
        return torch.ones((), dtype=dtype, device=target.device)
    counted = torch.ones_like(target, dtype=dtype) if weight is None else weight[target]
    if ignored is None:
        return counted.sum()
    return torch.where(ignored.all(), 1, counted.masked_fill(ignored, 0).sum())


def scale_of(upstream: Tensor, question: Question, dtype: torch.dtype) -> Tensor:
    """What the gradients of the positions' losses are multiplied with; of shape () where it is the same for all."""
    upstream = upstream.unsqueeze(1) if upstream.dim() else upstream
    return upstream.to(dtype) / denominator(question, dtype)


def working_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
