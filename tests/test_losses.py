"""The library loss: every route against torch's own in float64, and everything in which it means to be better."""

from __future__ import annotations

import functools
import math
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import maskedce as losses
from maskedce import MaskedCrossEntropyLoss, masked_cross_entropy, sweep
from routes import DTYPES, HALF, ROUTES, assert_same, batch, run, take_route

BAD = (math.nan, math.inf, -math.inf, 1e30)


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return take_route(request.param, monkeypatch)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


# The same as torch where torch is right


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(8, 11), (1, 3), (5, 1), (3, 5, 4), (2, 4, 3, 5), (2, 3, 1, 2, 2)], ids=str)
def test_agrees_with_torch_in_float64(route: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for reduction, smoothing, weighted, ignore in product(
        ("none", "mean", "sum"), (0.0, 0.3, 1.0), (False, True), (-100, 0, shape[1] - 1, 255)
    ):
        input, target = batch(shape, dtype)
        target.view(-1)[::3] = ignore
        target.view(-1)[-1] = shape[1] // 2
        options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing, "ignore_index": ignore}
        if weighted:
            options["weight"] = torch.rand(shape[1]).to(dtype) + 0.1
        upstream = torch.randn(target.shape if reduction == "none" else ()).to(dtype)
        found = run(masked_cross_entropy, input, target, upstream, **options)
        assert found[0].dtype == found[1].dtype == dtype
        if weighted:
            options["weight"] = options["weight"].double()
        expected = run(F.cross_entropy, input.double(), target, upstream.double(), **options)
        if math.isnan(expected[0].sum()):  # nothing but ignored positions: here 0
            continue
        eps = torch.finfo(dtype).eps
        assert_same(found, expected, rtol=20 * eps if dtype not in HALF else eps, atol=20 * min(eps, 1.2e-7))


def test_unbatched(route: str) -> None:
    input, target = torch.randn(7), torch.tensor(3)
    for reduction in ("none", "mean", "sum"):
        found = run(masked_cross_entropy, input, target, reduction=reduction)
        assert_same(found, run(F.cross_entropy, input, target, reduction=reduction))
        assert found[0].shape == ()
        found = run(masked_cross_entropy, input, target, reduction=reduction, ignore_index=3)
        assert_same(found, (torch.zeros(()), torch.zeros(7)), rtol=0, atol=0)


def test_the_example_with_its_printed_loss_and_gradient(route: str) -> None:
    input = torch.ones(3, 5)
    input[2] = -math.inf
    loss, gradient = run(masked_cross_entropy, input, torch.tensor([1, 2, -1]), ignore_index=-1)
    assert float(loss) == pytest.approx(1.6094379, rel=1e-6)
    expected = torch.tensor([[0.1, -0.4, 0.1, 0.1, 0.1], [0.1, 0.1, -0.4, 0.1, 0.1], [0.0] * 5])
    torch.testing.assert_close(gradient, expected)


