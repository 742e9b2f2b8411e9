"""Measures speed again in a process of its own, whose memory, caches and luck are others."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from xentcheck.gate.baseline import GateError, Line
from xentcheck.implementation import ImplementationError, find
from xentcheck.results.record import RecordError, load
from xentcheck.spec.resources import PYTEST_PLUGINS, suite_folder

SUITE = suite_folder()
TIMEOUT = 600  # seconds


def measure_again(lines: Sequence[Line]) -> list[Line]:
    """The speed lines of the same implementations and cases from one new process. Raises GateError where there is none."""
    names = {}
    for line in lines:
        try:
            names[line["implementation"]] = find(line["source"])[0].name
        except ImplementationError as error:
            raise GateError(f"it could not be measured a second time: {error}") from error
    test = SUITE / "test_speed.py"
    nodes = [f"{test}::test_speed[{names[line['implementation']]}:{line['case']}]" for line in lines]
    sources = dict.fromkeys(line["source"] for line in lines)
    profiles = dict.fromkeys(line["profile"] for line in lines)
    # A process started from an xdist worker is none itself; pytest-benchmark would measure nothing in one.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment = {**inherited, "OMP_NUM_THREADS": str(lines[0]["settings"]["threads"])}
    with tempfile.TemporaryDirectory() as folder:
        plugins = [word for name in PYTEST_PLUGINS for word in ("-p", name)]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugins, *nodes]
        command += ["--impl", ",".join(sources), "--profile", ",".join(profiles), "--device", lines[0]["device"]]
        try:
            done = subprocess.run(
                [*command, "--results", folder], env=environment, capture_output=True, text=True, timeout=TIMEOUT
            )
            costs = load(Path(folder)).costs
        except subprocess.TimeoutExpired as error:
            raise GateError(f"the second process took more than {TIMEOUT} seconds") from error
        except RecordError as error:
            last = (done.stdout + done.stderr).strip().splitlines()[-1:]
            raise GateError(f"the second process measured nothing: {' '.join(last)[:200]}") from error
    back = {new: old for old, new in names.items()}
    return [{**line, "implementation": back.get(line["implementation"], line["implementation"])} for line in costs]
