"""The fused linear loss under torch.compile, and the operator behind it."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from linear_definition import OPTIONS, Largest, batch
from torch import Tensor

from maskedce import linear_chunks, linear_masked_cross_entropy, thresholds

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def as_if_many(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(thresholds, "ALL_LOGITS", 1)


def compiled(**options: Any) -> Any:
    """Compiled as one graph, forward and backward, in which the operator is seen."""

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        assert any("maskedce.linear" in str(node.target) for node in graph.graph.nodes)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    return torch.compile(functools.partial(linear_masked_cross_entropy, **options), backend=backend, fullgraph=True)


def run(loss: Any, tensors: list[Tensor | None], target: Tensor, upstream: float) -> list[Tensor]:
    found = loss(tensors[0], tensors[1], target, linear_bias=tensors[2])
    given = [t for t in tensors if t is not None and t.requires_grad]
    return [found, *torch.autograd.grad(found, given, torch.full_like(found, upstream))]


def compare(tensors: list[Tensor | None], target: Tensor, tolerance: float, **options: Any) -> None:
    mine, theirs = compiled(**options), functools.partial(linear_masked_cross_entropy, **options)
    for upstream in (1.0, -3.0):
        found, expected = (run(loss, tensors, target, upstream) for loss in (mine, theirs))
        for one, other in zip(found, expected, strict=True):
            assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
            torch.testing.assert_close(one, other, rtol=tolerance, atol=1e-16)


@pytest.mark.parametrize("few", [1, 2**20], ids=["operator", "all logits"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast(few: int, reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thresholds, "ALL_LOGITS", few)
    tensors, target, _ = batch(torch.bfloat16)
    loss = functools.partial(linear_masked_cross_entropy, reduction=reduction)

    def under_autocast(*arguments: Any, **options: Any) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return loss(*arguments, **options)

    mine = torch.compile(under_autocast, backend="aot_eager", fullgraph=True)
    for found, expected in zip(run(mine, tensors, target, 2.0), run(under_autocast, tensors, target, 2.0), strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=2**-7, atol=2**-7 * float(expected.abs().max()))
    plain = run(loss, tensors, target, 2.0)
    found = run(under_autocast, tensors, target, 2.0)
    assert [f.dtype for f in found] == [torch.float32, *[torch.bfloat16] * 3]
    assert torch.equal(found[0].bfloat16(), plain[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gives_what_it_gives_uncompiled(options: dict[str, Any], dtype: torch.dtype) -> None:
    tensors, target, weight = batch(dtype, value=3 if "ignore_index" in options else -100)
    compare(tensors, target, 4e-16 if dtype == torch.float64 else 2e-7, weight=weight, **options)


@pytest.mark.parametrize("wanted", ["hidden and matrix", "hidden", "matrix and bias", "bias"])
def test_gradients_of_some(wanted: str) -> None:
    tensors, target, _ = batch()
    for name, tensor in zip(("hidden", "matrix", "bias"), tensors, strict=True):
        assert tensor is not None
        tensor.requires_grad_(name in wanted)
    compare(tensors, target, 4e-16)


def test_without_a_bias() -> None:
    compare(*batch(bias=False)[:2], 4e-16)


def test_without_a_gradient() -> None:
    tensors, target, _ = batch()
    with torch.no_grad():
        expected = linear_masked_cross_entropy(tensors[0], tensors[1], target)
        assert torch.equal(compiled()(tensors[0], tensors[1], target), expected)


def test_a_bad_target_is_told_in_the_same_words() -> None:
    tensors, target, _ = batch()
    target[4] = 11
    with pytest.raises(IndexError, match="found 11 at position 4"):
        compiled()(tensors[0], tensors[1], target)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_logits_are_never_held(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thresholds, "SMALLEST_CHUNK", 1)
    sweep, largest = linear_chunks.chunked_pass, Largest()

    def watched(*arguments: Any) -> Any:
        with largest:  # what is inside an operator is seen from there only
            return sweep(*arguments)

    monkeypatch.setattr(linear_chunks, "chunked_pass", watched)
    hidden, matrix = torch.randn(400, 8, requires_grad=True), torch.randn(1000, 8, requires_grad=True)
    seen: list[torch.Size] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        seen.extend(node.meta["example_value"].shape for node in graph.graph.nodes if hasattr(node.meta.get("example_value"), "shape"))  # fmt: skip
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    loss = torch.compile(functools.partial(linear_masked_cross_entropy, reduction=reduction), backend=backend)
    loss(hidden, matrix, torch.randint(1000, (400,))).sum().backward()
    assert matrix.grad is not None
    assert 8000 <= largest.count <= 2 * 400 * 1000 // 8
    assert seen
    assert all(shape.numel() < 400 * 1000 for shape in seen)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype: torch.dtype, reduction: str) -> None:
    tensors, target, weight = batch(dtype)
    for bias, widened in ((tensors[2], True), (None, False)):
        wanted = [True, True, bias is not None]
        options = (target, weight, [-100], reduction, 0.1, widened, None, wanted)
        done = torch.library.opcheck(
            torch.ops.maskedce.linear_masked_cross_entropy, (tensors[0], tensors[1], bias, *options)
        )
        assert set(done.values()) == {"SUCCESS"}
        assert len(done) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("ignored", [False, True])
def test_a_transposed_matrix(dtype: torch.dtype, ignored: bool) -> None:
    hidden, matrix = torch.randn(6, 4).to(dtype), torch.randn(4, 5).to(dtype).requires_grad_()
    target = torch.full((6,), -100) if ignored else torch.arange(6) % 5
    for loss in (torch.compile(linear_masked_cross_entropy), linear_masked_cross_entropy):
        (gradient,) = torch.autograd.grad(loss(hidden, matrix.T, target), matrix)
        assert gradient.any() != ignored


def test_a_large_matrix_is_not_widened_for_few_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """float16 and bfloat16: a copy in float32 would take twice the matrix' memory, also between the passes."""
    monkeypatch.setattr(thresholds, "ALL_LOGITS", 2**21)
    hidden, matrix = torch.randn(3, 64).bfloat16(), torch.randn(2**15, 64).bfloat16().requires_grad_()
    seen: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        seen.extend(node.meta.get("example_value") for node in graph.graph.nodes)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch.compile(linear_masked_cross_entropy, backend=backend)(hidden, matrix, torch.arange(3)).backward()
    assert matrix.grad is not None
    assert seen
    assert not [t for t in seen if isinstance(t, Tensor) and t.dtype == torch.float32 and t.numel() >= matrix.numel()]


