"""Data flows one way: a package of the library imports only from packages on floors below its own."""

import ast
from pathlib import Path

import pytest

import xentcheck

LIBRARY = Path(xentcheck.__file__).parent
FLOORS = [
    {"spec"},
    {"implementation"},
    {"reference"},
    {"run"},
    {"cost", "repro", "explore", "lint"},
    {"results"},
    {"publish", "gate", "field"},
    {"pytest_plugin", "cli"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def imported(path):
    """The packages of the library that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "xentcheck":
            inside = (node.module or "").split(".")[1:2]
            yield from inside or [alias.name for alias in node.names]


def test_every_package_has_a_floor():
    rooms = {path.parent.name if path.name == "__init__.py" else path.stem for path in LIBRARY.glob("*/__init__.py")}
    assert rooms | {path.stem for path in LIBRARY.glob("[a-z]*.py")} == FLOOR.keys()


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("[a-z]*.py")), ids=lambda p: str(p.relative_to(LIBRARY)))
def test_a_module_imports_only_from_its_own_package_and_from_below(path):
    room = path.relative_to(LIBRARY).with_suffix("").parts[0]
    assert [other for other in imported(path) if other != room and FLOOR[other] >= FLOOR[room]] == []


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=lambda p: str(p.relative_to(LIBRARY)))
def test_a_package_says_what_it_is(path):
    """The first words of a file are what a newcomer reads."""
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", sorted((LIBRARY.parents[1] / "implementations").glob("*.py")), ids=lambda p: p.stem)
def test_an_implementation_needs_no_more_of_the_suite_than_a_users_own_file(path):
    assert set(imported(path)) <= {"implementation"}
