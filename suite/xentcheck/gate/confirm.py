"""Measures speed again in a process of its own, whose memory, caches and luck are others."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from xentcheck.cost.measurement import Measurement
from xentcheck.gate.baseline import GateError
from xentcheck.results.record import RecordError, load
from xentcheck.spec.resources import PYTEST_PLUGINS, suite_folder

TIMEOUT = 600  # seconds


def measurer(sources: Mapping[str, str]) -> Callable[[Sequence[Measurement]], Sequence[Measurement]]:
    """What measures the same implementations on the same cases once more, in one new process.

    Args:
        sources: what ``--impl`` takes, by name; from the caller, never from a record, which must not name code that is run.

    Raises:
        GateError: by what is returned, where nothing could be measured.
    """

    def again(measured: Sequence[Measurement]) -> Sequence[Measurement]:
        unknown = sorted({m.implementation for m in measured} - sources.keys())
        if unknown:
            raise GateError(f"it was not measured a second time; to do so, name {', '.join(unknown)} by --impl")
        wanted = {m.key for m in measured}
        return [
            m
            for m in _measured([sources[name] for name in {m.implementation: 0 for m in measured}], measured)
            if m.key in wanted
        ]

    return again


def _measured(sources: Sequence[str], measured: Sequence[Measurement]) -> Sequence[Measurement]:
    # A process started from an xdist worker is none itself; pytest-benchmark would measure nothing in one.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    threads = next(str(m.timing.settings.threads) for m in measured if m.timing)
    cases, plugins = dict.fromkeys(m.case for m in measured), [w for n in PYTEST_PLUGINS for w in ("-p", n)]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pytest", str(suite_folder() / "test_speed.py"), "-q"]
        command += ["-p", "no:cacheprovider", *plugins, "--impl", ",".join(dict.fromkeys(sources))]
        command += ["--profile", ",".join(cases), "--device", measured[0].device, "--results", folder]
        environment = {**inherited, "OMP_NUM_THREADS": threads}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
            return load(Path(folder)).costs
        except subprocess.TimeoutExpired as error:
            raise GateError(f"the second process took more than {TIMEOUT} seconds") from error
        except RecordError as error:
            last = (done.stdout + done.stderr).strip().splitlines()[-1:]
            raise GateError(f"the second process measured nothing: {' '.join(last)[:200]}") from error