def test_more_than_65536_classes() -> None:
    input, target = torch.randn(3, 70_000), torch.tensor([69_999, 66_000, -100])
    assert_same(run(masked_cross_entropy, input, target), run(F.cross_entropy, input, target), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_logits(dtype: torch.dtype) -> None:
    for shape, channels_last in (((300, 4000), False), ((2, 20, 200, 150), False), ((2, 20, 200, 150), True)):
        input, target = batch(shape, dtype, ignored=0.5)
        target[0] = -100
        if channels_last:
            input = input.contiguous(memory_format=torch.channels_last)
        for upstream, smoothing in product((1.0, 3.0), (0.0, 0.1)):
            found = run(masked_cross_entropy, input, target, upstream, label_smoothing=smoothing)
            expected = run(F.cross_entropy, input.double(), target, upstream, label_smoothing=smoothing)
            eps = torch.finfo(dtype).eps
            assert_same(found, expected, rtol=eps if dtype in HALF else 20 * eps, atol=1e-9)


class RowsOfSoftmax(TorchDispatchMode):
    """Counts the positions whose softmax is taken over a dimension in which the classes lie next to each other."""

    positions = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func.overloadpacket in (aten._log_softmax, aten._softmax, aten.softmax, aten.log_softmax):
            logits, dimension = args[:2]
            if logits.stride(dimension) == 1:
                self.positions += logits.numel() // logits.shape[dimension]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("positions", [20_000, 100_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_softmax_of_short_rows_is_not_taken_along_them(
    positions: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of fewer logits than a vector register holds: there, torch's softmax takes ten times as long for each."""
    monkeypatch.setattr(sweep, "REGISTER_BYTES", 64)
    for classes, are_short in ((9, True), (15, True), (17, False)):
        input, target = batch((positions, classes), dtype, ignored=0.5)
        with RowsOfSoftmax() as seen:
            found = run(masked_cross_entropy, input, target)
        assert (seen.positions == 0) == are_short
        assert found[1].is_contiguous()
        expected = run(F.cross_entropy, input.double(), target)
        assert_same(found, expected, rtol=torch.finfo(dtype).eps * (1 if dtype in HALF else 20), atol=1e-9)
        with RowsOfSoftmax() as seen, torch.no_grad():
            masked_cross_entropy(input, target)
        assert (seen.positions == 0) == are_short


def test_the_gradient_lies_as_the_logits_do(route: str) -> None:
    for shape in ((9, 5), (3, 5, 4), (3, 5, 4, 2)):
        input, target = batch(shape, ignored=0.3)
        for options in ({}, {"reduction": "none"}, {"label_smoothing": 0.1, "weight": torch.rand(5)}):
            assert run(masked_cross_entropy, input, target, **options)[1].is_contiguous()
    share = torch.rand(9, 5).requires_grad_()
    (gradient,) = torch.autograd.grad(masked_cross_entropy(torch.randn(9, 5), share), share)
    assert gradient.is_contiguous()


def test_smoothing_over_many_classes(route: str) -> None:
    """log_softmax's backward pass adds up 50,000 unequal numbers one by one: torch's own gradient is off by 1e-5."""
    input, target = torch.randn(3, 50_000), torch.tensor([1, 2, 3])
    _, gradient = run(masked_cross_entropy, input, target, label_smoothing=0.1)
    _, exact = run(F.cross_entropy, input.double(), target, label_smoothing=0.1)
    size = (input.softmax(1) + 0.9 * F.one_hot(target, 50_000) + 0.1 / 50_000) / 3
    assert ((gradient - exact).abs() / size).max() < 3e-6


_WRITE_SAMPLES = """
import sys, types, unittest, torch
try:
    import expecttest
except ModuleNotFoundError:  # torch's test helpers import it, though samples do not need it
    sys.modules["expecttest"] = types.SimpleNamespace(TestCase=unittest.TestCase)
from torch.testing._internal.common_methods_invocations import op_db
dtypes = torch.float64, torch.float32, torch.bfloat16, torch.float16
for op in op_db:
    if op.name in ("nn.functional.cross_entropy", "nn.functional.nll_loss"):
        samples = [s for d in dtypes for s in op.sample_inputs("cpu", d, requires_grad=True)]
        samples = [(s.input.detach(), s.args[0].detach(), s.kwargs) for s in samples]
        torch.save(samples, f"{sys.argv[1]}/{op.name}.pt")
"""


@pytest.fixture(scope="module")
def torch_samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[Tensor, Tensor, dict[str, Any]]]]:
    """torch's own samples, made in another process, because importing its test helpers changes global settings."""
    folder = tmp_path_factory.mktemp("opinfo")
    subprocess.run([sys.executable, "-c", _WRITE_SAMPLES, str(folder)], check=True, capture_output=True)
    return {path.stem: torch.load(path) for path in folder.glob("*.pt")}


