"""What the tests share: small cases written as YAML, and an implementation's verdicts on them."""

import signal
from pathlib import Path

import pytest
import torch

from xentcheck.implementation import Implementation
from xentcheck.run.examiner import Examiner
from xentcheck.spec.loader import load

HEADER = """clause: small
title: Small cases
requirement: The answer is the definition's.
sources: [https://example.org/definition]
cases:
"""

# Tiny tensors on many threads mostly wait for one another.
torch.set_num_threads(1)


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


@pytest.fixture(autouse=True)
def untouched_global_state():
    """A test that leaves torch changed would make others fail far away from the cause."""
    dtype, threads, grad = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    yield
    assert (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()) == (dtype, threads, grad)
