"""What the tests share: small cases written as YAML, and an implementation's verdicts on them."""

import contextlib
import gc
import io
import signal
import sys
from pathlib import Path

import pytest
import torch

from cost_material import HEADER as TINY
from cost_material import ONE, TWO
from suite_runs import ROOT, SUITE
from xentcheck.cost import timing
from xentcheck.implementation import Implementation
from xentcheck.reference import blockwise
from xentcheck.run.examiner import Examiner
from xentcheck.spec import loader, speed_cases
from xentcheck.spec.loader import load

HEADER = """clause: small
title: Small cases
requirement: The answer is the definition's.
sources: [https://example.org/definition]
cases:
"""

# unraisableexception collects garbage ten times a run, which takes most of a short run's time
OFF = ("cacheprovider", "faulthandler", "unraisableexception", "threadexception")

# Tiny tensors on many threads mostly wait for one another.
torch.set_num_threads(1)


def pytest_collection_finish():
    """What was collected stays to the end, so no later search for garbage, of which timing does many, has to walk over it."""
    gc.collect()
    gc.freeze()
    if guards := sys.modules.get("torch._dynamo.guards"):
        # For its log, dynamo times the guards of each program with an empty cache, which takes longer than many of our programs.
        guards.profile_guard_manager = lambda *arguments: 0.0


def pytest_unconfigure():
    gc.unfreeze()  # libraries that count what they leave at exit would complain


@pytest.fixture
def heeding_interrupts():
    """For ``preexec_fn`` of a new process: Ctrl-C ends it, also where these tests run in the background of a shell, which makes all that
    it starts ignore it."""
    return lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def write(tmp_path):
    """``write(entry, ...)``: a case file, each entry the inside of a YAML flow mapping; its path."""

    def write_entries(*entries: str, name: str = "small.yaml", header: str = HEADER) -> Path:
        path = tmp_path / name
        path.write_text(header + "".join(f"  - {{{entry}}}\n" for entry in entries))
        return path

    return write_entries


@pytest.fixture
def cases(write):
    """``cases(entry, ...)``: those entries as cases."""
    return lambda *entries: load(write(*entries))


@pytest.fixture
def case(cases):
    """``case(body)``: one case named small/one."""
    return lambda body: cases(f"id: one, {body}")[0]


@pytest.fixture
def verdicts():
    """``verdicts(case, implementation)``: the verdict on each aspect. A function is taken with every capability."""

    def examine(case, implementation, **claims):
        if not isinstance(implementation, Implementation):
            implementation = Implementation(name=implementation.__name__, cross_entropy=implementation, **claims)
        examiner = Examiner()
        return {aspect: examiner.examine(case, aspect, implementation) for aspect in case.aspects}

    return examine


@pytest.fixture
def specification(monkeypatch, write):
    """``specification(entry, ...)``: these cases instead of those in cases/; none at first."""

    def replace(*entries):
        cases = load(write(*entries, name="specification.yaml")) if entries else []
        monkeypatch.setattr(loader, "load_all", lambda: cases)

    replace()
    return replace


@pytest.fixture
def run(monkeypatch, specification):
    """``run(option, ...)``: the exit status and the screen of ``pytest suite/ option ...`` inside this process; ``off``: plugins to do
    without."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "110")

    def main(*options, path=SUITE, off=(*OFF, "benchmark")):
        screen = io.StringIO()
        plugins = [option for name in off for option in ("-p", f"no:{name}")]
        with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
            status = pytest.main([str(path), "--capture=no", *plugins, *map(str, options)])
        return int(status), screen.getvalue()

    return main


@pytest.fixture
def quick_rounds(monkeypatch):
    """As few rounds of timing as there can be."""
    monkeypatch.setattr(timing, "BUDGET", 0.0)
    monkeypatch.setattr(timing, "BLOCK", 0.0)
    monkeypatch.setattr(timing, "_best", lambda work, like: work() is None or 1e-9)


@pytest.fixture
def speed_case(write):
    """``speed_case(body)``: one tiny speed case."""
    return lambda body=ONE: speed_cases.load(write(body, name="tiny.yaml", header=TINY))[0]


@pytest.fixture
def run_tiny(run, monkeypatch, write):
    """``run`` with two tiny speed cases, which are measured."""
    cases = speed_cases.load(write(ONE, TWO, name="tiny.yaml", header=TINY))
    monkeypatch.setattr(speed_cases, "load_profiles", lambda names=None: cases)
    monkeypatch.setenv("COLUMNS", "180")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # the runs inside a test are no workers
    return lambda *options, path=SUITE: run(*options, path=path, off=OFF)


@pytest.fixture
def small_blocks(monkeypatch):
    """The truth of small batches, too, is made in several blocks."""
    monkeypatch.setattr(blockwise, "BLOCK", 170)
    monkeypatch.setattr(blockwise, "LINEAR_BLOCK", 170)


@pytest.fixture(autouse=True)
def untouched_global_state():
    """A test that leaves torch changed would make others fail far away from the cause."""
    dtype, threads, grad = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    yield
    assert (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()) == (dtype, threads, grad)
