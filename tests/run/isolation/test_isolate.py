"""Whatever a loss does to its process is a verdict of one case, and the run goes on; otherwise all is as it is without ``--isolate``."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import fakes
import faults
import unreadable
import xentcheck
from xentcheck.implementation import Implementation, ImplementationError, find
from xentcheck.results import record
from xentcheck.results.run_line import run_line
from xentcheck.run.examiner import Examiner
from xentcheck.run.isolation.pool import DiedError, Server, Worker, Workers
from xentcheck.run.observe import observe
from xentcheck.spec import loader
from xentcheck.spec.batch import build
from xentcheck.spec.case import RELATIONS

SUITE = Path(xentcheck.__file__).resolve().parents[1]
HERE = Path(fakes.__file__).parent
FAULTS, FAKES = HERE / "faults.py", HERE / "fakes.py"

ASPECTS = ["-k", "not relations"]  # those of the case's own batch: loss, gradient, shape, purity

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="--isolate is for Linux"),
]


@pytest.fixture(scope="module")
def workers():
    """One fork server for all tests. The limits are far away, except where a test sets one."""
    made = Workers(limit=300.0, memory=4 * 2**30)
    yield made
    made.close()


@pytest.fixture
def put(workers):
    """``put(case, implementation)``: the verdict on each aspect, from a worker."""
    examiner = Examiner(workers.observe)
    return lambda case, implementation: {a: examiner.examine(case, a, implementation) for a in case.aspects}


@pytest.fixture
def five(cases):
    """The first, a middle one and the last have five classes."""
    return cases(*(f"id: c{n}, logits: {{shape: [3, {5 - n % 2}]}}" for n in range(5)))


def statuses(verdicts):
    return {v.status for v in verdicts.values()}


def is_gone(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def wait_for(condition, what):
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError(f"a minute went by, and {what}")


# --- faults


PLACES = ("forward", "backward")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fault", faults.CRASHES, ids=lambda f: f.__name__)
def test_a_worker_that_crashes(workers, put, five, fault, place):
    name = f"{fault.__name__}_in_{place}"
    implementation = workers.find(f"{FAULTS}:{name}")[0]
    for number, case in enumerate(five):
        verdicts = put(case, implementation)
        assert len(verdicts) == 4
        assert statuses(verdicts) == {"pass" if number % 2 else "crash"}, verdicts
        if not number % 2:
            assert f"the worker process {faults.CRASHES[fault]}" in verdicts["loss"].message


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fault", faults.TIMEOUTS, ids=lambda f: f.__name__)
def test_a_worker_that_hangs(workers, put, five, monkeypatch, fault, place):
    implementation = workers.find(f"{FAULTS}:{fault.__name__}_in_{place}")[0]
    for number, case in enumerate(five[:2] if place == "forward" else five[3:]):
        hangs = number == (0 if place == "forward" else 1)
        monkeypatch.setattr(workers, "limit", 0.3 if hangs else 300.0)
        verdicts = put(case, implementation)
        assert statuses(verdicts) == {"timeout" if hangs else "pass"}, verdicts
        if hangs:
            assert "the worker process gave no answer within 0.3 s (--case-timeout)" in verdicts["loss"].message


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fault", faults.HARMLESS, ids=lambda f: f.__name__)
def test_what_does_no_harm_to_others_is_no_fault(workers, put, five, capfd, fault, place):
    implementation = workers.find(f"{FAULTS}:{fault.__name__}_in_{place}")[0]
    for case in five:
        assert statuses(put(case, implementation)) == {"pass"}
    printed = {"print_a_line": "printed", "write_to_stdout": "written", "print_in_c": "put"}.get(fault.__name__, "")
    assert capfd.readouterr().out == 6 * f"{printed}\n" * bool(printed)  # three cases, two calls


@pytest.mark.parametrize("place", PLACES)
def test_a_child_that_comes_back_from_the_call_is_a_crash_as_in_process(workers, put, five, place):
    source = f"{FAULTS}:return_twice_in_{place}"
    (here,), (there,) = find(source), workers.find(source)
    examiner = Examiner()
    for case in five[:2]:
        verdicts = put(case, there)
        assert statuses(verdicts) == {"pass" if case is five[1] else "crash"}
        assert repr(verdicts) == repr({a: examiner.examine(case, a, here) for a in case.aspects})


def test_a_crash_tells_what_was_printed_and_where_it_was(workers, put, five):
    implementation = workers.find(f"{FAULTS}:print_and_leave_in_forward")[0]
    message = put(five[0], implementation)["loss"].message
    assert message.splitlines()[1:] == ["that, too"] * 6
    implementation = workers.find(f"{FAULTS}:segfault_in_forward")[0]
    message = put(five[0], implementation)["loss"].message
    assert "Fatal Python error: Segmentation fault" in message
    assert f'File "{FAULTS}", line' in message
    assert "in segfault" in message
    assert "observe.py" not in message


def test_a_timeout_tells_where_it_was(workers, put, five, monkeypatch):
    implementation = workers.find(f"{FAULTS}:hang_in_c_in_backward")[0]
    monkeypatch.setattr(workers, "limit", 0.3)
    message = put(five[0], implementation)["loss"].message
    assert "in hang_in_c\n" in message
    assert "in backward\n" in message


def test_a_result_that_kills_whoever_looks_at_it(workers, put, five):
    implementation = workers.find(f"{FAULTS}:looked_at")[0]
    assert implementation.loss_and_gradient is not None
    assert statuses(put(five[0], implementation)) == {"crash"}


def test_what_was_not_asked_is_unsupported_and_not_a_crash(workers, case, put):
    implementation = workers.find(f"{FAULTS}:segfault_in_forward")[0]
    unable = replace(implementation, capabilities=implementation.capabilities - {"weight"})
    asked = case("logits: {shape: [3, 5]}, weight: random")
    assert statuses(put(asked, unable)) == {"unsupported"}
    assert statuses(put(asked, implementation)) == {"crash"}


ONE_BY_ONE = {
    "segfault": "crash",
    "leave": "crash",
    "hog_in_numpy": "crash",
    "leave_a_thread": "crash",
    "garble": "crash",
    "hang": "timeout",
}


@pytest.mark.parametrize("fault", ONE_BY_ONE)
def test_of_what_is_asked_together_only_the_culprit_fails(workers, five, monkeypatch, fault):
    implementation = workers.find(f"{FAULTS}:{fault}_in_forward")[0]
    if ONE_BY_ONE[fault] == "timeout":
        monkeypatch.setattr(workers, "limit", 2.0)
    batches = [build(case) for case in five[:3]]
    assert [getattr(seen, "status", "answered") for seen in workers.observe_all(implementation, batches)] == [
        ONE_BY_ONE[fault],
        "answered",
        ONE_BY_ONE[fault],
    ]


def test_relations_are_asked_together_with_the_same_verdicts(workers, cases):
    """Of a wrong loss, too: what fails, fails in the same words."""
    requests = []

    def observe_all(implementation, batches):
        requests.append(len(batches))
        return workers.observe_all(implementation, batches)

    source = f"{HERE / 'mutants' / 'ignoring.py'}:*"
    alone, together = Examiner(), Examiner(workers.observe, observe_all)
    (asked,) = cases("id: c, logits: {shape: [6, 5]}, target: {ignore: {fraction: 0.4}}, reduction: sum")
    wrong = 0
    for here, there in zip(find(source), workers.find(source), strict=True):
        aspects = alone.aspects(asked, here)
        one = [alone.examine(asked, aspect, here) for aspect in aspects]
        two = [together.examine(asked, aspect, there) for aspect in aspects]
        assert list(map(repr, one)) == list(map(repr, two))
        wrong += any(verdict.status == "fail" and verdict.aspect in RELATIONS for verdict in one)
    assert wrong > 3
    assert 20 < len(requests) <= len(find(source)), "one request for each of those that answer at all"
    assert min(requests) > 9


def test_a_patience_of_years(workers, case, monkeypatch):
    monkeypatch.setattr(workers, "limit", 1e9)
    found = Examiner(workers.observe).examine(case("logits: {shape: [3, 4]}"), "loss", workers.find("native")[0])
    assert found.status == "pass"


def test_what_is_raised_past_everything_is_an_answer_but_for_an_interrupt(workers, case):
    asked, examiner = case("logits: {shape: [3, 4]}"), Examiner(workers.observe)
    verdict = examiner.examine(asked, "loss", workers.find(f"{FAULTS}:exits")[0])
    assert (verdict.status, verdict.message) == (
        "error",
        "expected a loss; found SystemExit in the call: enough of this",
    )
    verdict = examiner.examine(asked, "loss", workers.find(f"{FAULTS}:interrupts")[0])
    assert (verdict.status, verdict.message) == ("error", "the worker process was left by KeyboardInterrupt: ")


# --- loading


@pytest.mark.parametrize("name", ["always_segfaults", "always_hangs"])
def test_a_loss_that_dies_of_the_question_whether_it_takes_lists_does_not_take_them(
    workers, put, five, monkeypatch, name
):
    monkeypatch.setattr(workers, "limit", 0.3)
    implementation = workers.find(f"{FAULTS}:{name}")[0]
    assert "ignore_index" in implementation.capabilities
    assert "ignore_index_list" not in implementation.capabilities
    assert len(statuses(put(five[1], implementation)) & {"crash", "timeout"}) == 1


@pytest.mark.parametrize(
    ("fault", "says"),
    [(f, says.split(";")[0]) for f, says in faults.CRASHES.items() if not f.__name__.startswith(("hog", "leave_a_thread", "leave_a_daemon", "leave_while"))]
    + [(faults.hang, "did not finish within 0.5 s"), (faults.stop, "did not finish within 0.5 s")],
    ids=lambda v: getattr(v, "__name__", ""),
)  # fmt: skip
def test_a_loss_that_cannot_be_imported_is_a_message_at_the_start(workers, tmp_path, monkeypatch, fault, says):
    path = tmp_path / "dies.py"
    path.write_text(f"import sys\nsys.path.append({str(HERE)!r})\nimport faults\nfaults.{fault.__name__}()\n")
    monkeypatch.setattr(workers, "_loading", 0.5 if "finish" in says else 300.0)
    with pytest.raises(ImplementationError) as error:
        workers.find(f"{path}:loss")
    assert f"--impl {path}:loss: cannot be loaded: the worker that imported it {says}" in str(error.value)
    monkeypatch.undo()
    assert workers.find("native")[0].name == "native", "it goes on"


def test_those_that_cannot_be_loaded_leave_the_others_their_workers(workers, put, tmp_path, five):
    dies, raises = tmp_path / "dies.py", tmp_path / "raises.py"
    dies.write_text("import os\nos._exit(3)\n")
    raises.write_text("raise ValueError('no')\n")
    found = workers.find(f"{dies}:loss,native,{raises}:loss,{FAKES}:right")
    assert ["status 3" in found[0].broken, "ValueError: no" in found[2].broken] == [True, True]
    assert [one.name for one in found if not one.broken] == ["native", "right"]
    for one in (found[1], found[3]):
        assert statuses(put(five[0], one)) == {"pass"}


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise ValueError('no')", "dies.py:1: the file cannot be imported: ValueError: no"),
        ("import sys; sys.exit(3)", "dies.py:1: the file cannot be imported: SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("los = 1", "no attribute 'loss'"),
    ],
)
def test_an_error_at_import_is_the_one_that_it_is_without_workers(workers, tmp_path, code, says):
    path = tmp_path / "dies.py"
    path.write_text(code)
    with pytest.raises(ImplementationError) as error:
        workers.find(f"{path}:loss")
    assert says in str(error.value)


def test_a_module_that_prints_or_keeps_threads_from_its_import_on(workers, put, tmp_path, capfd, five):
    path = tmp_path / "prints.py"
    path.write_text(
        f"import sys, threading, time\nprint('hello')\nsys.path.append({str(HERE)!r})\n"
        "threading.Thread(target=time.sleep, args=(1000,)).start()\nfrom fakes import right as loss\n"
    )
    implementation = workers.find(f"{path}:loss")[0]
    assert capfd.readouterr().out == "hello\n"
    assert statuses(put(five[0], implementation)) == {"pass"}


def test_a_loss_that_can_be_imported_only_once_is_a_crash_from_then_on(workers, put, tmp_path, five):
    path = tmp_path / "once.py"
    path.write_text(
        f"import sys, pathlib\nsys.path.append({str(HERE)!r})\nfrom faults import segfault_in_forward as loss\n"
        f"pathlib.Path({str(tmp_path / 'loaded')!r}).touch(exist_ok=False)\n"
    )
    implementation = workers.find(f"{path}:loss")[0]
    assert "SIGSEGV" in put(five[0], implementation)["loss"].message
    verdict = put(five[1], implementation)["loss"]
    assert verdict.status == "crash"
    assert "no worker process could be started again: the new one says: " in verdict.message
    assert "FileExistsError" in verdict.message


SOURCES = ["native,maskedce", "native,native", "masked_mean", "torch.nn.functional:cross_entropy", f"native,{FAKES}:arrays",
           f"{HERE / 'mutants' / 'state.py'}:*", f"{FAULTS}:looked_at"]  # fmt: skip


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.rpartition("/")[2])
def test_what_is_found_is_what_is_found_without_workers(workers, source):
    here, there = find(source), workers.find(source)
    for one, two in zip(here, there, strict=True):
        forms = ("cross_entropy", "loss_and_gradient", "linear_cross_entropy")
        assert [getattr(one, f) is None for f in forms] == [getattr(two, f) is None for f in forms]
        for name in set(vars(one)) - set(forms):
            assert getattr(one, name) == getattr(two, name), name
    assert run_line(here, [], "")["implementations"] == run_line(there, [], "")["implementations"]


def test_a_memory_limit_below_what_torch_takes_is_a_message_at_the_start(workers, monkeypatch):
    monkeypatch.setattr(workers, "_memory", 2**24)
    with pytest.raises(
        ImplementationError, match=r"--worker-memory 0\.015625: expected more than the 0\.\d+ GiB that torch"
    ):
        workers.find("native")


def test_an_implementation_without_a_source_cannot_be_isolated(workers, case):
    made = Implementation(name="made", cross_entropy=fakes.right)
    with pytest.raises(ImplementationError, match="implementation made: --isolate loads an implementation anew, so it"):
        Examiner(workers.observe).examine(case("logits: {shape: [3, 4]}"), "loss", made)


def test_nothing_of_an_implementation_is_called_in_this_process(workers):
    with pytest.raises(ImplementationError, match="an implementation is called in its worker only"):
        workers.find("native")[0].cross_entropy(torch.zeros(1, 2), torch.zeros(1))


# --- otherwise nothing changes


ALIKE = {"native": 4, "maskedce": 6} | {
    f"{HERE / 'mutants' / file}.py:{name}": 25
    for file, name in (
        ("global_state", "changes_the_default_dtype"),
        ("global_state", "changes_the_number_of_threads"),
        ("global_state", "seeds_the_random_numbers_of_torch"),
        ("state", "*"),
        ("layouts", "*"),
        ("acceptance", "target_equal_to_the_class_count_is_accepted"),
    )
}
EAGER = [case for case in loader.load_all() if case.question.mode != "compile" and not case.is_huge]


@pytest.mark.parametrize("source", ALIKE, ids=lambda s: s.rpartition("/")[2])
def test_verdicts_are_the_same_either_way(workers, source):
    def either(implementation, *question):
        return (observe if implementation.name == "here" else workers.observe)(implementation, *question)

    for here, there in zip(find(source), workers.find(source), strict=True):
        examiner = Examiner(either)  # a new one, for to it they are all called "here"
        for case in EAGER[:: ALIKE[source]]:
            for aspect in case.aspects:
                one = examiner.examine(case, aspect, replace(here, name="here"))
                two = examiner.examine(case, aspect, there)
                # the same to the last bit, and NaN equals NaN
                assert repr(replace(one, implementation=there.name)) == repr(two)


@pytest.mark.parametrize(
    ("name", "aspects", "found"),
    [(name, ("loss", "shape"), found) for name, found in unreadable.LOSSES.items()]
    + [(name, ("gradient",), found) for name, found in unreadable.GRADIENTS.items()]
    + [("wordless", ("loss", "gradient"), "Wordless in the call: (no text: its __str__ raises RuntimeError)")],
    ids=lambda v: v if isinstance(v, str) and v.isidentifier() else "",
)
def test_an_answer_that_cannot_be_read_is_a_fault_either_way(workers, put, case, name, aspects, found):
    source = f"{HERE / 'unreadable.py'}:{name}"
    linear = ", linear: {features: 4}" if name.endswith("matrix") else ""
    asked = case(f"logits: {{shape: [3, 4]}}{linear}")
    (here,), (there,) = find(source), workers.find(source)
    examiner = Examiner()
    one, two = {a: examiner.examine(asked, a, here) for a in asked.aspects}, put(asked, there)
    assert list(map(repr, one.values())) == list(map(repr, two.values()))
    kind = "raised" if name == "wordless" else "missing"
    for aspect in aspects:
        assert (one[aspect].kind, one[aspect].fault.found) == (kind, found)


def test_the_compilers_threads_are_not_the_implementations(monkeypatch, tmp_path, cases):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # what is compiled already starts no thread
    asked = cases("id: c, logits: {shape: [3, 5]}, mode: compile")[0]
    fresh = Workers(limit=300.0)
    try:
        verdict = Examiner(fresh.observe).examine(asked, "loss", fresh.find("maskedce")[0])
    finally:
        fresh.close()
    assert verdict.status == "pass", verdict.message


def test_a_worker_that_died_between_two_cases_is_replaced(workers, put, five, capfd):
    implementation = workers.find(f"{FAULTS}:says_its_process")[0]
    put(five[0], implementation)
    first = int(capfd.readouterr().out.split()[-1])
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: is_gone(first), "the worker lives")
    assert statuses(put(five[1], implementation)) == {"pass"}
    assert int(capfd.readouterr().out.split()[-1]) != first


@pytest.mark.parametrize(("ending", "status"), [("answers", "pass"), ("hangs", "timeout"), ("leaves", "crash")])
def test_what_a_worker_started_ends_with_it(five, tmp_path, monkeypatch, ending, status):
    """Also a process that made itself a daemon, by forking twice and starting a session."""
    place = tmp_path / "running"
    monkeypatch.setenv("XENTCHECK_CALLS", str(place))
    fresh = Workers(limit=2.0 if ending == "hangs" else 300.0)
    try:
        implementation = fresh.find(f"{FAULTS}:{ending}_once")[0]
        assert Examiner(fresh.observe).examine(five[0], "loss", implementation).status == status
        worker, guard, daemon = map(int, place.read_text().split())
        assert is_gone(daemon) == is_gone(worker) == (status != "pass")
    finally:
        fresh.close()
    assert is_gone(daemon)
    wait_for(lambda: is_gone(guard), "the guard is still there")


def test_a_server_that_died_is_started_again(five):
    workers = Workers()
    implementation = workers.find(f"{FAULTS}:kill_in_forward")[0]
    examiner = Examiner(workers.observe)
    (server,) = workers._servers.values()
    os.killpg(server._process.pid, signal.SIGKILL)
    server._process.wait()
    assert examiner.examine(five[1], "loss", implementation).status == "pass", "its workers live"
    assert examiner.examine(five[0], "loss", implementation).status == "crash"
    assert examiner.examine(five[3], "loss", implementation).status == "pass"
    workers.close()


WITHOUT_TORCH = """
import os, sys, time
import numpy as np
sys.modules["torch"] = None
from xentcheck.run.isolation.protocol import Bits, receive, send

