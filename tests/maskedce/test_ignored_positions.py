"""Ignored positions, infinite logits and weights of zero, by every route."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forced_routes import DTYPES, assert_same, batch, run

from maskedce import masked_cross_entropy

BAD = (math.nan, math.inf, -math.inf, 1e30)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ignored_positions_are_as_good_as_deleted(route: str, dtype: torch.dtype, bad: float) -> None:
    bad = min(bad, torch.finfo(dtype).max) if math.isfinite(bad) else bad  # in float16, 1e30 is none
    for shape, reduction, smoothing, weighted in product(
        ((9, 5), (3, 5, 4)), ("none", "mean", "sum"), (0.0, 0.2), (False, True)
    ):
        input, target = batch(shape, dtype)
        rows, flat = input.movedim(1, -1).reshape(-1, 5), target.reshape(-1)
        options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
        if weighted:
            options["weight"] = torch.rand(5) + 0.1
        flat[[0, 3, 4, -1]] = -100
        rows[[0, 3, 4]] = bad
        rows[-1, 2] = bad
        valid = flat != -100
        upstream = torch.ones(shape[0], *shape[2:], dtype=dtype) if reduction == "none" else torch.ones((), dtype=dtype)
        if reduction == "none":
            upstream.view(-1)[~valid] = math.inf
        input = rows.reshape(shape[0], *shape[2:], 5).movedim(-1, 1)
        loss, gradient = run(masked_cross_entropy, input, flat.view(target.shape), upstream, **options)
        kept_upstream = upstream.view(-1)[valid] if reduction == "none" else upstream
        kept_loss, kept_gradient = run(masked_cross_entropy, rows[valid], flat[valid], kept_upstream, **options)
        gradient = gradient.movedim(1, -1).reshape(-1, 5)
        assert (gradient[~valid] == 0).all()
        if reduction == "none":
            assert (loss.reshape(-1)[~valid] == 0).all()
            loss = loss.reshape(-1)[valid]
        eps = 4 * torch.finfo(dtype).eps
        assert_same((loss, gradient[valid]), (kept_loss, kept_gradient), rtol=eps, atol=eps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 2, 2), (0, 3), (0, 3, 4), (2, 3, 0)], ids=str)
def test_mean_over_no_position_is_zero(route: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    input, _ = batch(shape, dtype)
    target = torch.full((shape[0], *shape[2:]), -100)
    for reduction, smoothing, weight, bad in product(
        ("none", "mean", "sum"), (0.0, 0.2), (None, torch.ones(3)), (False, True)
    ):
        loss, gradient = run(
            masked_cross_entropy,
            torch.full_like(input, math.nan) if bad else input,
            target,
            reduction=reduction,
            label_smoothing=smoothing,
            weight=weight,
        )
        assert loss.shape == (target.shape if reduction == "none" else ())
        assert (loss == 0).all()
        assert gradient.shape == shape
        assert (gradient == 0).all()


def test_several_ignore_values(route: str) -> None:
    input, target = batch((6, 5, 4))
    target[0, 0], target[1, 1:] = -1, 255
    target[2, 0] = 0
    values = [-1, 255, 3]
    expected = run(F.cross_entropy, input, torch.where(torch.isin(target, torch.tensor(values)), -100, target))
    for ignore_index in (values, tuple(reversed(values))):
        assert_same(run(masked_cross_entropy, input, target, ignore_index=ignore_index), expected)
    plain = torch.randint(5, (6, 4))
    for ignore_index in ([], [-7]):
        found = run(masked_cross_entropy, input, plain, ignore_index=ignore_index)
        assert_same(found, run(F.cross_entropy, input, plain))


def test_infinite_logits_of_valid_positions(route: str) -> None:
    inf = math.inf
    input = torch.tensor([[0, 1, -inf], [-inf, 1, 2], [-inf, -inf, -inf], [0, math.nan, 0], [inf, 0, 0], [1, 2, 3]])
    target = torch.tensor([0, 0, 1, 2, 0, -100])
    loss, gradient = run(masked_cross_entropy, input, target, reduction="none")
    assert float(loss[0]) == pytest.approx(math.log(1 + math.e))
    assert loss[1] == inf
    assert loss[2:5].isnan().all()
    torch.testing.assert_close(gradient[1], torch.tensor([0, 0, 0.0]) + input[1].softmax(0) - torch.tensor([1, 0, 0.0]))
    assert gradient[0, 2] == 0
    assert gradient[2:5].isnan().all()
    assert (gradient[5] == 0).all()
    loss, gradient = run(masked_cross_entropy, input[:1], target[:1], label_smoothing=0.1)
    assert loss == inf
    assert gradient.isfinite().all()


def test_a_weight_of_zero_times_an_infinite_term_is_zero(route: str) -> None:
    input = torch.tensor([[0, 1, -math.inf], [2, 1, 0], [0, 1, -math.inf]])
    target, weight = torch.tensor([0, 1, 2]), torch.tensor([1.0, 2.0, 0.0])
    for smoothing in (0.0, 0.3, 1.0):
        loss, gradient = run(
            masked_cross_entropy, input, target, weight=weight, label_smoothing=smoothing, reduction="sum"
        )
        q = (1 - smoothing) * F.one_hot(target, 3) + smoothing / 3
        log_p = input.log_softmax(1).masked_fill(weight == 0, 0)
        torch.testing.assert_close(loss, -(q * weight * log_p).sum())
        expected = (q * weight).sum(1, keepdim=True) * input.softmax(1) - q * weight
        torch.testing.assert_close(gradient, expected)
    assert masked_cross_entropy(input[2:], target[2:], weight=weight).isnan()  # all the weight is gone: 0 / 0


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_bad_weights_and_smoothing_leave_ignored_positions_alone(route: str, bad: float) -> None:
    input, target = batch((6, 20), torch.float32)
    weight = torch.rand(20)
    target[2], weight[13] = -100, bad
    _, gradient = run(masked_cross_entropy, input, target, weight=weight, label_smoothing=0.1, reduction="sum")
    assert not gradient[2].any()
