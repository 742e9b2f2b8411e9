"""A normaliser of one's own in place of the count of valid positions, by every route."""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from forced_routes import DTYPES, assert_same, batch, by_definition, probabilities, run, tolerance
from torch import Tensor

from maskedce import masked_cross_entropy


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_normaliser_takes_the_place_of_the_count(route: str, dtype: torch.dtype) -> None:
    for shape, smoothing, weighted in product(((6, 5), (3, 5, 4)), (0.0, 0.2), (False, True)):
        input, target = batch(shape, dtype, ignored=0.4)
        options: dict[str, Any] = {"label_smoothing": smoothing, "weight": torch.rand(5) if weighted else None}
        total, slope = run(
            F.cross_entropy,
            input.double(),
            target,
            reduction="sum",
            **options | {"weight": options["weight"] if options["weight"] is None else options["weight"].double()},
        )
        for normalizer in (7, 0.375, torch.tensor(7), torch.tensor(2.5), torch.tensor(3.0, dtype=torch.bfloat16)):
            found = run(masked_cross_entropy, input, target, normalizer=normalizer, **options)
            assert found[0].dtype == found[1].dtype == dtype
            assert_same(found, (total / float(normalizer), slope / float(normalizer)), **tolerance(dtype))


@pytest.mark.parametrize("normalizer", [5, 0, 0.5, torch.tensor(0), torch.tensor(4.0)], ids=str)
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 2), (0, 3), (2, 3, 0)], ids=str)
def test_no_valid_position_gives_zero_whatever_the_normaliser(
    route: str, shape: tuple[int, ...], normalizer: Any
) -> None:
    target = torch.full((shape[0], *shape[2:]), -100)
    loss, gradient = run(masked_cross_entropy, torch.full(shape, math.nan), target, normalizer=normalizer)
    assert loss == 0
    assert gradient.shape == shape
    assert (gradient == 0).all()


def test_a_normaliser_of_zero_beside_valid_positions_is_a_division_by_zero(route: str) -> None:
    input, target = batch((4, 3), ignored=0.3)
    target[0] = 1
    for zero in (0, 0.0, torch.tensor(0)):
        assert masked_cross_entropy(input, target, normalizer=zero) == math.inf


def test_parts_of_a_batch_under_one_normaliser_add_up_to_the_whole(route: str) -> None:
    input, target = batch((12, 5), ignored=0.4)
    target[4:8] = -100  # one part without any valid position
    count = (target != -100).sum()
    parts = [
        run(masked_cross_entropy, x, t, normalizer=count) for x, t in zip(input.split(4), target.split(4), strict=True)
    ]
    whole = run(masked_cross_entropy, input, target)
    assert_same((sum(loss for loss, _ in parts), torch.cat([gradient for _, gradient in parts])), whole)


def test_unbatched_normaliser(route: str) -> None:
    input = torch.randn(5)
    loss = masked_cross_entropy(input, torch.tensor(2), normalizer=4)
    torch.testing.assert_close(loss, F.cross_entropy(input, torch.tensor(2)) / 4)
    assert masked_cross_entropy(input, torch.tensor(2), normalizer=4, ignore_index=2) == 0


def test_a_normaliser_may_go_on_counting_before_the_backward_pass(route: str) -> None:
    for ignored in (0.0, 0.4):
        input, target = batch((6, 8), ignored=ignored)
        count = torch.tensor(3.0, dtype=torch.float64)
        loss = masked_cross_entropy(input.requires_grad_(), target, normalizer=count)
        count += 4
        expected = torch.autograd.grad(F.cross_entropy(input, target, reduction="sum") / 3, input)
        assert_same(torch.autograd.grad(loss, input), expected)


def test_a_normaliser_beyond_float32(route: str) -> None:
    input, target = batch((40, 5), torch.float32, ignored=0.3)
    for normalizer, expected in ((1e-42, torch.inf), (1e45, 0.0)):
        assert run(masked_cross_entropy, input, target, normalizer=normalizer)[0] == expected


def questions() -> list[tuple[Tensor, Tensor, dict[str, Any]]]:
    input, target = batch((4, 3), ignored=0.4)
    target[0], target[1] = 1, -100
    return [
        (input, target, {"normalizer": 7}),
        (input, target, {"normalizer": torch.tensor(2.5)}),
        (input, probabilities((4, 3)), {}),
        (
            input,
            probabilities((4, 3)),
            {"normalizer": 3, "label_smoothing": 0.1, "weight": torch.tensor([0.5, 0, 2.0])},
        ),
    ]


def expected_of(input: Tensor, target: Tensor, options: dict[str, Any]) -> Tensor:
    if target.is_floating_point():
        return by_definition(input, target, **options)
    return F.cross_entropy(input, target, reduction="sum") / options["normalizer"]


def test_numbers_of_other_libraries(route: str) -> None:
    input, target = batch((4, 3), ignored=0.4)
    plain = {"label_smoothing": 0.25, "normalizer": 3.0}
    expected = run(lambda x, t: masked_cross_entropy(x, t, **plain), input, target)
    for number in (np.float32, np.float64, Fraction):
        options = {name: number(value) for name, value in plain.items()}
        assert_same(run(lambda x, t, o=options: masked_cross_entropy(x, t, **o), input, target), expected)
    large = masked_cross_entropy(input, target, normalizer=2**70)
    assert float(large) == pytest.approx(float(masked_cross_entropy(input, target, reduction="sum")) / 2**70)


@pytest.mark.parametrize("number", range(4))
def test_function_transforms(route: str, number: int) -> None:
    input, target, options = questions()[number]
    loss = functools.partial(masked_cross_entropy, **options)
    _, expected = run(lambda x, t: expected_of(x, t, options), input, target)
    torch.testing.assert_close(torch.func.grad(loss)(input, target), expected)
    hessian = torch.func.hessian(loss)(input, target)
    torch.testing.assert_close(
        hessian, torch.autograd.functional.hessian(lambda x: expected_of(x, target, options), input)
    )
    inputs, targets = torch.stack([input, input.flip(0)]), torch.stack([target, target.flip(0)])
    values = torch.func.vmap(loss)(inputs, targets)
    torch.testing.assert_close(values, torch.stack([loss(x, t) for x, t in zip(inputs, targets, strict=True)]))
    gradients = torch.func.vmap(torch.func.grad(loss))(inputs, targets)
    torch.testing.assert_close(
        gradients, torch.stack([run(loss, x, t)[1] for x, t in zip(inputs, targets, strict=True)])
    )


@pytest.mark.parametrize("number", range(4))
def test_second_derivatives(route: str, number: int) -> None:
    input, target, options = questions()[number]
    loss = functools.partial(masked_cross_entropy, target=target, **options)
    assert torch.autograd.gradcheck(loss, input.requires_grad_(), check_undefined_grad=False)
    assert torch.autograd.gradgradcheck(loss, input)


@pytest.mark.parametrize("number", range(4))
def test_autocast(route: str, number: int) -> None:
    input, target, options = questions()[number]
    for dtype in DTYPES:
        x = input.to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = masked_cross_entropy(x, target, **options)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        (gradient,) = torch.autograd.grad(loss, x)
        assert gradient.dtype == dtype
        expected = run(lambda x, t: expected_of(x, t, options), x.double(), target)
        wanted = {torch.float64: 1e-12}.get(dtype, 1e-6)
        assert_same((loss,), expected[:1], rtol=wanted, atol=wanted)
        assert_same((gradient,), expected[1:], rtol=torch.finfo(dtype).eps, atol=1e-7)
