"""Where the files that come with the package are: beside the code of a checkout, or in the installed package."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
# What pytest registers where the suite is asked for.
PYTEST_PLUGINS = tuple(f"xentcheck.pytest_plugin.{name}" for name in ("conformance", "cost", "gate"))


def cases_folder() -> Path:
    """The folder of the specification's case files."""
    return _folder("cases")


def implementations_folder() -> Path:
    """The folder of the implementations that ship with the suite."""
    return _folder("implementations")


def suite_folder() -> Path:
    """The folder of the tests that users run."""
    return _folder("suite")


def checkout() -> Path | None:
    """The root of the checkout that the package is part of; None where it is installed."""
    root = _PACKAGE.parents[1]
    return root if _PACKAGE.parent.name == "suite" and (root / "cases").is_dir() else None


def _folder(name: str) -> Path:
    root = checkout()
    return root / name if root and (root / name).is_dir() else _PACKAGE / name
