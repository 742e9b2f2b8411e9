"""The ways through the library loss, and what its tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from maskedce import cross_entropy, guarded, sweep

ROUTES = ("guarded", "turned", "blocks", "small blocks", "blocks of short rows", "composed")
HALF = (torch.bfloat16, torch.float16)
DTYPES = (torch.float64, torch.float32, *HALF)


def take_route(route: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Sends small inputs each way through the library ("guarded" is the way that they go by themselves).

    Rows of up to 15 (float64) or 31 classes are short for "turned" and "blocks of short rows"; for the others none is.
    """
    monkeypatch.setattr(sweep, "REGISTER_BYTES", 128 if route in ("turned", "blocks of short rows") else 0)
    if route == "turned":
        monkeypatch.setattr(guarded, "_TURNED_BYTES", 0)
    if route != "guarded":
        monkeypatch.setattr(cross_entropy, "plainly", lambda *arguments: None)
    if route == "composed":
        monkeypatch.setattr(cross_entropy, "can_be_looked_at", lambda input: False)
    if "blocks" in route:
        monkeypatch.setattr(cross_entropy, "is_few", lambda input: input.numel() == 0)
    if route == "small blocks":
        monkeypatch.setattr(sweep, "_BLOCK", 30)
    return route


def run(
    loss: Callable[..., Tensor], input: Tensor, target: Tensor, upstream: Tensor | float | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient for an upstream gradient of 1 if none is given."""
    input = input.detach().requires_grad_()
    value = loss(input, target, **options)
    if not isinstance(upstream, Tensor):
        upstream = torch.full_like(value, 1.0 if upstream is None else upstream)
    (gradient,) = torch.autograd.grad(value, input, upstream)
    return value.detach(), gradient


def batch(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, ignored: float = 0.0) -> tuple[Tensor, Tensor]:
    target = torch.randint(shape[1], (shape[0], *shape[2:]))
    target[torch.rand(target.shape) < ignored] = -100
    return (2 * torch.randn(shape, dtype=torch.float64)).to(dtype), target


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], **tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.to(one.dtype), equal_nan=True, **tolerance)
