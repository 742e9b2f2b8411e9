"""What the tests of pages share."""

import pytest
from matplotlib.figure import Figure

SAVE = Figure.savefig


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Drawing takes most of the time of making pages, and few tests look at a plot: those ask for ``drawn``."""

    def save(self, where, **options):
        (where.write if hasattr(where, "write") else where.write_bytes)(b"<?xml version='1.0'?><svg/>")

    monkeypatch.setattr(Figure, "savefig", save)


@pytest.fixture
def drawn(undrawn, monkeypatch):
    """Plots are drawn as they are for readers."""
    monkeypatch.setattr(Figure, "savefig", SAVE)
