"""Class probabilities that may hold zeros and need not sum to 1, by every route."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forced_routes import DTYPES, assert_same, batch, by_definition, probabilities, run, tolerance

from maskedce import masked_cross_entropy


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(8, 11), (1, 3), (5, 1), (3, 5, 4), (2, 4, 3, 5)], ids=str)
def test_probabilities_agree_with_the_definition(route: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for reduction, smoothing, weighted in product(("none", "mean", "sum"), (0.0, 0.3, 1.0), (False, True)):
        input, _ = batch(shape, dtype)
        target = probabilities(shape, dtype)
        options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
        if weighted:
            options["weight"] = torch.rand(shape[1]).to(dtype)
        upstream = torch.randn((shape[0], *shape[2:]) if reduction == "none" else ()).to(dtype)
        found = run(masked_cross_entropy, input, target, upstream, **options)
        assert found[0].dtype == found[1].dtype == dtype
        expected = run(by_definition, input.double(), target, upstream.double(), **options)
        assert_same(found, expected, **tolerance(dtype))
        if dtype == torch.float64:
            assert_same(expected, run(F.cross_entropy, input, target, upstream, **options))


def test_probabilities_in_another_dtype_and_layout(route: str) -> None:
    for shape in ((6, 5), (2, 5, 3, 2)):
        input, q = batch(shape, torch.float32)[0], probabilities(shape)
        expected = run(by_definition, input, q, label_smoothing=0.1)
        for target in (q, q.float(), q.movedim(1, -1).contiguous().movedim(-1, 1), q.expand(2, *shape)[1]):
            for x in (input, input.movedim(1, -1).contiguous().movedim(-1, 1)):
                assert_same(run(masked_cross_entropy, x, target, label_smoothing=0.1), expected)


def test_one_hot_probabilities_are_classes(route: str) -> None:
    input, target = batch((6, 5))
    for smoothing in (0.0, 0.2):
        expected = run(masked_cross_entropy, input, target, label_smoothing=smoothing)
        assert_same(
            run(masked_cross_entropy, input, F.one_hot(target, 5).double(), label_smoothing=smoothing), expected
        )


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_no_probability_times_an_infinite_term_is_zero(route: str, smoothing: float) -> None:
    inf = math.inf
    input = torch.tensor([[0.0, 1, -inf], [2, 1, 0], [-inf, 1, -inf], [0, 1, -inf]], dtype=torch.float64)
    target = torch.tensor([[0.25, 0.75, 0], [0.5, 0, 0.5], [0, 1, 0], [0, 0.5, 0.5]], dtype=torch.float64)
    weight = torch.tensor([1.0, 2.0, 0.0]) if smoothing else None
    loss, gradient = run(
        masked_cross_entropy, input, target, reduction="none", label_smoothing=smoothing, weight=weight
    )
    expected = run(by_definition, input, target, reduction="none", label_smoothing=smoothing, weight=weight)
    torch.testing.assert_close(loss, expected[0])
    assert loss[:2].isfinite().all()
    assert (loss[3] == inf) == (smoothing == 0)
    w = torch.ones(3) if weight is None else weight
    share = w * ((1 - smoothing) * target + smoothing / 3)
    torch.testing.assert_close(gradient, share.sum(1, keepdim=True) * input.softmax(1) - share)


def test_bad_logits_beside_probabilities_are_bad(route: str) -> None:
    input = torch.tensor([[math.nan, 1, 2], [math.inf, 1, 2], [-math.inf] * 3, [1, 2, 3]])
    loss, gradient = run(masked_cross_entropy, input, torch.full((4, 3), 0.5), reduction="none")
    assert loss.isnan().tolist() == gradient.isnan().all(1).tolist() == [True, True, True, False]


def test_probabilities_under_a_normaliser_and_in_empty_batches(route: str) -> None:
    input, target = batch((6, 5))[0], probabilities((6, 5))
    assert_same(run(masked_cross_entropy, input, target, normalizer=4), run(by_definition, input, target, normalizer=4))
    for shape, normalizer in product(((0, 5), (2, 5, 0)), (None, 0, 3)):
        loss, gradient = run(masked_cross_entropy, torch.zeros(shape), torch.zeros(shape), normalizer=normalizer)
        assert loss == 0
        assert gradient.shape == shape
    assert masked_cross_entropy(torch.zeros(2, 5, 0), torch.zeros(2, 5, 0), reduction="none").shape == (2, 0)


def test_unbatched_probabilities(route: str) -> None:
    input, target = torch.randn(5), torch.rand(5)
    for reduction in ("none", "mean", "sum"):
        found = run(masked_cross_entropy, input, target, reduction=reduction)
        assert_same(found, run(F.cross_entropy, input, target, reduction=reduction))
        assert found[0].shape == ()


def test_probabilities_that_require_a_gradient(route: str) -> None:
    input, target = batch((4, 3))[0].requires_grad_(), probabilities((4, 3)).requires_grad_()
    weight = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    for options in ({}, {"weight": weight, "label_smoothing": 0.2, "reduction": "sum"}):
        found = torch.autograd.grad(masked_cross_entropy(input, target, **options), (input, target))
        assert_same(found, torch.autograd.grad(F.cross_entropy(input, target, **options), (input, target)))
    assert torch.autograd.gradcheck(lambda x, q: masked_cross_entropy(x, q, reduction="none"), (input, target))
    assert torch.autograd.gradgradcheck(lambda x, q: masked_cross_entropy(x, q, reduction="none"), (input, target))
    excluded = torch.tensor([[0.0, 1.0, -math.inf]], requires_grad=True)
    q = torch.tensor([[0.5, 0.5, 0.0]], requires_grad=True)
    assert all(g.isfinite().all() for g in torch.autograd.grad(masked_cross_entropy(excluded, q), (excluded, q)))


def test_many_logits(route: str) -> None:
    shapes = ((300, 4000), (2, 20, 200, 150))
    if route == "blockwise in small blocks":  # of 30 logits; there are many blocks of fewer
        shapes = ((60, 400), (2, 20, 20, 30))
    for shape, dtype in zip(shapes, (torch.float32, torch.bfloat16), strict=True):
        input, target = batch(shape, dtype)[0], probabilities(shape, dtype)
        loss, gradient = run(masked_cross_entropy, input, target, 3.0, label_smoothing=0.1)
        expected, slope = run(by_definition, input.double(), target, 3.0, label_smoothing=0.1)
        share = 0.9 * target.double() + 0.1 / shape[1]
        terms = (
            (share.sum(1, keepdim=True) * input.double().softmax(1) + share) * 3 / loss.numel() / share[:, 0].numel()
        )
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(loss.double(), expected, rtol=eps, atol=0)
        assert ((gradient - slope).abs() <= eps / 2 * slope.abs() + 2e-6 * terms).all()
