"""The ways through the library loss, and what its tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from maskedce import call, cross_entropy, thresholds

ROUTES = (
    "small",
    "small transposed",
    "blockwise",
    "blockwise in small blocks",
    "blockwise over short rows",
    "composed",
)
HALF = (torch.bfloat16, torch.float16)
DTYPES = (torch.float64, torch.float32, *HALF)


def take_route(route: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Sends small inputs each way through the library ("small" is the way that they go by themselves).

    Rows of up to 15 (float64) or 31 classes are short for "small transposed" and "blockwise over short rows"; for the others
    none is.
    """
    assert route in ROUTES
    short = 128 if route in ("small transposed", "blockwise over short rows") else 0
    monkeypatch.setattr(thresholds, "SHORT_ROW_BYTES", short)
    if route == "small transposed":
        monkeypatch.setattr(thresholds, "TRANSPOSED_BYTES", 0)
    if route != "small":
        monkeypatch.setattr(cross_entropy, "torch_loss_if_right", lambda *arguments: None)
    if route == "composed":
        monkeypatch.setattr(cross_entropy, "values_are_readable", lambda input: False)
    if route.startswith("blockwise"):
        monkeypatch.setattr(call, "is_small", lambda input: input.numel() == 0)
    if route == "blockwise in small blocks":
        monkeypatch.setattr(thresholds, "BLOCK_LOGITS", 30)
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


def probabilities(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    """Some are 0, and they do not sum to 1."""
    q = torch.rand(shape, dtype=torch.float64)
    return (q * (q > 0.3)).to(dtype)


def by_definition(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """In float64, from l = sum_c w_c q'_c (lse - x_c) with q' = (1 - s) q + s / C, where 0 * inf is 0."""
    s, weight, classes = options.get("label_smoothing", 0.0), options.get("weight"), input.shape[1]
    share = (1 - s) * target.double() + s / classes
    if weight is not None:
        share = share * weight.double().view(-1, *[1] * (input.dim() - 2))
    log_p = input.double() - input.double().logsumexp(1, keepdim=True)
    losses = -(share * log_p.masked_fill(share == 0, 0)).sum(1)
    reduction = options.get("reduction", "mean")
    if reduction == "none":
        return losses
    divisor = options.get("normalizer") or losses.numel()
    return losses.sum() / (divisor if reduction == "mean" else 1)


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    eps = torch.finfo(dtype).eps
    return {"rtol": eps if dtype in HALF else 20 * eps, "atol": 20 * min(eps, 1.2e-7)}
