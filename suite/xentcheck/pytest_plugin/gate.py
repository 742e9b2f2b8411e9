"""The part of the pytest plugin that holds a run to a baseline: ``--gate`` and ``--strict-perf``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from xentcheck.gate import compare as gate
from xentcheck.gate.baseline import GateError, read_baseline
from xentcheck.gate.confirm import measure_again
from xentcheck.pytest_plugin.session import SESSION, finished
from xentcheck.results import record


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("xentcheck")
    group.addoption(
        "--gate",
        metavar="BASELINE",
        type=Path,
        help="exit with 1 where verdicts, capabilities, memory or speed are worse than in this file (see xentcheck baseline)",
    )
    group.addoption("--strict-perf", action="store_true", help="with --gate: inconclusive is red, too")


BASELINE = pytest.StashKey[Mapping[str, Any]]()
REPORT = pytest.StashKey[gate.Report]()


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("gate")
    if path is None or hasattr(config, "workerinput"):
        if config.getoption("strict_perf") and path is None:
            raise pytest.UsageError("--strict-perf says how strict --gate BASELINE is; give that, too")
        return
    if SESSION not in config.stash:
        raise pytest.UsageError("--gate needs --impl: the implementations to hold to the baseline")
    try:
        config.stash[BASELINE] = read_baseline(path)  # before an hour of measurements, not after
    except GateError as error:
        raise pytest.UsageError(str(error)) from error


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Any:
    config = session.config
    if BASELINE not in config.stash or config.getoption("collectonly", False):
        return (yield)
    mine = config.stash[SESSION]
    ended = finished(session, exitstatus)
    report = gate.compare(
        record.Results(mine.header(), tuple(mine.verdicts.values()), tuple(mine.costs.values()), ended),
        config.stash[BASELINE],
        measure_again if ended else None,
        {i.name: i.source or i.name for i in mine.implementations},
    )
    config.stash[REPORT] = report
    result = yield
    if report.is_red(config.getoption("strict_perf")) and session.exitstatus in (
        pytest.ExitCode.OK,
        pytest.ExitCode.NO_TESTS_COLLECTED,
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> Any:
    """Below the tables: what the gate says is what decides."""
    result = yield
    if REPORT in config.stash:
        text = gate.markdown(config.stash[REPORT], config.getoption("strict_perf"))
        terminalreporter.section("gate")
        terminalreporter.write_line(text)
        gate.publish(text)
    return result
