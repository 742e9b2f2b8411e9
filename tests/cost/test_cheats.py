"""Figures that are faked are refused, by name; what only looks like a cheat is measured."""

import importlib
import sys
from pathlib import Path

import pytest

from xentcheck.cost.measure import Costs
from xentcheck.implementation import find
from xentcheck.spec import speed_cases

FOLDER = Path(__file__).parents[1] / "cheats"
sys.path.insert(0, str(FOLDER))
REGISTRY = importlib.import_module("_registry")
for path in sorted(FOLDER.glob("[a-z]*.py")):
    importlib.import_module(path.stem)
sys.path.remove(str(FOLDER))

HEADER = """clause: cheats
profile: quick
title: A batch
requirement: The answer is the definition's.
sources: [https://example.org]
cases:
  - {id: one, why: large enough to be timed, logits: {shape: [512, 1000], fill: tiled}, target: {ignore: {fraction: 0.1}}, memory_limit: 1 GiB}
"""


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    path = tmp_path_factory.mktemp("cases") / "cheats.yaml"
    path.write_text(HEADER)
    return speed_cases.load(path)[0]


@pytest.fixture(scope="module")
def costs():
    made = Costs(find("native")[0])
    yield made
    made.close()


@pytest.fixture(autouse=True)
def undone(monkeypatch, costs):
    import torch

    profile = sys.getprofile()
    yield
    sys.setprofile(profile)
    torch.set_num_threads(1)
    costs.forget()


pytestmark = pytest.mark.slow


def test_there_are_enough():
    assert len(REGISTRY.CHEATS) >= 20
    assert len(REGISTRY.HONEST) >= 5


@pytest.mark.parametrize("name", REGISTRY.CHEATS)
def test_a_cheat_is_caught(name, case, costs, monkeypatch):
    make, measure, words, status = REGISTRY.CHEATS[name]
    implementation = make(monkeypatch)
    if measure == "held":
        found = costs.memory(case, implementation)
        assert found.memory.held >= words, found
        assert found.memory.backward >= found.memory.held
        return
    found = costs.memory(case, implementation) if measure == "memory" else costs.speed(case, implementation)
    assert found.status == status, found
    assert words in found.message


@pytest.mark.parametrize("name", REGISTRY.HONEST)
def test_who_is_honest_is_measured(name, case, costs, monkeypatch):
    implementation = REGISTRY.HONEST[name](monkeypatch)
    for found in (costs.memory(case, implementation), costs.speed(case, implementation)):
        assert found.status == "pass", found.message
