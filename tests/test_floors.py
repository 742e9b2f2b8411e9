"""Data flows one way: a module of the library imports only from floors below its own."""

import ast
from pathlib import Path

import pytest

import xentcheck

LIBRARY = Path(xentcheck.__file__).parent
FLOORS = [
    # facts and words
    {"capabilities", "case_modes", "environment", "mistakes", "patterns", "resources", "status", "pytest_entry"},
    {"definition", "global_state", "layout", "markdown", "script_literals", "wire"},
    {"fields", "modes", "settings", "verdict", "yaml_document"},
    # what is asked, and what can be tested
    {"case", "validation"},
    {"bug_reports", "declare", "draw", "loader"},
    {"batch", "load", "speed_cases"},
    {"capture_batch", "documents", "implementation", "linear", "needs", "units"},
    # the truth, and what was observed
    {"observe", "plot", "record", "score", "script_source", "timing", "truth"},
    {
        "blockwise",
        "common_claims",
        "isolate",
        "memory",
        "page",
        "plot_cost",
        "relations",
        "script",
        "terminal",
        "worker",
    },
    # judgement
    {
        "cost_check",
        "judge",
        "page_accuracy",
        "page_answers",
        "page_bugs",
        "page_conformance",
        "page_conventions",
        "page_deviations",
        "page_summary",
    },
    {"cost", "examine", "report"},
    {"lint", "plugin", "report_check", "situations", "terminal_cost"},
    {"explore", "gate", "plugin_cost", "report_cost"},
    {"explore_plugin", "gate_trials", "second_process"},
    {"cli", "plugin_gate"},
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