@pytest.mark.parametrize("few", [1, 2**21], ids=["operator", "few"])
def test_the_normalizer_of_each_step_is_no_new_program(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thresholds, "ALL_LOGITS", few)
    tensors, target, _ = batch()
    programs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        programs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    loss = torch.compile(linear_masked_cross_entropy, backend=backend)
    expected = functools.partial(linear_masked_cross_entropy, tensors[0], tensors[1], target)
    for normalizer in (2.5, 3.5, 4.25, 5.125):
        found = loss(tensors[0], tensors[1], target, normalizer=normalizer)
        torch.testing.assert_close(found, expected(normalizer=normalizer))
    assert len(programs) <= 2  # one for the first number, one for any
    found = loss(tensors[0], tensors[1], target, normalizer=1e39)  # beyond float32
    torch.testing.assert_close(found, expected(normalizer=1e39), atol=0, rtol=1e-6)
    with torch.device("meta"):
        found = loss(tensors[0], tensors[1], target, normalizer=3.5)
    torch.testing.assert_close(found, expected(normalizer=3.5))


def test_second_derivatives_are_refused_by_every_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thresholds, "ALL_LOGITS", 1)
    tensors, target, _ = batch()
    loss = torch.compile(linear_masked_cross_entropy, backend="eager")(tensors[0], tensors[1], target)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(loss, tensors[0], create_graph=True)


def test_an_infinite_upstream_gradient_does_not_reach_ignored_states() -> None:
    hidden, matrix = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
    loss = compiled()(hidden, matrix, torch.tensor([1, 2, -100]))
    (gradient,) = torch.autograd.grad(loss, hidden, torch.tensor(torch.inf))
    assert not gradient[2].any()
    assert not gradient[:2].isfinite().any()
