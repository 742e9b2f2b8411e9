"""Data flows one way: a module of the library imports only from floors below its own."""

import ast
from pathlib import Path

import pytest

import xentcheck

LIBRARY = Path(xentcheck.__file__).parent
FLOORS = [
    {"claims", "naming", "yamltext", "global_state", "markdown", "wire"},
    {"case"},
    {"casefile", "declare"},
    {"load"},
    {"implementation"},
    {"batch", "profiles"},
    {"linear"},
    {"capture", "reference", "observe", "compare", "timing", "documents"},
    {"memory", "relations"},
    {"judge", "isolate", "worker"},
    {"examine", "record", "large"},
    {"cost"},
    {"terminal", "terminal_cost", "repro", "lint", "plot", "plot_cost", "situations"},
    {"common_claims", "explore", "bug_reports"},
    {"report", "report_cost", "gate"},
    {"second_process"},
    {"plugin", "gate_trials"},
    {"explore_plugin", "plugin_cost", "plugin_gate", "cli"},
]
FLOOR = {module: number for number, modules in enumerate(FLOORS) for module in modules}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "xentcheck":
            inside = (node.module or "").split(".")[1:2]
            yield from inside or [alias.name for alias in node.names]


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("[a-z]*.py")), ids=lambda p: p.stem)
def test_a_module_imports_only_from_below(path):
    module = path.relative_to(LIBRARY).with_suffix("").parts[0]  # a package is one module
    assert module in FLOOR, "a new module belongs to a floor"
    assert [m for m in imported(path) if FLOOR[m] >= FLOOR[module]] == []


@pytest.mark.parametrize("path", sorted((LIBRARY.parents[1] / "implementations").glob("*.py")), ids=lambda p: p.stem)
def test_an_implementation_needs_no_more_of_the_suite_than_a_users_own_file(path):
    assert set(imported(path)) <= {"implementation"}
