"""Accuracy by every route: half types, logits far from zero, many classes, certain positions."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forced_routes import HALF, assert_same, batch, run, take_route
from torch import Tensor

from maskedce import masked_cross_entropy


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_types_are_computed_in_float32_and_rounded_once(route: str, dtype: torch.dtype) -> None:
    for shape, smoothing in product(((40, 30), (2, 30, 5)), (0.0, 0.1)):
        input, target = batch(shape, dtype, ignored=0.3)
        found = run(masked_cross_entropy, input, target, upstream=3.0, label_smoothing=smoothing)
        expected = run(F.cross_entropy, input.double(), target, upstream=3.0, label_smoothing=smoothing)
        eps = torch.finfo(dtype).eps
        assert_same(found, expected, rtol=0.51 * eps, atol=torch.finfo(dtype).smallest_normal * eps + 1e-9)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_sums_over_many_rows_do_not_overflow(dtype: torch.dtype) -> None:
    input, target = torch.zeros(70_000, 4, dtype=dtype), torch.zeros(70_000, dtype=torch.int64)
    loss, gradient = run(masked_cross_entropy, input, target, upstream=1024.0)
    assert float(loss) == pytest.approx(math.log(4), rel=torch.finfo(dtype).eps)
    expected = torch.tensor([-0.75, 0.25, 0.25, 0.25], dtype=torch.float64) * 1024 / 70_000
    torch.testing.assert_close(gradient[0].double(), expected, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_confident_rows_keep_their_gradient(route: str, dtype: torch.dtype) -> None:
    input = torch.zeros(3, 50, dtype=dtype)
    input[:, 7] = torch.tensor([6.0, 10.0, 13.0])
    target = torch.full((3,), 7)
    _, gradient = run(masked_cross_entropy, input, target, reduction="sum")
    _, expected = run(F.cross_entropy, input.double(), target, reduction="sum")
    torch.testing.assert_close(gradient.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("scale", [1, 50, 1000])
def test_accuracy_at_large_logits(route: str, scale: float) -> None:
    input = (scale * torch.randn(50, 40, dtype=torch.float64)).float()
    target = torch.randint(40, (50,))
    loss, gradient = run(masked_cross_entropy, input, target, reduction="none")
    exact = F.cross_entropy(input.double(), target, reduction="none")
    _, exact_gradient = run(F.cross_entropy, input.double(), target, reduction="none")
    eps = torch.finfo(torch.float32).eps
    size = torch.maximum(input.double().logsumexp(1), input.double().abs().amax(1))
    assert ((loss - exact).abs() <= eps * (exact + size)).all()
    assert ((gradient - exact_gradient).abs() <= 3 * eps * (1 + size[:, None])).all()


def test_smoothing_over_many_classes(route: str) -> None:
    """log_softmax's backward pass adds up 50,000 unequal numbers one by one: torch's own gradient is off by 1e-5."""
    input, target = torch.randn(3, 50_000), torch.tensor([1, 2, 3])
    _, gradient = run(masked_cross_entropy, input, target, label_smoothing=0.1)
    _, exact = run(F.cross_entropy, input.double(), target, label_smoothing=0.1)
    size = (input.softmax(1) + 0.9 * F.one_hot(target, 50_000) + 0.1 / 50_000) / 3
    assert ((gradient - exact).abs() / size).max() < 3e-6


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
    take_route("blockwise", monkeypatch)
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
