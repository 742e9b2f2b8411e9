"""One call of the loss, its arguments checked: what the conditions of the routes look at and the routes compute from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import check_range
from .formula import Objective
from .route_small import is_small


class Call(NamedTuple):
    """A call with logits (N, C, d1, ..., dk), and what several routes ask about it."""

    input: Tensor
    target: Tensor
    ignored_values: tuple[int, ...]
    weight: Tensor | None
    smoothing: float
    reduction: str
    normalizer: Tensor | float | None
    values_readable: bool  # whether to branch on values of tensors
    wants_gradient: bool  # of the logits
    target_wants_gradient: bool
    overwrites: bool  # whether the gradient is to take the place of the logits
    is_small: bool  # False where it would have to be overwritten, which the small routes cannot

    @staticmethod
    def of(
        input: Tensor,
        target: Tensor,
        ignored_values: tuple[int, ...],
        weight: Tensor | None,
        smoothing: float,
        reduction: str,
        normalizer: Tensor | float | None,
        values_readable: bool,
        inplace: bool,
    ) -> Call:
        grad = torch.is_grad_enabled()
        wants_gradient = grad and input.requires_grad
        overwrites = inplace and wants_gradient and values_readable and _has_own_places(input)
        return Call(
            input,
            target,
            ignored_values,
            weight,
            smoothing,
            reduction,
            normalizer,
            values_readable,
            wants_gradient,
            grad and target.requires_grad,
            overwrites,
            values_readable and not overwrites and is_small(input),
        )

    def objective(self) -> Objective:
        """The terms of the loss. Raises IndexError for a target out of range, where values can be read."""
        objective = Objective.of(*self[:8])
        if self.values_readable and objective.has_class_indices:
            check_range(objective.target.squeeze(1), self.input.shape[1], self.ignored_values)
        return objective


def _has_own_places(input: Tensor) -> bool:
    """Whether there is something to overwrite, and no two logits can stand in one place."""
    reach = 0
    for stride, size in sorted((s, n) for s, n in zip(input.stride(), input.shape, strict=True) if n > 1):
        if stride <= reach:
            return False
        reach += stride * (size - 1)
    return bool(input.numel())
