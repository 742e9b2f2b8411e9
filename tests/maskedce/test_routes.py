"""The tables of routes: each row is taken by a call that is meant for it, and says where it stands and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import maskedce
from maskedce import (
    buffers,
    cross_entropy,
    linear_cross_entropy,
    linear_masked_cross_entropy,
    linear_routes,
    masked_cross_entropy,
    route_small,
    route_triton,
    routes,
    thresholds,
)

FOLDER = Path(maskedce.__file__).parent
TABLES = [routes.ROUTES, linear_routes.LINEAR_ROUTES]
BACKEND = "aot_eager"


def logits(rows: int = 6, classes: int = 5) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, classes, requires_grad=True), torch.arange(rows) % classes


def compiled(input: Tensor, target: Tensor) -> Tensor:
    torch.compiler.reset()
    return torch.compile(masked_cross_entropy, backend=BACKEND)(input, target)


def smoothed(input: Tensor, target: Tensor) -> Tensor:
    return masked_cross_entropy(input, target, label_smoothing=0.1)


def mapped(input: Tensor, target: Tensor) -> Tensor:
    return torch.func.vmap(lambda x, t: masked_cross_entropy(x, t, reduction="none"))(input, target)


def with_a_target_that_learns(input: Tensor, target: Tensor) -> Tensor:
    return masked_cross_entropy(input, torch.rand_like(input).requires_grad_())


CALLS: list[tuple[str, Callable[..., Tensor], dict[str, Any]]] = [
    ("small", smoothed, {}),
    ("composed", mapped, {}),
    ("composed", with_a_target_that_learns, {"SMALL_BYTES": 0}),
    ("compiled fused", compiled, {}),
    ("compiled operator", compiled, {"MAPPED_BYTES": 0}),
    ("compiled operator", compiled, {"SUMMED_CLASSES": 0}),
    ("blockwise", masked_cross_entropy, {"SMALL_BYTES": 0}),
    ("blockwise", masked_cross_entropy, {"SUMMED_CLASSES": 0, "SUMMED_ROW_BYTES": 0}),
    ("blockwise", smoothed, {"SMALL_BYTES": 0}),
]

LINEAR_CALLS: list[tuple[str, Callable[[Callable[..., Tensor]], Callable[..., Tensor]], dict[str, Any]]] = [
    ("chunked", lambda loss: loss, {}),
    ("composed", lambda loss: torch.compile(loss, backend=BACKEND), {}),
    ("compiled operator", lambda loss: torch.compile(loss, backend=BACKEND), {"ALL_LOGITS": 0}),
    ("composed", torch.func.functionalize, {}),
]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the routes that calls have taken, in both tables."""
    names: list[str] = []

    def watched(table: tuple[routes.Route, ...]) -> tuple[routes.Route, ...]:
        def compute(call: Any, route: routes.Route) -> Tensor:
            names.append(route.name)
            return route.compute(call)

        return tuple(r._replace(compute=lambda call, r=r: compute(call, r)) for r in table)

    monkeypatch.setattr(cross_entropy, "ROUTES", watched(routes.ROUTES))
    monkeypatch.setattr(linear_cross_entropy, "LINEAR_ROUTES", watched(linear_routes.LINEAR_ROUTES))
    return names


@pytest.mark.parametrize(("name", "loss", "changed"), CALLS)
def test_a_call_takes_the_route_that_is_meant_for_it(
    name: str, loss: Callable[..., Tensor], changed: dict[str, Any], taken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for threshold, value in changed.items():
        monkeypatch.setattr(thresholds, threshold, value)
    monkeypatch.setattr(thresholds, "SHORT_ROW_BYTES", 0)
    input, target = logits()
    value = loss(input, target)
    assert value.isfinite().all()
    assert taken == [name]


@pytest.mark.parametrize(("name", "made", "changed"), LINEAR_CALLS)
def test_a_linear_call_takes_the_route_that_is_meant_for_it(
    name: str, made: Callable[..., Any], changed: dict[str, Any], taken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.compiler.reset()
    for threshold, value in changed.items():
        monkeypatch.setattr(thresholds, threshold, value)
    hidden, matrix = torch.randn(6, 4), torch.randn(5, 4)
    value = made(linear_masked_cross_entropy)(hidden, matrix, torch.arange(6) % 5)
    assert value.isfinite().all()
    assert taken[0] == name  # composed, the logits then take a route of theirs


def test_logits_on_cuda_go_to_triton(taken: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that is played, with kernels that are."""
    monkeypatch.setattr(routes, "_is_on_cuda", lambda input: True)
    monkeypatch.setattr(cross_entropy, "torch_loss_if_right", lambda *arguments: None)
    monkeypatch.setattr(cross_entropy, "values_are_readable", lambda input: False)
    monkeypatch.setattr(route_triton, "kernels_can_compute", lambda input, target: not target.is_floating_point())
    monkeypatch.setattr(route_triton, "kernel_loss", lambda input, objective: input.sum())
    input, target = logits()
    masked_cross_entropy(input, target)
    masked_cross_entropy(input, torch.rand(6, 5))
    assert taken == ["triton", "composed"]


def test_a_plain_small_call_does_not_come_to_the_table(taken: list[str]) -> None:
    input, target = logits()
    masked_cross_entropy(input, target)
    assert taken == []
    assert route_small.torch_loss_if_right(input, target, -100, "mean") is not None


@pytest.mark.parametrize("route", [route for table in TABLES for route in table], ids=lambda route: route.file)
def test_a_row_names_its_file(route: routes.Route) -> None:
    assert (FOLDER / route.file).is_file()
    module = Path(route.compute.__code__.co_filename).name
    assert module == ("routes.py" if route.name == "triton" else route.file)  # imported only when it is needed
    assert route.cost
    assert route.why


def test_every_route_file_stands_in_a_table_and_every_route_is_called_here() -> None:
    assert {route.file for table in TABLES for route in table} == {
        path.name for path in FOLDER.glob("*.py") if path.name.startswith(("route_", "linear_route_"))
    }
    called = {name for name, *_ in CALLS} | {"triton"}, {name for name, *_ in LINEAR_CALLS}
    assert called == tuple({route.name for route in table} for table in TABLES)


def test_large_buffers_are_what_makes_compiled_logits_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thresholds, "MAPPED_BYTES", 4 * 30)
    assert buffers.is_large((6, 5), torch.float32)
    assert not buffers.is_large((5, 5), torch.float32)
