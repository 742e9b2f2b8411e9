"""Every test of maskedce starts from the same seed; one that asks for ``route`` is run by each of them."""

from __future__ import annotations

import pytest
import torch
from forced_routes import ROUTES, take_route


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return take_route(request.param, monkeypatch)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