@pytest.mark.parametrize(("name", "least"), [("nn.functional.cross_entropy", 80), ("nn.functional.nll_loss", 240)])
def test_torch_samples(torch_samples: dict[str, Any], route: str, name: str, least: int) -> None:
    """Logits and class probabilities as torch has them; what is meant for nll_loss goes through log_softmax there."""

    def torchs(input: Tensor, target: Tensor, **options: Any) -> Tensor:
        if "nll" in name:
            return F.nll_loss(input.log_softmax(1 if input.dim() > 1 else 0), target, **options)
        return F.cross_entropy(input, target, **options)

    for input, target, options in torch_samples[name]:
        exact = {key: value.double() if isinstance(value, Tensor) else value for key, value in options.items()}
        soft = target.is_floating_point()
        expected = run(torchs, input.double(), target.double() if soft else target, **exact)
        if math.isnan(expected[0].sum()):
            expected = torch.zeros_like(expected[0]), torch.zeros_like(expected[1])
        eps = torch.finfo(input.dtype).eps
        found = run(masked_cross_entropy, input, target, **options)
        assert_same(found, expected, rtol=eps if input.dtype in HALF else 30 * eps, atol=30 * min(eps, 1.2e-7))
        if soft and input.dtype == torch.float64:
            q = target.clone().requires_grad_()
            slopes = [
                torch.autograd.grad(loss(input, q, **options).sum(), q) for loss in (masked_cross_entropy, torchs)
            ]
            assert_same(*slopes)
    assert len(torch_samples[name]) >= least


# Ignored positions


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


def test_target_dtypes(route: str) -> None:
    input = torch.randn(5, 200)
    for dtype in (torch.int64, torch.int32, torch.uint8):
        target = torch.tensor([0, 156, 199, 7, 8], dtype=dtype)  # as uint8, -100 would be 156
        assert_same(run(masked_cross_entropy, input, target), run(F.cross_entropy, input, target.long()))
        found = run(masked_cross_entropy, input, target, ignore_index=156)
        assert_same(found, run(F.cross_entropy, input, target.long(), ignore_index=156))


# Infinite logits and weights of zero


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


def test_negative_and_half_precision_weights(route: str) -> None:
    input, target = batch((6, 4))
    for weight in (torch.tensor([1, -2, 3, 0.5]), torch.tensor([1, 2, 3, 0.1], dtype=torch.bfloat16)):
        expected = run(F.cross_entropy, input, target, weight=weight.double(), label_smoothing=0.1)
        assert_same(run(masked_cross_entropy, input, target, weight=weight, label_smoothing=0.1), expected)


# Accuracy in half types, and far from zero


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


# Layouts, upstream gradients, derivatives


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


# Bystanders


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


def test_module() -> None:
    weight = torch.tensor([1.0, 2.0, 3.0])
    module = MaskedCrossEntropyLoss(weight, ignore_index=[-1, 2], reduction="sum", label_smoothing=0.1)
    input, target = torch.randn(4, 3), torch.tensor([0, 2, -1, 1])
    expected = masked_cross_entropy(
        input, target, weight=weight, ignore_index=[-1, 2], reduction="sum", label_smoothing=0.1
    )
    assert torch.equal(module(input, target), expected)
    assert list(module.state_dict()) == ["weight"]
    assert (
        repr(module)
        == "MaskedCrossEntropyLoss(ignore_index=[-1, 2], reduction='sum', label_smoothing=0.1, inplace=False)"
    )
    mean = MaskedCrossEntropyLoss(ignore_index=-1)
    torch.testing.assert_close(mean(input, target, normalizer=6), mean(input, target) / 2)
    assert module.double()(input.double(), target).dtype == torch.float64
    with pytest.raises(ValueError, match="reduction: expected 'none', 'mean' or 'sum', found 'avg'"):
        MaskedCrossEntropyLoss(reduction="avg")


