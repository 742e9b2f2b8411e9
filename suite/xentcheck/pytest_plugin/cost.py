"""The part of the pytest plugin that measures: ``--profile``, the ``cost`` fixture, the progress bar and the table of costs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from xentcheck.cost.figures import failure, summary
from xentcheck.cost.measure import Costs
from xentcheck.cost.measurement import MEASURES, MEMORY, PHASES, SPEED, Measurement
from xentcheck.cost.timing import plan
from xentcheck.implementation import Implementation, find
from xentcheck.pytest_plugin.session import NOTHING_TO_TEST, SESSION, Session, asked_of
from xentcheck.results.record import RecordError
from xentcheck.run.status import Status
from xentcheck.spec import speed_cases
from xentcheck.spec.case import Case
from xentcheck.spec.fields import Bytes
from xentcheck.spec.resources import suite_folder
from xentcheck.spec.yaml_document import CaseFileError

SUITE = suite_folder()
MEASURING = ("test_memory.py", "test_speed.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("xentcheck")
    group.addoption(
        "--profile",
        metavar="NAMES",
        help="which speed cases to measure, separated by commas: profiles (quick is the default; lm, linear, segmentation, tagging, classification, sweeps, cuda, all) or ids such as lm/vocabulary-32k",
    )
    group.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where to measure costs (default: cpu)")
    group.addoption(
        "--memory-limit",
        metavar="SIZE",
        help="what a call whose cost is measured may take beside its input, such as '4 GiB', where the case does not say less",
    )


class Measuring:
    """What one run measures. Kept on the config."""

    def __init__(self, config: pytest.Config) -> None:
        self.session: Session = config.stash[SESSION]
        self.config = config
        try:
            self.cases = speed_cases.load_profiles(config.getoption("profile"))
        except CaseFileError as error:
            raise pytest.UsageError(str(error)) from error
        named = {i.name: i for i in self.session.implementations}
        native = named.get("native") or find("native")[0]
        self.costs = Costs(native, config.getoption("device"), _limit(config))
        self.left = self.estimated = self.spent = 0.0  # seconds: to come and done by our estimate, done by the clock

    def measure(self, measure: str, case: Case, implementation: Implementation) -> Measurement:
        expected = expected_seconds(measure, case, self.costs.device)
        with self._progress(f"{measure} of {implementation.name} on {case.id}", expected) as advance:
            if measure == SPEED:
                found = self.costs.speed(case, implementation, advance)
            else:
                found = self.costs.memory(case, implementation)
        self.session.costs[found.key] = found
        if self.session.writer is not None and not self.session.write_error:
            try:
                self.session.writer.cost(found)
            except RecordError as error:
                pytest.exit(str(error), returncode=3)
        return found

    @contextmanager
    def _progress(self, text: str, expected: float) -> Iterator[Callable[[float], None]]:
        """A bar over all that is to be measured, where there is a terminal to show it."""
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        capture: Any = self.config.pluginmanager.get_plugin("capturemanager")
        if reporter is None or not reporter.isatty:
            yield lambda share: None
            return
        start, pace = time.monotonic(), self.spent / self.estimated if self.estimated else 1.0
        console = Console(file=reporter._tw._file, force_terminal=True)  # asked now, it would be pytest's capture
        progress = Progress(
            BarColumn(), TextColumn("{task.description}"), console=console, auto_refresh=False, transient=True
        )

        def show(share: float) -> None:
            left = about(pace * (self.left - share * expected))
            with capture.global_and_fixture_disabled():
                progress.update(
                    task, completed=self.estimated + share * expected, description=f"{text}; {left} left", refresh=True
                )

        task = progress.add_task(text, total=self.estimated + self.left)
        with capture.global_and_fixture_disabled():
            console.line()  # what stands on the line is pytest's
            progress.start()
        show(0.0)
        try:
            yield show
        finally:
            with capture.global_and_fixture_disabled():
                progress.stop()
            self.left -= expected
            self.estimated += expected
            self.spent += time.monotonic() - start


MINE = pytest.StashKey[Measuring]()


def pytest_configure(config: pytest.Config) -> None:
    if SESSION in config.stash and not hasattr(config, "workerinput") and not why_not(config):
        config.stash[MINE] = Measuring(config)


def why_not(config: pytest.Config) -> str:
    """Why this run measures no cost; nothing where it does."""
    if not config.pluginmanager.hasplugin("benchmark"):
        return "pytest-benchmark is switched off"
    if config.getoption("benchmark_skip", False):
        return "--benchmark-skip"
    if getattr(config.option, "numprocesses", None) or hasattr(config, "workerinput"):
        return "processes side by side disturb each other; run without -n"
    if config.getoption("isolate"):
        return "--isolate calls implementations elsewhere; without it: pytest suite/test_speed.py suite/test_memory.py"
    if config.getoption("cases") and not config.getoption("profile"):
        return "--cases selects others; add --profile to measure as well"
    return ""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    mine = collection_path.parent == SUITE and collection_path.name in MEASURING
    return True if mine and SESSION in config.stash and MINE not in config.stash else None


def pytest_report_header(config: pytest.Config) -> str | None:
    if SESSION not in config.stash:
        return None
    if MINE not in config.stash:
        return f"cost: not measured ({why_not(config)})"
    mine = config.stash[MINE]
    expected = sum(expected_seconds(m, c, mine.costs.device) for c in mine.cases for m in MEASURES)
    seconds = expected * len(mine.session.implementations)
    return (
        f"cost: profile {config.getoption('profile') or speed_cases.QUICK}, {len(mine.cases)} cases, {about(seconds)}"
    )


def expected_seconds(measure: str, case: Case, device: str = "cpu") -> float:
    """How long measuring takes, roughly, on one slow core; for the progress bar."""
    if not speed_cases.is_for(device, case):
        return 0.0
    count = math.prod(case.question.logits.shape or (10**6,))
    features = 0 if case.question.linear is None else case.question.linear.features
    call = 1e-4 + (8e-9 + 1e-10 * features) * count
    check = 0.3 + 30e-9 * count
    if measure == MEMORY:
        return check + 3 * call
    repetitions, rounds = plan(call, lanes=3)
    return 0.3 + 6 * rounds * repetitions * call


def about(seconds: float) -> str:
    return f"about {max(round(seconds), 1)} seconds" if seconds < 90 else f"about {seconds / 60:.0f} minutes"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cost" not in metafunc.fixturenames:
        return
    if MINE not in metafunc.config.stash:
        if SESSION not in metafunc.config.stash:
            metafunc.config.stash[NOTHING_TO_TEST] = True
        metafunc.parametrize("cost", [])
        return
    mine = metafunc.config.stash[MINE]
    here = [i for i in mine.session.implementations if i.environment is None]  # others would be timed through a socket
    pairs = [(case, i) for case in mine.cases for i in here]
    metafunc.parametrize("cost", pairs, indirect=True, ids=[f"{i.name}:{case.id}" for case, i in pairs])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """After all conformance, and case by case: first the memory of each implementation, then the time."""
    if MINE not in config.stash:
        return
    mine = config.stash[MINE]
    places = {case.id: n for n, case in enumerate(mine.cases)}
    measuring, others, done = list[Any](), list[pytest.Item](), list[pytest.Item]()
    for item in items:
        key = asked_of(item, "cost")
        if key is None:
            others.append(item)
            continue
        measure, place = key.aspect, places[key.case]
        if key in mine.session.costs:
            done.append(item)
        else:
            measuring.append((place, MEASURES.index(measure), len(measuring), item))
            mine.left += expected_seconds(measure, mine.cases[place], mine.costs.device)
    if done:
        config.hook.pytest_deselected(items=done)
    items[:] = [*others, *(item for *_, item in sorted(measuring, key=lambda m: m[:3]))]


@pytest.fixture(name="cost")
def measure_cost(request: pytest.FixtureRequest) -> Any:
    """``cost(measure, benchmark)``: measures the implementation on the case and reports in pytest's terms."""
    case, implementation = request.param
    mine = request.config.stash[MINE]

    def put(measure: str, benchmark: Any = None) -> None:
        __tracebackhide__ = True
        if benchmark is not None and not benchmark.enabled:
            benchmark(lambda: None)
            pytest.skip("--benchmark-disable")
        found = mine.measure(measure, case, implementation)
        if benchmark is not None:
            has_figures = found.status is Status.PASS
            _into(benchmark, found, mine.costs.training_step(case, implementation) if has_figures else None)
        if found.status is Status.DEVIATES:
            pytest.xfail(found.message)
        if not found.status.was_asked:
            pytest.skip(f"{found.status}: {found.message}")
        if not found.status.is_good:
            pytest.fail(failure(case, found, implementation), pytrace=False)

    return put


