"""The library loss under torch.compile and autocast, and the operator behind it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forced_routes import DTYPES, assert_same, batch, run
from torch import Tensor

from maskedce import buffers, masked_cross_entropy

BACKEND = "aot_eager"  # traces all that inductor would compile, forward and backward


@pytest.fixture(params=["fused", "operator"])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """The loss compiled as one graph: few logits as plain operations, many as an operator."""
    torch.compiler.reset()
    monkeypatch.setattr(buffers, "is_large", lambda shape, dtype: request.param == "operator")
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return torch._dynamo.lookup_backend(BACKEND)(graph, inputs)

    def checked(*arguments: Any, **options: Any) -> Tensor:
        torch.compiler.reset()
        seen.clear()
        loss = torch.compile(functools.partial(masked_cross_entropy, **options), backend=backend, fullgraph=True)(
            *arguments
        )
        assert any("maskedce" in name for name in seen) == (request.param == "operator")
        return loss

    return checked


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "none"},
        {"reduction": "sum", "ignore_index": [-100, 2]},
        {"label_smoothing": 0.1, "weight": torch.tensor([1.0, 0, 2, 0.5, 1])},
        {"normalizer": 7},
        {"normalizer": torch.tensor(2.5)},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_gives_what_it_gives_uncompiled(
    compiled: Callable[..., Tensor], options: dict[str, Any], dtype: torch.dtype
) -> None:
    for shape in ((6, 5), (2, 5, 3)):
        input, target = batch(shape, dtype, ignored=0.3)
        found = run(compiled, input, target, 3.0, **options)
        expected = run(masked_cross_entropy, input, target, 3.0, **options)
        assert [f.dtype for f in found] == [dtype, dtype]
        assert_same(found, expected, rtol=2 * torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps)


def test_class_probabilities(compiled: Callable[..., Tensor]) -> None:
    for shape in ((6, 5), (2, 5, 3)):
        input, target = batch(shape)[0], torch.rand(shape, dtype=torch.float64)
        assert_same(run(compiled, input, target), run(F.cross_entropy, input, target))


def test_all_ignored_and_bad_logits(compiled: Callable[..., Tensor]) -> None:
    input, target = batch((4, 3))
    loss, gradient = run(compiled, torch.full_like(input, torch.nan), torch.full_like(target, -100))
    assert loss == 0
    assert (gradient == 0).all()


def test_other_layouts(compiled: Callable[..., Tensor]) -> None:
    input, target = batch((2, 5, 3, 4), ignored=0.3)
    expected = run(masked_cross_entropy, input, target)
    for x in (input.contiguous(memory_format=torch.channels_last), input.transpose(2, 3).contiguous().transpose(2, 3)):
        assert_same(run(compiled, x, target), expected)


def test_autocast(compiled: Callable[..., Tensor]) -> None:
    input, target = batch((6, 5), torch.bfloat16, ignored=0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = compiled(input.requires_grad_(), target), F.cross_entropy(input, target)
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, F.cross_entropy(input.float(), target))


def test_transforms_inside() -> None:
    input, target = batch((3, 4, 5), ignored=0.3)
    target = target[:, :4]
    each = functools.partial(masked_cross_entropy, reduction="none")
    expected = torch.stack([each(x, t) for x, t in zip(input, target, strict=True)])
    for transform, result in (
        (torch.func.vmap(each), expected),
        (
            torch.func.grad(lambda x, t: torch.func.vmap(each)(x, t).sum()),
            run(lambda x, t: torch.func.vmap(each)(x, t).sum(), input, target)[1],
        ),
    ):
        torch.compiler.reset()
        torch.testing.assert_close(torch.compile(transform, backend=BACKEND, fullgraph=True)(input, target), result)


def test_inplace_leaves_compiled_logits_alone(compiled: Callable[..., Tensor]) -> None:
    input, target = batch((6, 5))
    input.requires_grad_()
    logits = input * 1
    before = logits.detach().clone()
    compiled(logits, target, inplace=True).backward()
    assert torch.equal(logits, before)
    torch.testing.assert_close(input.grad, run(masked_cross_entropy, input, target)[1])


@pytest.mark.parametrize(
    "arguments",
    [
        (None, [-100], 0.0, "mean", None, False),
        (None, [-100, 2], 0.1, "sum", None, False),
        (torch.tensor([1.0, 0, 2, 0.5, 1]), [-100], 0.1, "none", None, False),
        (None, [-100], 0.0, "mean", torch.tensor(7.0), True),
    ],
    ids=["plain", "sum", "none", "widened"],
)
def test_opcheck(arguments: tuple[Any, ...]) -> None:
    dtype = torch.bfloat16 if arguments[-1] else torch.float32
    for shape in ((6, 5), (2, 5, 3, 4)):
        input, target = batch(shape, dtype, ignored=0.3)
        for x in (input, input.movedim(1, -1).contiguous().movedim(-1, 1)):
            for t in (target, torch.rand(shape)):
                done = torch.library.opcheck(
                    torch.ops.maskedce.masked_cross_entropy, (x.detach().requires_grad_(), t, *arguments)
                )
                assert set(done.values()) == {"SUCCESS"}
                assert len(done) == 4


@pytest.mark.parametrize("kind", ["weight and smoothing", "probabilities"])
def test_classes_that_are_not_last_in_memory_by_the_real_compiler(kind: str) -> None:
    """Inductor of torch 2.13 shares one buffer of C values among the lanes of a vector for amax, logsumexp and a mask."""
    torch.compiler.reset()
    input, target = torch.randn(64, 20).t().contiguous().t(), torch.randint(20, (64,))
    options: dict[str, Any] = {"weight": torch.rand(20), "label_smoothing": 0.1}
    if kind == "probabilities":
        target, options = torch.rand(64, 20).softmax(1), {}
    loss = functools.partial(masked_cross_entropy, target=target, **options)
    found = run(lambda x, _: torch.compile(loss)(x), input, target)
    assert_same(found, run(lambda x, _: loss(x), input, target), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"label_smoothing": 0.1}], ids=str)
def test_export_with_a_dynamic_batch(options: dict[str, Any], strict: bool) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor, target: Tensor) -> Tensor:
            return masked_cross_entropy(x, target, **options)

    size = torch.export.Dim("size")
    example = (torch.randn(16, 1000), torch.zeros(16, dtype=torch.int64))
    program = torch.export.export(Model(), example, dynamic_shapes=({0: size}, {0: size}), strict=strict).module()
    for count in (3, 9000):  # below and above what is few
        input, target = batch((count, 1000), torch.float32, ignored=0.2)
        torch.testing.assert_close(program(input, target), masked_cross_entropy(input, target, **options))


def test_the_normalizer_of_each_step_is_no_new_program(monkeypatch: pytest.MonkeyPatch) -> None:
    input, target = batch((6, 5), torch.float32, ignored=0.3)
    for many in (False, True):
        torch.compiler.reset()
        monkeypatch.setattr(buffers, "is_large", lambda shape, dtype, many=many: many)
        programs: list[Any] = []

        def backend(graph: torch.fx.GraphModule, inputs: list[Any], programs: list[Any] = programs) -> Any:
            programs.append(graph)
            return torch._dynamo.lookup_backend(BACKEND)(graph, inputs)

        loss = torch.compile(masked_cross_entropy, backend=backend)
        input.requires_grad_()
        for normalizer in (2.5, 3.5, 4.25, 5.125):
            expected = masked_cross_entropy(input, target, normalizer=normalizer)
            torch.testing.assert_close(loss(input, target, normalizer=normalizer), expected)
        assert len(programs) <= 2
        assert loss(input, target, normalizer=1e45) == 0
        with torch.device("meta"):
            found = loss(input, target, normalizer=2.5)
        torch.testing.assert_close(found, masked_cross_entropy(input, target, normalizer=2.5))


@pytest.mark.parametrize("shape", [(4, 20_000), (1, 20_000, 4)], ids=str)
@pytest.mark.parametrize("wants_gradient", [True, False])
def test_certain_positions_over_a_flat_tail_by_the_real_compiler(shape: tuple[int, ...], wants_gradient: bool) -> None:
    """Beside a 1, which its loop adds the others to, they would be lost."""
    input, target = torch.randn(shape) * 0.02, torch.randint(shape[1], (shape[0], *shape[2:]))
    input.scatter_(1, target.unsqueeze(1), 17.0).requires_grad_(wants_gradient)
    torch.compiler.reset()
    loss = torch.compile(masked_cross_entropy, fullgraph=True)(input, target)
    torch.testing.assert_close(loss.double(), F.cross_entropy(input.double(), target), rtol=2e-6, atol=0)