def test_imports_nothing_of_this_project() -> None:
    modules = list(Path(losses.__file__).parent.glob("*.py"))
    assert len(modules) > 5
    assert [m.name for m in modules if re.search(r"^\s*(import|from) xentcheck", m.read_text("utf-8"), re.M)] == []


# Errors


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_out_of_range(route: str, smoothing: float) -> None:
    if route == "composed":
        return  # cannot look at values
    for value, reduction in product((5, 255, -1, -99), ("none", "mean", "sum")):
        target = torch.tensor([[-100, 4], [value, 7]])
        with pytest.raises(IndexError) as caught:
            masked_cross_entropy(torch.zeros(2, 5, 2), target, reduction=reduction, label_smoothing=smoothing)
        expected = "a class from 0 to 4, or -100 to be ignored"
        assert str(caught.value) == f"target: expected {expected}, found {value} at position (1, 0)"
    with pytest.raises(IndexError, match="or 0 or 1 to be ignored, found -100 at position"):
        masked_cross_entropy(torch.zeros(2, 5), torch.tensor([-100, 0]), ignore_index=[0, 1])
    with pytest.raises(IndexError, match="or nothing to be ignored, found -100 at position"):
        masked_cross_entropy(torch.zeros(5), torch.tensor(-100), ignore_index=[])


