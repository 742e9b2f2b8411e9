"""The same as torch where torch is right, by every route."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forced_routes import DTYPES, HALF, assert_same, batch, run
from torch import Tensor

from maskedce import masked_cross_entropy


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("ignored", [-100, 0, "last class", 255])
def test_agrees_with_torch_in_float64(
    route: str, dtype: torch.dtype, reduction: str, smoothing: float, weighted: bool, ignored: int | str
) -> None:
    eps = torch.finfo(dtype).eps
    for shape in ((8, 11), (1, 3), (5, 1), (3, 5, 4), (2, 4, 3, 5), (2, 3, 1, 2, 2)):
        input, target = batch(shape, dtype)
        ignore = shape[1] - 1 if ignored == "last class" else ignored
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
        if (target == ignore).all() and reduction == "mean":  # torch: 0 / 0
            assert expected[0].isnan()
            expected = tuple(torch.zeros_like(e) for e in expected)
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


def test_target_dtypes(route: str) -> None:
    input = torch.randn(5, 200)
    for dtype in (torch.int64, torch.int32, torch.uint8):
        target = torch.tensor([0, 156, 199, 7, 8], dtype=dtype)  # as uint8, -100 would be 156
        assert_same(run(masked_cross_entropy, input, target), run(F.cross_entropy, input, target.long()))
        found = run(masked_cross_entropy, input, target, ignore_index=156)
        assert_same(found, run(F.cross_entropy, input, target.long(), ignore_index=156))


def test_negative_and_half_precision_weights(route: str) -> None:
    input, target = batch((6, 4))
    for weight in (torch.tensor([1, -2, 3, 0.5]), torch.tensor([1, 2, 3, 0.1], dtype=torch.bfloat16)):
        expected = run(F.cross_entropy, input, target, weight=weight.double(), label_smoothing=0.1)
        assert_same(run(masked_cross_entropy, input, target, weight=weight, label_smoothing=0.1), expected)


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
