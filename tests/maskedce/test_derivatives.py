"""Layouts, upstream gradients and derivatives of all orders, by every route; and what a call leaves as it was."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forced_routes import DTYPES, assert_same, batch, run
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from maskedce import masked_cross_entropy


def test_the_gradient_lies_as_the_logits_do(route: str) -> None:
    for shape in ((9, 5), (3, 5, 4), (3, 5, 4, 2)):
        input, target = batch(shape, ignored=0.3)
        for options in ({}, {"reduction": "none"}, {"label_smoothing": 0.1, "weight": torch.rand(5)}):
            assert run(masked_cross_entropy, input, target, **options)[1].is_contiguous()
    share = torch.rand(9, 5).requires_grad_()
    (gradient,) = torch.autograd.grad(masked_cross_entropy(torch.randn(9, 5), share), share)
    assert gradient.is_contiguous()


def layouts(input: Tensor) -> Iterator[Tensor]:
    yield input.movedim(1, -1).contiguous().movedim(-1, 1)  # channels last
    yield input.movedim(0, -1).contiguous().movedim(-1, 0)
    for dimension in range(input.dim()):
        yield torch.stack([input, input.new_full(input.shape, math.nan)], dimension + 1).flatten(
            dimension, dimension + 1
        )[(slice(None),) * dimension + (slice(None, None, 2),)]
    yield torch.cat([input.new_full((1, *input.shape[1:]), math.nan), input])[1:]
    yield input[:1].expand(input.shape)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(6, 5), (3, 5, 4), (2, 5, 3, 2)], ids=str)
def test_layouts(route: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    input, target = batch(shape, dtype, ignored=0.3)
    weight = torch.stack([torch.rand(5), torch.zeros(5)], 1)[:, 0]
    for strided, smoothing in product(layouts(input), (0.0, 0.2)):
        strided_target = torch.stack([target, target + 1], -1)[..., 0]
        upstream = torch.randn(target.T.shape if target.dim() == 2 else target.shape, dtype=torch.float64).to(dtype)
        upstream = upstream.T if target.dim() == 2 else upstream
        options: dict[str, Any] = {"reduction": "none", "weight": weight, "label_smoothing": smoothing}
        found = run(masked_cross_entropy, strided, strided_target, upstream, **options)
        options["weight"] = weight.clone()
        assert_same(found, run(masked_cross_entropy, strided.clone().contiguous(), target, upstream.clone(), **options))


def test_upstream_gradients(route: str) -> None:
    for shape in ((6, 5), (3, 5, 4)):
        input, target = batch(shape, ignored=0.3)
        _, rows = run(masked_cross_entropy, input, target, reduction="none")
        upstream = torch.randn(target.shape, dtype=torch.float64)
        upstream[0] = 0
        for one in (upstream, upstream[:1].expand(target.shape), torch.tensor(2.0).double().expand(target.shape)):
            _, gradient = run(masked_cross_entropy, input, target, one, reduction="none")
            torch.testing.assert_close(gradient, rows * one.unsqueeze(1))
        _, gradient = run(masked_cross_entropy, input, target, math.inf, reduction="sum")
        assert (gradient.movedim(1, -1)[target == -100] == 0).all()
        assert not gradient.movedim(1, -1)[target != -100].isfinite().any()


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 2)], ids=str)
def test_gradcheck_and_gradgradcheck(route: str, shape: tuple[int, ...]) -> None:
    input, target = batch(shape)
    target.view(-1)[1] = -100
    for reduction, smoothing, weight in product(("none", "mean", "sum"), (0.0, 0.2), (None, torch.tensor([1, 0, 2.5]))):
        loss = functools.partial(
            masked_cross_entropy, target=target, reduction=reduction, label_smoothing=smoothing, weight=weight
        )
        assert torch.autograd.gradcheck(loss, input.requires_grad_(), check_undefined_grad=False)
        assert torch.autograd.gradgradcheck(loss, input.requires_grad_())


def test_double_backward_in_half_and_with_bad_ignored_rows(route: str) -> None:
    input, target = batch((5, 4), torch.bfloat16)
    target[1] = -100
    input[1] = math.nan
    second = []
    for x, t, loss in ((input, target, masked_cross_entropy), (input.double().nan_to_num(), target, F.cross_entropy)):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x, t), x, create_graph=True)
        second.append(*torch.autograd.grad((gradient**2).sum(), x))
    assert (second[0][1] == 0).all()
    torch.testing.assert_close(second[0].double(), second[1], rtol=2e-2, atol=1e-3)


def test_backward_twice_and_gradients_that_stay(route: str) -> None:
    for dtype, reduction in product((torch.float32, torch.bfloat16), ("mean", "none")):
        input, target = batch((6, 5), dtype, ignored=0.3)
        input.requires_grad_()
        loss = masked_cross_entropy(input, target, reduction=reduction).sum()
        (first,) = torch.autograd.grad(loss, input, retain_graph=True)
        kept = first.clone()
        first.fill_(7)  # whoever gets a gradient may change it
        (second,) = torch.autograd.grad(loss, input, retain_graph=True)
        (third,) = torch.autograd.grad(loss, input, torch.full_like(loss, 2))
        torch.testing.assert_close(second, kept, rtol=0, atol=0)
        torch.testing.assert_close(third, 2 * kept)
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(loss, input)
        for _ in range(2):
            masked_cross_entropy(input, target, reduction=reduction).sum().backward()
        torch.testing.assert_close(input.grad, 2 * kept)


def test_a_loss_per_position_may_be_changed_in_place(route: str) -> None:
    input, target = batch((6, 5), ignored=0.3)
    _, expected = run(masked_cross_entropy, input, target, reduction="sum")
    input.requires_grad_()
    loss = masked_cross_entropy(input, target, reduction="none")
    loss *= 2
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), input)[0], 2 * expected)


def test_gradient_reaches_what_made_the_logits(route: str) -> None:
    model, target = torch.nn.Linear(3, 5), torch.tensor([1, -100, 4])
    hidden = torch.randn(3, 3)
    gradients = []
    for loss in (masked_cross_entropy, F.cross_entropy):
        gradients.append(torch.autograd.grad(loss(model(hidden), target), list(model.parameters())))
    assert_same(*gradients)


def test_under_activation_checkpointing(route: str) -> None:
    hidden, target = torch.randn(6, 3, requires_grad=True), torch.tensor([1, -100, 0, 4, -100, 2])
    matrix = torch.randn(5, 3)
    loss = checkpoint(lambda h: masked_cross_entropy(h @ matrix.T, target), hidden, use_reentrant=False)
    (found,) = torch.autograd.grad(loss, hidden)
    (expected,) = torch.autograd.grad(masked_cross_entropy(hidden @ matrix.T, target), hidden)
    torch.testing.assert_close(found, expected)


def test_function_transforms(route: str) -> None:
    input, target = batch((4, 3), ignored=0.3)
    _, expected = run(masked_cross_entropy, input, target)
    torch.testing.assert_close(torch.func.grad(masked_cross_entropy)(input, target), expected)
    rows = torch.func.vmap(functools.partial(masked_cross_entropy, reduction="none"))(input, target)
    torch.testing.assert_close(rows, masked_cross_entropy(input, target, reduction="none"))
    hessian = torch.func.hessian(masked_cross_entropy)(input, target)
    expected = torch.autograd.functional.hessian(lambda x: F.cross_entropy(x, target), input)
    torch.testing.assert_close(hessian, expected)
    x = input.requires_grad_()
    loss = masked_cross_entropy(x, target, reduction="none")
    (jacobian,) = torch.autograd.grad(loss, x, torch.eye(4, dtype=torch.float64), is_grads_batched=True)
    expected = torch.autograd.functional.jacobian(lambda x: F.cross_entropy(x, target, reduction="none"), x)
    torch.testing.assert_close(jacobian, expected)


def test_nothing_is_changed(route: str) -> None:
    for dtype in DTYPES:
        input, target = batch((6, 5), dtype, ignored=0.3)
        weight, upstream = torch.rand(5), torch.rand(6).to(dtype)
        tensors = (input, target, weight, upstream)
        before, versions, state = [t.clone() for t in tensors], [t._version for t in tensors], torch.get_rng_state()
        run(masked_cross_entropy, input, target, upstream, weight=weight, reduction="none", label_smoothing=0.1)
        assert [t._version for t in tensors] == versions
        assert all(torch.equal(one, other) for one, other in zip(tensors, before, strict=True))
        assert torch.equal(torch.get_rng_state(), state)


def test_no_grad_and_inference_mode(route: str) -> None:
    input, target = batch((6, 5), torch.float32, ignored=0.3)
    expected = masked_cross_entropy(input, target)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            loss = masked_cross_entropy(input.clone().requires_grad_(), target)
        assert not loss.requires_grad
        torch.testing.assert_close(loss, expected)


def test_two_threads_give_what_one_gives(route: str) -> None:
    jobs = [batch((64, 300), torch.float32, ignored=0.3) for _ in range(2)]
    expected = [run(masked_cross_entropy, *job) for job in jobs]
    found: list[list[tuple[Tensor, Tensor]]] = [[], []]

    def work(number: int) -> None:
        for _ in range(20):
            found[number].append(run(masked_cross_entropy, *jobs[number]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        assert len(found[number]) == 20
        for result in found[number]:
            assert_same(result, expected[number], rtol=0, atol=0)
