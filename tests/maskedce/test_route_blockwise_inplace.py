"""The library loss with ``inplace=True``: the gradient lies where the logits lay, and autograd knows."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from forced_routes import DTYPES, HALF, batch, run
from torch import Tensor

from maskedce import masked_cross_entropy


def overwriting(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    return masked_cross_entropy(input * 1, target, inplace=True, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(6, 5), (3, 5, 4), (2, 5, 3, 2)], ids=str)
def test_same_answers(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    input, target = batch(shape, dtype, ignored=0.4)
    input.movedim(1, -1)[target == -100] = torch.nan
    for reduction, smoothing, weight in product(("none", "mean", "sum"), (0.0, 0.2), (None, torch.rand(5))):
        options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing, "weight": weight}
        for upstream in (1.0, -0.3):
            found = run(overwriting, input, target, upstream, **options)
            expected = run(masked_cross_entropy, input, target, upstream, **options)
            eps = torch.finfo(dtype).eps  # in half types, an upstream gradient is a second rounding
            tolerance = {
                "rtol": eps if dtype in HALF else 10 * eps,
                "atol": 1e-6 if dtype == torch.float16 else 10 * min(eps, 1e-8),
            }
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, **tolerance)
        _, gradient = run(overwriting, input, target, torch.inf, **options)
        assert (gradient.movedim(1, -1)[target == -100] == 0).all()


@pytest.mark.parametrize("layout", ["contiguous", "classes last", "strided", "transposed"])
def test_the_gradient_is_where_the_logits_were(layout: str) -> None:
    arranged: dict[str, Callable[[Tensor], Tensor]] = {
        "contiguous": lambda x: x.contiguous(),
        "classes last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
        "strided": lambda x: torch.stack([x, x], -1)[..., 0],
        "transposed": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    }
    for shape, (reduction, upstream) in product(((6, 5), (2, 5, 3, 4)), (("mean", 1.0), ("mean", 3.0), ("none", 1.0))):
        input, target = batch(shape, ignored=0.4)
        _, expected = run(masked_cross_entropy, input, target, upstream, reduction=reduction)
        logits = arranged[layout](input).requires_grad_().view_as(input)
        gradients: list[Tensor] = []
        logits.register_hook(gradients.append)
        loss = masked_cross_entropy(logits, target, reduction=reduction, inplace=True)
        torch.autograd.backward(loss, torch.full_like(loss, upstream))
        torch.testing.assert_close(logits.detach(), expected)
        torch.testing.assert_close(gradients, [expected])
        assert gradients[0].data_ptr() == logits.data_ptr()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autograd_notices_who_else_needs_the_logits(reduction: str) -> None:
    source, target = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, -100, 2])
    logits = torch.tanh(source)  # its backward pass needs what it returned
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        masked_cross_entropy(logits, target, reduction=reduction, inplace=True).sum().backward()
    logits = source * 1
    penalty = (logits**2).sum()
    masked_cross_entropy(logits, target, reduction=reduction, inplace=True).sum().backward(
        retain_graph=reduction == "mean"
    )
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        penalty.backward()


def test_changes_to_the_logits_in_between_are_noticed() -> None:
    source, target = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, -100, 2])
    logits = source * 1
    loss = masked_cross_entropy(logits, target, inplace=True)
    with torch.no_grad():
        logits.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_backward_twice() -> None:
    source, target = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, -100, 2])
    loss = masked_cross_entropy(source * 1, target, inplace=True)
    _, expected = run(masked_cross_entropy, source, target)
    for upstream in (1.0, 3.0, 1.0):
        (found,) = torch.autograd.grad(loss, source, torch.tensor(upstream), retain_graph=True)
        torch.testing.assert_close(found, upstream * expected)


def test_second_derivatives_are_refused() -> None:
    source, target = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, -100, 2])
    for reduction in ("mean", "none"):
        loss = masked_cross_entropy(source * 1, target, reduction=reduction, inplace=True).sum()
        with pytest.raises(RuntimeError, match="inplace=True: expected a plain backward pass"):
            torch.autograd.grad(loss, source, create_graph=True)


def test_logits_that_nobody_differentiates_stay() -> None:
    input, target = batch((4, 3), ignored=0.3)
    before = input.clone()
    masked_cross_entropy(input, target, inplace=True)
    with torch.no_grad():
        masked_cross_entropy(input.requires_grad_() * 1, target, inplace=True)
    torch.func.grad(lambda x: masked_cross_entropy(x, target, inplace=True))(input.detach())
    assert torch.equal(input, before)


def test_expanded_logits_and_empty_batches_stay() -> None:
    row = torch.randn(1, 3, requires_grad=True)
    before = row.detach().clone()
    masked_cross_entropy(row.expand(4, 3), torch.tensor([0, 1, 2, -100]), inplace=True).backward()
    assert torch.equal(row, before)
    _, expected = run(lambda x, t: masked_cross_entropy(x.expand(4, 3), t), row, torch.tensor([0, 1, 2, -100]))
    torch.testing.assert_close(row.grad, expected)
    assert overwriting(torch.zeros(0, 3, requires_grad=True), torch.zeros(0, dtype=torch.int64)) == 0


def test_logits_that_overlap_are_not_overwritten() -> None:
    source = torch.randn(6, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 2, 0])
    found, wanted = (
        torch.autograd.grad(masked_cross_entropy((source * 1).unfold(0, 3, 1), target, inplace=inplace), source)[0]
        for inplace in (True, False)
    )
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_scaled_float16_loss_keeps_small_gradients(reduction: str) -> None:
    """A gradient for an upstream gradient of 1 would be 0 in float16 before the scale reaches it."""
    scale = 2.0**16 if reduction == "mean" else 2.0**3
    x, target = torch.randn(2048, 400).half(), torch.randint(400, (2048,))
    found = []
    for inplace in (False, True):
        leaf = x.clone().requires_grad_()
        (masked_cross_entropy(leaf * 1, target, reduction=reduction, inplace=inplace).float() * scale).backward()
        found.append(leaf.grad)
    assert found[0].all()
    assert torch.equal(*found)