ROWS, TARGET = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((ROWS, TARGET.float()), {}, TypeError, r"target: expected class indices .* or class probabilities of shape \(4, 3\), found torch.float32 of shape \(4,\)"),
        ((ROWS, torch.rand(4, 2)), {}, TypeError, r"class probabilities of shape \(4, 3\), found torch.float32 of shape \(4, 2\)"),
        ((ROWS, torch.rand(4, 3)), {"ignore_index": -100}, ValueError, "ignore_index: expected none beside class probabilities.*found -100"),
        ((ROWS, torch.rand(4, 3)), {"ignore_index": []}, ValueError, r"ignore_index: expected none .*found \[\]"),
        ((torch.rand(3), torch.rand(3)), {"ignore_index": 0}, ValueError, "ignore_index: expected none .*found 0"),
        ((ROWS, TARGET), {"normalizer": 3, "reduction": "sum"}, ValueError, "normalizer: expected reduction='mean'.*found 'sum'"),
        ((ROWS, TARGET), {"normalizer": 3.0, "reduction": "none"}, ValueError, "normalizer: expected reduction='mean'.*found 'none'"),
        ((ROWS, TARGET), {"normalizer": -1}, ValueError, "normalizer: expected a finite number that is not negative, found -1"),
        ((ROWS, TARGET), {"normalizer": math.nan}, ValueError, "normalizer: .*found nan"),
        ((ROWS, TARGET), {"normalizer": "4"}, TypeError, "normalizer: expected a number or a tensor .*found '4'"),
        ((ROWS, TARGET), {"normalizer": 10**400}, ValueError, "normalizer: expected a finite number"),
        ((ROWS, TARGET), {"ignore_index": ""}, TypeError, "ignore_index: expected an int or a sequence .*found ''"),
        ((ROWS, TARGET), {"ignore_index": b"1"}, TypeError, "found b'1'"),
        ((ROWS, TARGET), {"normalizer": True}, TypeError, "normalizer: .*found True"),
        ((ROWS, TARGET), {"normalizer": torch.ones(1)}, ValueError, r"normalizer: .*found torch.float32 of shape \(1,\)"),
        ((ROWS, TARGET), {"normalizer": torch.ones((), requires_grad=True)}, ValueError, "requires_grad of normalizer"),
        ((torch.zeros(4, 3, requires_grad=True), TARGET), {"inplace": True}, ValueError, "inplace=True: .*found a leaf"),
        ((ROWS, TARGET.bool()), {}, TypeError, "found torch.bool"),
        ((ROWS, TARGET.short()), {}, TypeError, "found torch.int16"),
        ((ROWS.long(), TARGET), {}, TypeError, "dtype of input: expected float64, .*found torch.int64"),
        ((ROWS.cfloat(), TARGET), {}, TypeError, "found torch.complex64"),
        ((ROWS, TARGET[:3]), {}, ValueError, r"shape of target: expected \(4,\) for logits .*\(4, 3\).*found \(3,\)"),
        ((ROWS, TARGET[:, None]), {}, ValueError, r"expected \(4,\) .*found \(4, 1\)"),
        ((torch.zeros(2, 5, 3), torch.zeros(2, 5).long()), {}, ValueError, r"expected \(2, 3\) .*found \(2, 5\)"),
        ((torch.zeros(3), torch.rand(2)), {}, TypeError, r"class probabilities of shape \(3,\), found"),
        ((torch.zeros(3), TARGET[:1]), {}, ValueError, r"shape of target: expected \(\) .*found \(1,\)"),
        ((torch.zeros(()), TARGET[0]), {}, ValueError, r"shape of input: expected \(C\), .*found \(\)"),
        ((torch.zeros(4, 0), TARGET), {}, ValueError, r"with C > 0, found \(4, 0\)"),
        ((ROWS, TARGET), {"reduction": "avg"}, ValueError, "expected 'none', 'mean' or 'sum', found 'avg'"),
        ((ROWS, TARGET), {"reduction": None}, ValueError, "found None"),
        ((ROWS, TARGET), {"reduction": ["mean"]}, ValueError, r"found \['mean'\]"),
        ((ROWS, TARGET), {"label_smoothing": None}, TypeError, "smoothing: expected a number from 0 to 1, found None"),
        ((ROWS, TARGET), {"label_smoothing": "0.1"}, TypeError, "found '0.1'"),
        ((ROWS, TARGET), {"ignore_index": 2**70}, ValueError, "ignore_index: expected values that fit into int64.*found 118"),
        ((ROWS, TARGET), {"ignore_index": [0, -(2**63) - 1]}, ValueError, "fit into int64"),
        ((ROWS, TARGET), {"label_smoothing": 1.1}, ValueError, "smoothing: expected a number from 0 to 1, found 1.1"),
        ((ROWS, TARGET), {"label_smoothing": -0.1}, ValueError, "found -0.1"),
        ((ROWS, TARGET), {"label_smoothing": math.nan}, ValueError, "found nan"),
        ((ROWS, TARGET), {"weight": torch.ones(4)}, ValueError, r"weight: expected \(3,\), one .* class, found \(4,\)"),
        ((ROWS, TARGET), {"weight": torch.ones(3, 1)}, ValueError, r"found \(3, 1\)"),
        ((ROWS, TARGET), {"weight": torch.ones(3).long()}, TypeError, "dtype of weight: .*found torch.int64"),
        ((ROWS, TARGET), {"weight": torch.ones(3, requires_grad=True)}, ValueError, "requires_grad of weight"),
        ((ROWS, TARGET), {"ignore_index": 1.5}, TypeError, "ignore_index: expected an int or a sequence .*found 1.5"),
        ((ROWS, TARGET), {"ignore_index": [1, "2"]}, TypeError, r"found \[1, '2'\]"),
        ((ROWS, TARGET.to("meta")), {}, ValueError, "device of target: expected cpu as for the input, found meta"),
    ],
)  # fmt: skip
def test_bad_arguments(
    arguments: tuple[Tensor, Tensor], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        masked_cross_entropy(*arguments, **options)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logits_on_the_cpu_under_another_default_device(route: str, dtype: torch.dtype, smoothing: float) -> None:
    input, target = batch((9, 5), dtype)
    target[::2] = -100
    wanted = run(masked_cross_entropy, input, target, label_smoothing=smoothing)
    with torch.device("meta"):
        found = run(
            masked_cross_entropy, input, target, torch.ones((), dtype=dtype, device="cpu"), label_smoothing=smoothing
        )
    assert_same(found, wanted)