def serve(channel):
    while True:
        token, request = receive(channel)
        if request == "leave":
            os._exit(3)
        if request == "hang":
            time.sleep(1000)
        batch = request["batch"]
        weight = batch.options["weight"]
        found = [type(batch.input).__name__, str(batch.target.dtype), weight.dtype, weight.bits.dtype.name, batch.mode]
        print("it speaks")
        gradients = {"input": batch.input, "weight": Bits("bfloat16", weight.bits + 0x80)}  # twice as much
        send(channel, token, {"python": sys.executable, "found": found, "target": batch.target, "gradients": gradients})
"""


def test_a_worker_of_a_python_that_has_no_torch(case, tmp_path):
    (tmp_path / "without_torch.py").write_text(WITHOUT_TORCH)
    python = os.path.realpath(sys.executable)  # outside of a virtual environment
    server = Server(python, [str(SUITE), str(tmp_path), str(Path(np.__file__).parents[1])], "without_torch")
    batch = build(case("logits: {shape: [3, 4], layout: transposed}, dtype: bfloat16, weight: random"))
    try:
        worker = Worker(server)
        answer = worker.ask(60.0, "late", {"batch": batch})
        assert answer["python"] == python
        assert answer["found"] == ["Bits", "int64", "bfloat16", "uint16", "eager"]
        assert torch.equal(torch.from_numpy(answer["target"]), batch.target)
        assert torch.equal(answer["gradients"]["input"], batch.input)
        assert torch.equal(answer["gradients"]["weight"], 2 * batch.options["weight"])
        assert worker.printed() == "it speaks\n"
        with pytest.raises(DiedError, match="exited with status 3 before it answered"):
            worker.ask(60.0, "late", "leave")
        with pytest.raises(DiedError, match=r"late; it wrote last:\n(.*\n)*.*without_torch.py"):
            Worker(server).ask(2.0, "late", "hang")
    finally:
        server.close()


# --- runs


@pytest.fixture
def start(tmp_path, heeding_interrupts):
    """``start(option, ...)``: ``python -m pytest suite/ --isolate`` as a process, with the specification unread."""
    running = []
    (tmp_path / "quick.py").write_text("from xentcheck.spec import loader\nloader.load_all = lambda: []\n")

    def popen(*options, **environment):
        command = [sys.executable, "-m", "pytest", "suite/", "-p", "quick", "-p", "no:cacheprovider", "--isolate"]
        command += ASPECTS
        path = os.pathsep.join([str(SUITE), str(tmp_path)])
        process = subprocess.Popen(
            [*command, *map(str, options)],
            cwd=SUITE.parent,
            env={**os.environ, "PYTHONPATH": path, "COLUMNS": "110", "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=heeding_interrupts,
        )
        running.append(process)
        return process

    yield popen
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def run(start, monkeypatch):
    """``run(option, ...)``: screen and exit status; in this process, which saves importing torch once more, unless it is spread."""

    def main(*options):
        if "-n" in options:
            process = start(*options)
            return process.communicate(timeout=300)[0], process.returncode
        monkeypatch.chdir(SUITE.parent)
        monkeypatch.setenv("COLUMNS", "110")
        monkeypatch.setattr(loader, "load_all", lambda: [])
        off = [f"no:{name}" for name in ("cacheprovider", "faulthandler", "benchmark", "unraisableexception")]
        screen = io.StringIO()
        with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
            arguments = [str(SUITE), "--isolate", "--capture=no", *ASPECTS, *(o for name in off for o in ("-p", name))]
            status = pytest.main([*arguments, *map(str, options)])
        return screen.getvalue(), int(status)

    return main


@pytest.fixture
def path(write):
    return write(*(f"id: c{n}, logits: {{shape: [3, {5 - n % 2}]}}" for n in range(5)))


def outcome(folder):
    return {(v.implementation, v.case, v.aspect): v.status for v in record.load(folder).verdicts}


@pytest.mark.parametrize("spread", [(), ("-n", "2")], ids=["alone", "spread"])
def test_a_run_full_of_faults_ends_with_a_complete_record(run, path, tmp_path, spread):
    dying = [f"{f.__name__}_in_{p}" for f, p in zip(faults.CRASHES, PLACES * 99, strict=False)][:: 5 if spread else 1]
    names = [*dying, "print_a_line_in_forward", "always_segfaults", "exits", "wrong_and_talkative"]
    folder = tmp_path / "results"
    screen, status = run(
        "--impl", ",".join(f"{FAULTS}:{n}" for n in names), "--cases", path, "--results", folder, "--worker-memory", "4", *spread
    )  # fmt: skip
    assert status == 1, screen
    results = record.load(folder)
    assert results.complete
    assert len(results.verdicts) == len(outcome(folder)) == len(names) * 5 * 4
    for (name, case, aspect), status in outcome(folder).items():
        exits = "pass" if aspect == "purity" else "error"
        dies = {"always_segfaults": "crash", "exits": exits, "wrong_and_talkative": status}.get(name)
        assert status == (dies or ("crash" if name in dying and int(case[-1]) % 2 == 0 else "pass")), (name, case)
    assert "cases, isolated" in screen
    assert "crash      the worker process was killed by signal 11 (SIGSEGV); it wrote last:\n   " in screen
    assert f"reproduce  xentcheck repro small/c0 --impl {FAULTS}:segfault_in_forward" in screen.replace("\n", "")
    assert "it is printed where the failure is" in screen
    assert "INTERNALERROR" not in screen


OBSERVER = """
import ctypes, os, pytest
def note(text):
    with open(os.environ["XENTCHECK_NOTES"], "a") as file:
        print(text, file=file)
