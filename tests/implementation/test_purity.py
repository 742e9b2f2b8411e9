"""What a call changes in its process is named and put back: one row for each kind that ``tests/run/test_observe.py`` has no row for."""

import ctypes
import gc
import math
import os
import random
import sys
import time
import types
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from xentcheck.implementation import Implementation, purity
from xentcheck.implementation.purity import GlobalState
from xentcheck.run.observe import observe
from xentcheck.spec.batch import build

UPWARD = 0x800  # FE_UPWARD on x86


def in_place(*arguments):
    """Stands for a function that was replaced."""


CHANGES = {
    "flushing of denormal numbers": lambda: torch.set_flush_denormal(True),
    "TF32 in cuDNN": lambda: torch._C._set_cudnn_allow_tf32(not torch._C._get_cudnn_allow_tf32()),
    "oneDNN": lambda: torch._C._set_mkldnn_enabled(False),
    "float32 matmul precision": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "working directory": lambda: os.chdir("/"),
    "umask": lambda: os.umask(0o111),
    "trace function": lambda: sys.settrace(in_place),
    "profile function": lambda: sys.setprofile(in_place),
    "sys.stdout": lambda: setattr(sys, "stdout", open(os.devnull, "w")),  # noqa: SIM115
    "sys.stderr": lambda: setattr(sys, "stderr", open(os.devnull, "w")),  # noqa: SIM115
    "garbage collection": gc.disable,
    "garbage collection: thresholds": lambda: gc.set_threshold(17),
    "recursion limit": lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 77),
    "environment variables": lambda: os.environ.update(XENTCHECK_TEST_ADDED="1"),
    "environment variables: changed": lambda: os.environ.update(XENTCHECK_TEST="another"),
    "environment variables: removed": lambda: os.environ.pop("XENTCHECK_TEST", None),
    "filters of warnings": lambda: warnings.simplefilter("ignore", ResourceWarning),
    "rounding mode": lambda: ctypes.CDLL(None).fesetround(UPWARD),
    "random state of NumPy": lambda: np.random.seed(3),
    "numpy.exp": lambda: setattr(np, "exp", in_place),
    "numpy.asarray": lambda: setattr(np, "asarray", in_place),
    "numpy.random.seed": lambda: setattr(np.random, "seed", in_place),
    "numpy.random.rand": lambda: delattr(np.random, "rand"),
    "numpy.linalg.norm": lambda: setattr(np.linalg, "norm", in_place),
    "math.exp": lambda: setattr(math, "exp", in_place),
    "random.random": lambda: setattr(random, "random", in_place),
    "time.perf_counter_ns": lambda: setattr(time, "perf_counter_ns", in_place),
    "torch.exp": lambda: setattr(torch, "exp", np.ones(3)),  # cannot be compared
}
NOT_HERE = {"rounding mode": "rounding mode" not in purity._SETTINGS or os.uname().machine != "x86_64"}


@pytest.fixture(autouse=True)
def put_back(monkeypatch):
    """Whatever is left changed would make other tests fail."""
    monkeypatch.setenv("XENTCHECK_TEST", "1")
    monkeypatch.chdir(os.getcwd())
    start, mask = GlobalState(), os.umask(0o022)
    os.umask(mask)
    yield
    start.restore()
    os.umask(mask)


@pytest.mark.parametrize("kind", [kind for kind in CHANGES if not NOT_HERE.get(kind)])
def test_a_change_is_named_and_put_back(kind):
    before = GlobalState()
    CHANGES[kind]()
    assert before.restore() == (kind.partition(":")[0],)
    assert before.restore() == ()
    assert GlobalState().restore() == ()


@pytest.mark.parametrize("kind", [kind for kind in CHANGES if not NOT_HERE.get(kind)])
def test_a_loss_that_changes_it_is_found_out_and_undone(case, kind):
    def loss(input, target, **options):
        value = F.cross_entropy(input, target, **options)
        CHANGES[kind]()
        return value

    before = GlobalState()
    batch = build(case("logits: {shape: [3, 4]}"))
    assert observe(Implementation(name="one", cross_entropy=loss), batch, True).changed == (kind.partition(":")[0],)
    assert before.restore() == ()


def test_the_filters_of_warnings_are_after_an_observation_what_they_were(case):
    before = list(warnings.filters)
    observe(Implementation(name="one", cross_entropy=F.cross_entropy), build(case("logits: {shape: [3, 4]}")), True)
    assert warnings.filters == before


IMPORTED = {
    "environment variables": lambda: os.environ.update(XENTCHECK_TEST="another"),
    "filters of warnings": lambda: warnings.simplefilter("ignore", ResourceWarning),
    "recursion limit": lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 77),
}


@pytest.mark.parametrize("kind", IMPORTED)
def test_what_a_library_sets_when_it_is_imported_is_not_the_losss_doing(monkeypatch, kind):
    before = GlobalState()
    monkeypatch.setitem(sys.modules, "xentcheck_test_library", types.ModuleType("xentcheck_test_library"))
    IMPORTED[kind]()
    assert before.restore() == ()
    sys.setrecursionlimit(sys.getrecursionlimit() + 1)  # a later change is one
    assert before.restore() == ("recursion limit",)


def test_torchs_own_variables_are_its_own(monkeypatch):
    before = GlobalState()
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    assert before.restore() == ()


def test_a_precision_that_the_older_names_cannot_say_ends_nothing():
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this torch has no such name")
    before = GlobalState()
    was = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        GlobalState().restore()
    finally:
        torch.backends.cuda.matmul.fp32_precision = was
        before.restore()


def test_numpys_random_numbers_go_on_where_they_were():
    np.random.seed(5)
    before = GlobalState()
    expected = np.random.rand(700)
    before.restore()
    assert (np.random.rand(700) == expected).all()
