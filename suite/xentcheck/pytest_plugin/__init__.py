"""What pytest imports wherever xentcheck is installed. It does nothing unless the run asks for the suite.

Options and fixtures are registered only where ``xentcheck.suite`` is among the arguments, so other projects' test runs stay as they are. In a
checkout the root ``conftest.py`` registers them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

SUITE = "xentcheck.suite"


def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    if SUITE in args:
        from xentcheck.spec.resources import PYTEST_PLUGINS

        for name in PYTEST_PLUGINS:
            early_config.pluginmanager.import_plugin(name)
