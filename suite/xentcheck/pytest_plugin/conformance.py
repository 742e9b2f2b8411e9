"""The conformance part of the pytest plugin: options, parametrisation, the fixture ``examine``, records and the summary."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from xentcheck.cost.measurement import Measurement
from xentcheck.implementation.forks import end_in_a_child
from xentcheck.pytest_plugin import terminal
from xentcheck.pytest_plugin.session import KEY, NOTHING_TO_TEST, SESSION, VERDICT, Session, asked_of, finished
from xentcheck.results.markdown import count, visible
from xentcheck.results.outcome import unasked
from xentcheck.run.isolation.guard import die_with_the_parent
from xentcheck.run.status import Status
from xentcheck.run.verdict import Key, Verdict, from_json, to_json
from xentcheck.spec.case import ASPECTS, Aspect

pytest_plugins = ["xentcheck.pytest_plugin.explore"]


def pytest_addoption(parser: pytest.Parser) -> None:
    add = parser.getgroup("xentcheck", "cross-entropy conformance").addoption
    impl = "implementations, separated by commas: shipped names (all: those that need no other library; field: those of other libraries), package.module:attribute, path/to/file.py:attribute, path/to/file.py:*"
    add("--impl", metavar="NAMES", help=impl)
    cases = "only these cases, separated by commas: patterns of ids with * and ?, your own case files (path/to/file.yaml) or folders of them; telling: about a hundred that ask everything at least once"
    add("--cases", metavar="PATTERN", help=cases)
    own = "a folder of your own implementations, one file each, which --impl then finds by name"
    add("--implementations", metavar="DIR", type=Path, help=own)
    add("--results", metavar="DIR", type=Path, help="write every verdict to DIR/results.jsonl")
    add("--huge", action="store_true", help="include cases of more than 2^31 logits, which take many gigabytes")
    add("--resume", action="store_true", help="continue the truncated run in --results")
    isolate = "call each implementation in another process: if it dies, hangs, runs out of memory or leaves threads behind, one case fails and the run continues (Linux only)"
    add("--isolate", action="store_true", help=isolate)
    timeout = "with --isolate: how long one case may take, compilation included (default: 60)"
    add("--case-timeout", metavar="SECONDS", type=float, help=timeout)
    memory = "with --isolate: how much memory a worker process may use, of which torch takes 0.3 (default: no limit)"
    add("--worker-memory", metavar="GIB", type=float, help=memory)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("impl"):
        return
    session = config.stash[SESSION] = Session(config)
    config.add_cleanup(session.close)
    if _is_worker(config):
        if sys.platform == "linux":  # otherwise it goes on for as long as the case that it is at
            die_with_the_parent()
        keys = config.workerinput["xentcheck_resumed"]  # type: ignore[attr-defined]
        session.resumed = {Key(*k) for k in keys}
        return
    session.open_results()
    if getattr(config.option, "numprocesses", None):
        session.close()  # the workers of pytest-xdist call the implementations


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """pytest-xdist: tells its workers which verdicts the controlling process has read from the record."""
    if SESSION in node.config.stash:
        node.workerinput["xentcheck_resumed"] = [list(k) for k in node.config.stash[SESSION].resumed]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keeps the aspects of a case together, so that each case runs once; pytest-xdist 3.8 does not group tests under pytest 9.2."""
    if SESSION not in config.stash:
        return None
    from xdist.scheduler import LoadScopeScheduling

    session = config.stash[SESSION]

    class CaseByCase(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            key = session.key_of(nodeid)
            return key.case if key else nodeid

    return CaseByCase(config, log)


def pytest_report_header(config: pytest.Config) -> list[str]:
    if SESSION not in config.stash:
        return []
    session = config.stash[SESSION]
    names = [
        f"{i.name} {i.version}".rstrip()
        + (f" (unavailable: {i.unavailable})" if i.unavailable else " (broken)" if i.broken else "")
        for i in session.implementations
    ]
    run = [f"torch {torch.__version__}", count(torch.get_num_threads(), "thread"), count(len(session.cases), "case")]
    run += ["isolated"] if session.isolates else []
    return [f"xentcheck: {', '.join(run)}", visible(f"implementations: {', '.join(names)}")]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "examine" not in metafunc.fixturenames:
        return
    if SESSION not in metafunc.config.stash:
        metafunc.config.stash[NOTHING_TO_TEST] = True
        metafunc.parametrize("examine", [])
        return
    session = metafunc.config.stash[SESSION]
    aspect = metafunc.function.__name__.removeprefix("test_")
    pairs = [
        (case, i)
        for case in session.cases
        for i in session.implementations
        if aspect in session.aspects[i.name, case.id]
    ]
    metafunc.parametrize("examine", pairs, indirect=True, ids=[f"{i.name}:{case.id}" for case, i in pairs])


def _is_empty(item: pytest.Item) -> bool:
    """Whether no selected case has the test's aspect; pytest makes one test of an empty list."""
    given = item.callspec.params if hasattr(item, "callspec") else {}
    return any(not isinstance(given[name], tuple) for name in ("examine", "cost", "explore") if name in given)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Orders the tests case by case, so that a batch, its truth and each observation are made once and then dropped."""
    if NOTHING_TO_TEST in config.stash:
        raise pytest.UsageError(
            "the suite needs --impl: names from implementations/, package.module:attribute or path/to/file.py:attribute, for instance --impl native,maskedce"
        )
    if SESSION not in config.stash:
        return
    session = config.stash[SESSION]
    case_order = {case.id: n for n, case in enumerate(session.cases)}
    implementation_order = {i.name: n for n, i in enumerate(session.implementations)}
    places: dict[pytest.Item, tuple[int, int, int]] = {}
    kept, done = list[pytest.Item](), list[pytest.Item]()
    for item in items:
        key = asked_of(item, "examine")
        if key is not None:
            item.stash[KEY] = key
            places[item] = case_order[key.case], implementation_order[key.implementation], ASPECTS.index(key.aspect)
        (done if _is_empty(item) or key in session.resumed else kept).append(item)
    kept.sort(key=lambda item: places.get(item, (-1, 0, 0)))
    if done:
        config.hook.pytest_deselected(items=done)
    items[:] = kept


@pytest.fixture
def examine(request: pytest.FixtureRequest) -> Any:
    """``examine(aspect)``: tests the implementation on the case and reports the verdict in pytest's terms."""
    case, implementation = request.param

    def examined(aspect: Aspect) -> None:
        __tracebackhide__ = True
        verdict = request.config.stash[SESSION].examiner.examine(case, aspect, implementation)
        request.node.stash[VERDICT] = verdict
        if verdict.status == "deviates":
            pytest.xfail(visible(verdict.message))
        if verdict.status in ("unsupported", "unavailable"):
            pytest.skip(visible(f"{verdict.status}: {verdict.message}"))
        if not verdict.status.is_good:
            pytest.fail(terminal.failure(case, verdict, implementation), pytrace=False)

    return examined


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    if SESSION in item.config.stash:
        end_in_a_child(item.config.stash[SESSION].process)
    report = yield
    if KEY in item.stash:
        report.xentcheck_key = [*item.stash[KEY]]
    if VERDICT in item.stash and report.when == "call":
        report.xentcheck = to_json(item.stash[VERDICT])
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    session = _REPORTING.get("session")
    if session is None:
        return
    given = getattr(report, "xentcheck_key", None)
    key = Key(*given) if given else session.key_of(report.nodeid)
    if key is None:
        return
    if hasattr(report, "xentcheck"):
        session.note(from_json(report.xentcheck))
    elif report.when == "???" and key not in session.verdicts:
        session.note(_not_judged(key, Status.CRASH, "the process that called it died"))
    elif (report.failed or (report.when == "call" and report.skipped)) and key not in session.verdicts:
        place = getattr(report.longrepr, "reprcrash", None)
        text = (place.message if place else str(report.longrepr or "no report").strip()).splitlines()[0][:300]
        session.note(_not_judged(key, Status.ERROR, text))
    if session.write_error:
        pytest.exit(session.write_error, returncode=3)
    if report.when == "???":
        advice = "run it with --isolate, where a crash fails one case and the run continues"
        pytest.exit(f"{key.implementation} killed a worker of pytest-xdist in {key.case}; {advice}", returncode=3)


def _not_judged(key: Key, status: Status, reason: str) -> Verdict:
    """The verdict where the harness itself failed or skipped the test, or its process died."""
    return Verdict(key.implementation, key.case.split("/")[0], key.case, key.aspect, status, reason=reason)


def pytest_keyboard_interrupt() -> None:
    """pytest-xdist would give its workers ten seconds to finish what they are doing."""
    session = _REPORTING.get("session")
    distribution = session and session.config.pluginmanager.get_plugin("dsession")
    if distribution:
        distribution.nodemanager.EXIT_TIMEOUT = 0.1


# pytest_runtest_logreport gets no config.
_REPORTING: dict[str, Session] = {}


def pytest_sessionstart(session: pytest.Session) -> None:
    if SESSION in session.config.stash and not _is_worker(session.config):
        _REPORTING["session"] = session.config.stash[SESSION]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Any:
    run = _REPORTING.pop("session", None)
    if run is None:
        return (yield)
    if run.writer is not None and not run.write_error:
        run.writer.close(complete=finished(session, exitstatus) and bool(run.verdicts or run.costs))
    red = bool(run.stale or unasked(_found(run)) or any(not v.status.is_good for v in run.verdicts.values()))
    result = yield  # other plugins may change the status first
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and run.resumed:
        session.exitstatus = exitstatus = pytest.ExitCode.OK  # nothing was left to do
    if exitstatus == pytest.ExitCode.OK and red:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> Any:
    """Prints the table after everything else, so that it stays on the screen."""
    result = yield
    session = config.stash.get(SESSION, None)
    if session is None or not session.verdicts:
        return result
    width = max(terminalreporter._tw.fullwidth, 160)
    console = Console(file=terminalreporter._tw._file, width=width, highlight=False, markup=False)
    terminalreporter.section("xentcheck")
    versions = {i.name: i.version for i in session.implementations}
    terminal.summary(list(session.verdicts.values()), session.cases, versions, console)
    for implementation, deviation in session.stale:
        text = f"the known deviation {', '.join(deviation.patterns)} matches no case; delete {deviation.where}"
        terminalreporter.write_line(visible(f"{implementation.name}: {text}"), red=True)
    for text in unasked(_found(session)):
        terminalreporter.write_line(visible(text), red=True)
    if session.writer is not None:
        path = session.writer.path
        terminalreporter.write_line(f"results: {path}   reports: xentcheck report {path.parent}")
    return result


def _found(session: Session) -> list[Verdict | Measurement]:
    return [*session.verdicts.values(), *session.costs.values()]


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")
