"""Every test of maskedce starts from the same seed; one that asks for ``route`` is run by each of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from forced_routes import ROUTES, take_route

# What `make test` runs of maskedce; the others take many calls each, or a compiler.
QUICK = ("test_arguments", "test_ignored_positions", "test_normalizer", "test_routes")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.stem not in QUICK:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return take_route(request.param, monkeypatch)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
