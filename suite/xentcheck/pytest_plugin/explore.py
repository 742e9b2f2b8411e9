"""``--explore N`` in pytest's terms: one test for each implementation, and one for each stored find, which comes before all others."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from xentcheck.implementation import Implementation
from xentcheck.pytest_plugin import terminal
from xentcheck.pytest_plugin.session import NOTHING_TO_TEST, SESSION
from xentcheck.results.markdown import count

if TYPE_CHECKING:
    from xentcheck.explore.known_failures import Situation
    from xentcheck.explore.search import Exploration

FOLDER = Path(".xentcheck") / "found"  # where --results names no folder
OUTCOME = pytest.StashKey[str]()  # of an item: what the section at the end says of it


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("xentcheck")
    group.addoption(
        "--explore",
        metavar="N",
        type=int,
        help=f"draw N cases at random for each implementation; failures are shrunk and stored as case files in found/ of --results (otherwise in {FOLDER}), and tested first next time",
    )
    group.addoption("--explore-seed", metavar="SEED", type=int, default=0, help="which cases are drawn (default: 0)")


def pytest_configure(config: pytest.Config) -> None:
    examples = config.getoption("explore")
    if examples is None:
        return
    if examples < 1:
        raise pytest.UsageError(f"--explore {examples}: expected the number of cases to draw, 1 or more")
    if find_spec("hypothesis") is None:
        raise pytest.UsageError("--explore needs Hypothesis, which is not installed: pip install hypothesis")
    config.pluginmanager.register(Exploring(config), "xentcheck-exploring")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "explore" not in metafunc.fixturenames:
        return
    exploring = metafunc.config.pluginmanager.get_plugin("xentcheck-exploring")
    session = metafunc.config.stash.get(SESSION, None)
    if session is None:
        metafunc.config.stash[NOTHING_TO_TEST] = True
    if exploring is None or session is None:
        return metafunc.parametrize("explore", [])
    from xentcheck.explore.search import stored

    here = [i for i in session.implementations if not (i.unavailable or i.broken or i.environment)]
    finds = [(path, i) for i in here for path in stored(i, exploring.folder)]
    tasks = [*finds, *((None, i) for i in here)]
    metafunc.parametrize("explore", tasks, indirect=True, ids=[path.stem if path else i.name for path, i in tasks])


@pytest.fixture
def explore(request: pytest.FixtureRequest) -> Callable[[], None]:
    """``explore()``: tests a stored find again, or draws cases, and reports in pytest's terms."""
    exploring: Any = request.config.pluginmanager.get_plugin("xentcheck-exploring")
    path, implementation = request.param

    def explored() -> None:
        __tracebackhide__ = True
        if path:
            exploring.replay(path, implementation, request.node.stash)
        else:
            exploring.explore(implementation, request.node.stash)

    return explored


class Exploring:
    """What all tests of one run share, and their outcomes."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        results = config.getoption("results")
        self.folder: Path = (results / "found" if results else config.rootpath / FOLDER).absolute()
        self._known: dict[str, list[Situation]] = {}
        self._outcomes: list[str] = []

    def known(self, implementation: Implementation) -> list[Situation]:
        from xentcheck.explore.known_failures import of_deviations

        if implementation.name not in self._known:
            self._known[implementation.name] = of_deviations(implementation, self.config.stash[SESSION].specification)
        return self._known[implementation.name]

    def replay(self, path: Path, implementation: Implementation, stash: pytest.Stash) -> None:
        __tracebackhide__ = True
        from xentcheck.explore.search import replay

        found = replay(path, implementation, self.known(implementation))
        stash[OUTCOME] = f"{path.stem}: {found.status}" + (f": {found.message}" if found.message else "")
        if found.status == "failing":
            assert found.case is not None
            assert found.verdict is not None
            pytest.fail(terminal.failure(found.case, found.verdict, implementation), pytrace=False)
        if found.status == "known":
            pytest.xfail(found.message)
        if found.status == "gone":
            pytest.skip(f"gone: {found.message}")

    def explore(self, implementation: Implementation, stash: pytest.Stash) -> None:
        __tracebackhide__ = True
        from xentcheck.explore.search import as_yaml, explore

        examples, seed = self.config.getoption("explore"), self.config.getoption("explore_seed")
        known, progress = self.known(implementation), self._progress(examples)
        try:
            result = explore(implementation, examples, seed, known, self.folder, progress)
        except OSError as error:
            pytest.fail(f"{self.folder}: no find can be stored here: {error.strerror or error}", pytrace=False)
        stash[OUTCOME] = result.summary()
        texts = []
        source = implementation.source or implementation.name
        for find in result.finds:
            again = shlex.join(["pytest", "suite/", "--impl", source, "--cases", str(find.case.path)])
            features = ", ".join(sorted(find.features)) or "nothing special"
            texts += [
                terminal.failure(find.case, find.verdict, implementation),
                f"  again      {again}",
                f"  shrunk     from case {find.after} of seed {seed}; what it needs: {features}\n",
                as_yaml(find.entry),
            ]
        if texts:
            pytest.fail("\n".join(texts), pytrace=False)

    def _progress(self, examples: int) -> Callable[[Exploration], None]:
        """Shows one line on a terminal, again and again in place; nothing elsewhere."""
        plugins: Any = self.config.pluginmanager
        reporter, capture = plugins.get_plugin("terminalreporter"), plugins.get_plugin("capturemanager")
        if reporter is None or not reporter.isatty:
            return lambda _: None
        started = last = time.monotonic()

        def show(result: Exploration) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < 0.5:
                return
            last = now
            text = f"exploring {result.implementation}: {result.examples} of {examples}, {len(result.finds)} new, {now - started:.0f} s"
            with capture.global_and_fixture_disabled():
                reporter.rewrite(text, erase=True)

        return show

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Drawing cases comes last, since the specification says more about a wrong loss, and says it sooner."""
        items.sort(key=_draws)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report = yield
        if OUTCOME in item.stash and report.when == "call":
            report.xentcheck_explored = item.stash[OUTCOME]
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if hasattr(report, "xentcheck_explored"):
            self._outcomes.append(report.xentcheck_explored)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section("exploration")
        stored = count(len(list(self.folder.glob("*.yaml"))), "find")
        for text in (*self._outcomes, f"{stored} in {self.folder}"):
            terminalreporter.write_line(text)


def _draws(item: pytest.Item) -> bool:
    """Whether a test draws new cases."""
    given = item.callspec.params.get("explore") if hasattr(item, "callspec") else None
    return isinstance(given, tuple) and given[0] is None
