"""What the library loss offers beyond torch's: a normaliser of one's own, and class probabilities that may hold zeros."""

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
from torch import Tensor

from maskedce import masked_cross_entropy
from routes import DTYPES, HALF, ROUTES, assert_same, batch, run, take_route


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return take_route(request.param, monkeypatch)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


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


# A normaliser


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


# Class probabilities


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
    for shape, dtype in (((300, 4000), torch.float32), ((2, 20, 200, 150), torch.bfloat16)):
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


# Every mode, with both


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


# What small and large batches have in common


def test_smoothing_alone_where_a_class_is_impossible(route: str) -> None:
    input, target = batch((80, 40), torch.float32, ignored=0.2)
    input[0, 3], target[0] = -torch.inf, 1
    loss, _ = run(masked_cross_entropy, input, target, label_smoothing=1.0, reduction="none")
    assert loss[0] == torch.inf
    assert_same((loss[1:],), (F.cross_entropy(input[1:], target[1:], label_smoothing=1.0, reduction="none"),))


@pytest.mark.parametrize("offset", [0.0, 1e3, -1e4, 1e6, 1e30])
def test_smoothing_of_logits_far_from_zero(route: str, offset: float) -> None:
    """An offset that costs the logits no digit costs the loss none."""
    input = torch.randint(-8, 9, (40, 64)).float() * max(1.0, offset * 2**-20)
    input, target = (input + offset).to(torch.float32), torch.randint(64, (40,))
    for smoothing in (0.1, 1.0):
        options: dict[str, Any] = {"label_smoothing": smoothing, "reduction": "none"}
        exact = F.cross_entropy(input.double(), target, **options)
        found = masked_cross_entropy(input.requires_grad_(), target, **options)
        torch.testing.assert_close(found.double(), exact, rtol=2e-6, atol=0)


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_bad_weights_and_smoothing_leave_ignored_positions_alone(route: str, bad: float) -> None:
    input, target = batch((6, 20), torch.float32)
    weight = torch.rand(20)
    target[2], weight[13] = -100, bad
    _, gradient = run(masked_cross_entropy, input, target, weight=weight, label_smoothing=0.1, reduction="sum")
    assert not gradient[2].any()


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


@pytest.mark.parametrize("shape", [(1, 20_000, 3), (2, 30_000, 2, 2), (1, 5000, 40)], ids=str)
@pytest.mark.parametrize("layout", ["classes second", "classes last"])
def test_many_classes_that_are_not_the_last_dimension(route: str, shape: tuple[int, ...], layout: str) -> None:
    """torch's softmax adds them up one after the other, and is off by 1e-4 and more."""
    input, target = batch(shape, torch.float32)
    input, target = input * 2, target.where(torch.rand(target.shape) < 0.8, -100)
    if layout == "classes last":
        input = input.movedim(1, -1).contiguous().movedim(-1, 1)
    weight = torch.rand(shape[1]) + 0.5
    for options in ({}, {"label_smoothing": 0.1}, {"weight": weight, "label_smoothing": 0.1}):
        wide = {name: value.double() if isinstance(value, Tensor) else value for name, value in options.items()}
        exact = run(F.cross_entropy, input.double(), target, reduction="sum", **wide)
        loss, gradient = run(masked_cross_entropy, input, target, reduction="sum", **options)
        torch.testing.assert_close(loss.double(), exact[0], rtol=2e-6, atol=0)
        if not wide.get("label_smoothing"):  # else entries near 0 are differences of larger ones
            torch.testing.assert_close(gradient.double(), exact[1], rtol=5e-6, atol=1e-12)
        torch.testing.assert_close(gradient.double(), exact[1], rtol=5e-6, atol=1e-9)


@pytest.mark.parametrize("shape", [(4, 20_000), (1, 20_000, 4)], ids=str)
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"weighted": True, "label_smoothing": 0.1}], ids=str)
@pytest.mark.parametrize("peak", ["target", "another"])
def test_certain_positions_over_a_flat_tail(
    route: str, shape: tuple[int, ...], options: dict[str, Any], peak: str
) -> None:
    """Added to 1, each of the other classes is lost: all of them over planes, a sixteenth over rows in torch's softmax."""
    input, target = torch.randn(shape) * 0.02, torch.randint(shape[1] // 2, (shape[0], *shape[2:]))
    input.scatter_(1, target.unsqueeze(1), 17.0)
    target = target if peak == "target" else target + shape[1] // 2
    options = dict(options)
    if options.pop("weighted", False):
        options["weight"] = torch.rand(shape[1]) + 0.5
    wide = {name: value.double() if isinstance(value, Tensor) else value for name, value in options.items()}
    exact = run(F.cross_entropy, input.double(), target, reduction="none", **wide)
    by_sixteens = route == "composed" and len(shape) > 2  # torch.sum adds up as many before it adds up their sums
    for reduction in ("none", "sum"):
        loss, gradient = run(masked_cross_entropy, input, target, reduction=reduction, **options)
        expected = exact[0] if reduction == "none" else exact[0].sum()
        torch.testing.assert_close(loss.double(), expected, rtol=4e-7, atol=1e-6 if by_sixteens else 4e-7)
        torch.testing.assert_close(gradient.double(), exact[1], rtol=2e-6, atol=2e-6)


def test_the_smallest_losses_are_right_relatively(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where 1 - p_t is too small to be told from 0; and so is the gradient of the target's logit."""
    take_route("blocks", monkeypatch)
    for peak in (10.0, 20.0, 50.0, 80.0):  # from which logits differ by numbers that are rounded, by up to 4e-6
        input, target = batch((30, 7), torch.float32, ignored=0.2)
        input.scatter_(1, target.clamp(min=0).unsqueeze(1), peak)
        index = target.clamp(min=0).unsqueeze(1)
        others = (input.double() - peak).exp().scatter(1, index, 0)
        gradient = others.scatter(1, index, -others.sum(1, keepdim=True)) / (1 + others.sum(1, keepdim=True))
        counts = target != -100
        exact = others.sum(1)[counts].log1p().sum(), gradient * counts.unsqueeze(1)
        assert_same(run(masked_cross_entropy, input, target, reduction="sum"), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("classes", [129, 256, 512])
def test_smoothing_over_planes_of_some_classes(classes: int) -> None:
    """The gradient's sum over the classes is 0 for each position."""
    input, target = batch((2, classes, 8, 8), torch.float32)
    _, gradient = run(masked_cross_entropy, input, target, reduction="sum", label_smoothing=0.1)
    assert float(gradient.double().sum(1).abs().max()) < 1.5e-6


def test_half_types_behind_a_negative_view(route: str) -> None:
    for dtype in HALF:
        input, target = batch((40, 6), dtype)
        view = torch._neg_view(input)
        assert_same(run(masked_cross_entropy, view, target), run(masked_cross_entropy, -input, target))