def _into(benchmark: Any, found: Measurement, training_step: tuple[Callable[[], Any], ...] | None) -> None:
    """pytest-benchmark's own table and JSON: plain times of the same step, and our ratios as extra information."""
    if training_step is None or found.timing is None:
        benchmark.skipped = True
        return
    benchmark.group = found.case
    for phase in PHASES:
        for name, ratio in (("ratio", found.timing.ratio(phase)), ("control", found.timing.control(phase))):
            if ratio is not None:
                benchmark.extra_info[f"{phase} {name}"] = list(ratio)
    step, prepare = training_step
    benchmark.pedantic(step, setup=prepare, rounds=5, warmup_rounds=1)


def _limit(config: pytest.Config) -> int | None:
    text = config.getoption("memory_limit")
    try:
        return None if text is None else TypeAdapter(Bytes).validate_python(text)
    except ValidationError as error:
        raise pytest.UsageError(f"--memory-limit: expected a size such as '6 GiB'; found {text!r}") from error


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> Any:
    """After the table of verdicts."""
    result = yield
    mine = config.stash.get(MINE, None)
    if mine is None or not mine.session.costs:
        return result
    terminalreporter.section("xentcheck: cost")
    console = Console(file=terminalreporter._tw._file, width=max(terminalreporter._tw.fullwidth, 160), highlight=False)
    summary(list(mine.session.costs.values()), console)
    if mine.session.writer is not None and not mine.session.verdicts:
        terminalreporter.write_line(f"results: {mine.session.writer.path}")
    return result