def pytest_sessionstart(session):
    global config
    config, signal = session.config, ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(signal))  # PR_GET_PDEATHSIG
    note(f"{'worker' if hasattr(config, 'workerinput') else 'run'} {signal.value}")
@pytest.hookimpl(trylast=True)
def pytest_keyboard_interrupt():
    if distribution := config.pluginmanager.get_plugin("dsession"):
        note(f"patience {distribution.nodemanager.EXIT_TIMEOUT}")
"""


@pytest.mark.parametrize(
    ("ending", "spread"),
    [(end, ()) for end in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)]
    + [(end, ("-n", "2")) for end in (signal.SIGINT, signal.SIGKILL)],
    ids=["interrupted", "terminated", "killed", "spread and interrupted", "spread and killed"],
)
def test_a_run_that_was_cut_off_leaves_no_process_behind_and_can_be_finished(
    start, run, path, tmp_path, monkeypatch, ending, spread
):
    hanging, folder, notes = tmp_path / "hanging", tmp_path / "results", tmp_path / "notes"
    (tmp_path / "observer.py").write_text(OBSERVER)
    options = ("--impl", f"{FAULTS}:hangs_once", "--cases", path, "--results", folder, *spread)
    process = start("-p", "observer", *options, XENTCHECK_CALLS=str(hanging), XENTCHECK_NOTES=str(notes))
    wait_for(lambda: hanging.exists() and len(hanging.read_text().split()) == 3, "nobody hangs")
    process.send_signal(ending)
    screen, _ = process.communicate(timeout=300)
    assert process.returncode == (2 if ending == signal.SIGINT else -ending), screen
    for pid in map(int, hanging.read_text().split()):
        wait_for(lambda pid=pid: is_gone(pid), f"process {pid} is still there")
    assert not record.load(folder).complete
    if spread:  # or the workers of pytest-xdist would go on for ten seconds
        found = notes.read_text().splitlines()
        assert found.count(f"worker {signal.SIGKILL:d}") == 2
        assert ("patience 0.1" in found) == (ending == signal.SIGINT)
    if ending == signal.SIGINT and not spread:
        monkeypatch.setenv("XENTCHECK_CALLS", str(hanging))
        screen, status = run(*options, "--resume")
        assert status == 0, screen
        assert record.load(folder).complete
        assert set(outcome(folder).values()) == {"pass"}
        lines = [json.loads(line) for line in (folder / record.NAME).read_text().splitlines()]
        assert sum(line["kind"] == "verdict" for line in lines) == 5 * 4


def test_costs_are_not_measured_and_the_header_says_why(start, path):
    process = start("--impl", f"{FAKES}:right", "--cases", path, "--profile", "quick")
    screen = process.communicate(timeout=300)[0]
    assert process.returncode == 0, screen
    assert "cost: not measured (--isolate calls implementations elsewhere" in screen
    assert "20 passed" in screen


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--case-timeout", "0"), "--case-timeout: expected a number of seconds above 0; found 0"),
        (("--case-timeout", "nan"), "--case-timeout: expected a number of seconds above 0; found nan"),
        (("--worker-memory", "-1"), "--worker-memory: expected a number of GiB above 0; found -1"),
    ],
    ids=" ".join,
)
def test_a_mistake_on_the_command_line_is_explained(run, options, says):
    screen, status = run("--impl", "native", *options)
    assert status == 4
    assert says in screen
    assert "Traceback" not in screen


def test_the_limits_are_for_workers_only(capsys, monkeypatch):
    monkeypatch.setattr(loader, "load_all", lambda: [])
    assert (
        pytest.main([str(SUITE), "--capture=no", "-p", "no:cacheprovider", "--impl", "native", "--case-timeout", "5"])
        == 4
    )
    assert "--case-timeout and --worker-memory need worker processes; add --isolate" in capsys.readouterr().err
