"""The part of the pytest plugin that holds a run to a baseline: ``--gate`` and ``--strict-perf``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xentcheck.gate.baseline import Baseline, read_baseline
from xentcheck.gate.compare import Report, compare
from xentcheck.gate.confirm import measurer
from xentcheck.gate.selection import Selection
from xentcheck.gate.summary import markdown, publish
from xentcheck.pytest_plugin.session import SESSION, finished
from xentcheck.results import record
from xentcheck.spec.mistakes import UsageError


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("xentcheck")
    group.addoption(
        "--gate",
        metavar="BASELINE",
        type=Path,
        help="exit with 1 where verdicts, capabilities, memory or speed are worse than in this file, or missing (see xentcheck baseline)",
    )
    group.addoption(
        "--gate-only",
        metavar="PATTERNS",
        help="with --gate: hold the run to this part of the baseline, such as 'ignored-*', 'maskedce:*' or '*:*:verdicts' (or costs)",
    )
    group.addoption("--strict-perf", action="store_true", help="with --gate: inconclusive is red, too")


BASELINE = pytest.StashKey[Baseline]()
SELECTION = pytest.StashKey[Selection]()
REPORT = pytest.StashKey[Report]()


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("gate")
    if path is None or hasattr(config, "workerinput"):
        for option in ("strict_perf", "gate_only"):
            if config.getoption(option) and path is None:
                raise pytest.UsageError(f"--{option.replace('_', '-')} goes with --gate BASELINE; give that, too")
        return
    if SESSION not in config.stash:
        raise pytest.UsageError("--gate needs --impl: the implementations to hold to the baseline")
    try:
        config.stash[BASELINE] = read_baseline(path)  # before an hour of measurements, not after
        config.stash[SELECTION] = Selection(config.getoption("gate_only") or "")
    except UsageError as error:
        raise pytest.UsageError(str(error)) from error


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Any:
    config = session.config
    if BASELINE not in config.stash or config.getoption("collectonly", False):
        return (yield)
    run = config.stash[SESSION]
    ended = finished(session, exitstatus)
    sources = {i.name: i.source or i.name for i in run.implementations}
    report = compare(
        record.Results(run.header(), tuple(run.verdicts.values()), tuple(run.costs.values()), ended),
        config.stash[BASELINE],
        measurer(sources) if ended else None,
        sources,
        config.stash[SELECTION],
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
        text = markdown(config.stash[REPORT], config.getoption("strict_perf"))
        terminalreporter.section("gate")
        terminalreporter.write_line(text)
        publish(text)
    return result
