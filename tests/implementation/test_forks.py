"""A process that a loss forks must not come back from it, or all that follows would be done twice."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import faults
from xentcheck.implementation import ImplementationError, find, forks
from xentcheck.implementation.forks import ForkWatch
from xentcheck.results import record
from xentcheck.run.examiner import Examiner
from xentcheck.run.isolation.pool import Workers
from xentcheck.run.status import Status
from xentcheck.run.verdict import Verdict

FAULTS = Path(faults.__file__)
ROOT = FAULTS.parents[1]


def do_nothing():
    pass


def fork_and_exit():
    if os.fork() == 0:
        os._exit(0)


def fork_and_execute():
    if os.fork() == 0:
        os.execl("/bin/true", "true")


def start_a_program():
    subprocess.run(["/bin/true"], preexec_fn=do_nothing, check=True)


def fork_and_come_back():
    os.fork()


def fork_and_come_back_raising():
    if os.fork() == 0:
        raise ValueError


def come_back_from_the_grandchild():
    if os.fork() == 0 and os.fork() != 0:
        os._exit(0)


def come_back_from_the_second():
    fork_and_exit()
    os.fork()


@pytest.mark.parametrize(
    ("body", "comes_back"),
    [
        (do_nothing, False),
        (fork_and_exit, False),
        (fork_and_execute, False),
        (start_a_program, False),
        (fork_and_come_back, True),
        (fork_and_come_back_raising, True),
        (come_back_from_the_grandchild, True),
        (come_back_from_the_second, True),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_a_child_that_comes_back_is_ended_and_noted(body, comes_back, capfd, monkeypatch):
    monkeypatch.setattr(forks, "_PATIENCE", 300.0)
    process = os.getpid()
    try:
        with ForkWatch() as outer, ForkWatch() as watch:
            body()
    finally:
        if os.getpid() != process:  # or a child of this test would run those that follow
            os._exit(0)
    assert watch.child_came_back is comes_back
    assert not outer.child_came_back
    assert ("came back from it; it ends here" in capfd.readouterr().err) is comes_back


def test_a_child_that_lives_on_is_waited_for_no_longer_than_agreed(monkeypatch):
    monkeypatch.setattr(forks, "_PATIENCE", 0.1)
    reading, writing = os.pipe()
    with ForkWatch() as watch:
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
    os.close(writing)  # which ends it
    os.waitpid(child, 0)
    assert not watch.child_came_back


def test_no_file_descriptor_is_left_open():
    before = os.listdir("/proc/self/fd")
    with ForkWatch():
        fork_and_exit()
    with suppress(ValueError), ForkWatch():
        fork_and_exit()
        raise ValueError
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_case_whose_loss_comes_back_twice_is_a_crash(case):
    asked, examiner = case("logits: {shape: [3, 5]}"), Examiner()
    for place in ("forward", "backward"):
        implementation = find(f"{FAULTS}:return_twice_in_{place}")[0]
        for aspect in asked.aspects:
            verdict = examiner.examine(asked, aspect, implementation)
            assert verdict.status == "crash"
            assert verdict.message == "the call forked, and the child process came back from it as well; it was ended"


def test_a_file_that_is_loaded_twice_by_one_import(tmp_path):
    path = tmp_path / "forks.py"
    path.write_text("import os\nos.fork()\ndef loss(input, target):\n    return input.sum()\n")
    with pytest.raises(ImplementationError, match="loss: loading it forked, and the child process came back as well"):
        find(f"{path}:loss")


@pytest.mark.parametrize("isolated", [False, True])
def test_a_loss_that_forks_whenever_it_is_called_is_loaded(tmp_path, isolated):
    """Loading calls it; that it forks is a fault of its cases."""
    path = tmp_path / "forks.py"
    path.write_text(
        "import os\nfrom torch.nn.functional import cross_entropy\n"
        "def loss(input, target, **options):\n    os.fork()\n    return cross_entropy(input, target, **options)\n"
    )
    workers = Workers() if isolated else None
    try:
        found = workers.find(f"{path}:loss") if workers else find(f"{path}:loss")
    finally:
        if workers:
            workers.close()
    assert [(one.name, one.broken) for one in found] == [("loss", "")]


def test_a_child_writes_nothing_into_the_record(tmp_path, capfd):
    writer = record.Writer(tmp_path, {"kind": "run"})
    before = writer.path.read_bytes()
    child = os.fork()
    if child == 0:
        try:
            writer.verdict(Verdict("i", "c", "c/one", "loss", Status.PASS))
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert writer.path.read_bytes() == before
    assert "it ends here" in capfd.readouterr().err


@pytest.mark.slow
def test_a_run_of_a_loss_that_forks_has_each_verdict_once(write, tmp_path):
    path = write(*(f"id: c{n}, logits: {{shape: [3, {5 - n % 2}]}}" for n in range(3)))
    (tmp_path / "quick.py").write_text("from xentcheck.spec import loader\nloader.load_all = lambda: []\n")
    command = [sys.executable, "-m", "pytest", "suite/", "-p", "quick", "-p", "no:cacheprovider", "-k", "not relations"]
    command += ["--impl", f"{FAULTS}:return_twice_in_forward", "--cases", path, "--results", tmp_path / "results"]
    python_path = os.pathsep.join([str(ROOT / "suite"), str(tmp_path)])
    environment = {**os.environ, "PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    lines = (tmp_path / "results" / record.NAME).read_text().splitlines()
    assert len(lines) == 1 + 3 * 4 + 1
    found = record.load(tmp_path / "results")
    assert found.complete
    assert {v.case: v.status for v in found.verdicts} == {"small/c0": "crash", "small/c1": "pass", "small/c2": "crash"}
    assert done.stdout.count("= FAILURES =") == 1
