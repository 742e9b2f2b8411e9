"""``xentcheck run``: whatever an implementation does to its process, the exit code is what the record says."""

import os
import re
import sys

import pytest

from suite_runs import ROOT, SUITE, impl
from xentcheck import cli
from xentcheck.results import record
from xentcheck.results.outcome import unasked, why_red
from xentcheck.run.status import Status
from xentcheck.run.verdict import Verdict

LOSS = """
import atexit, os, sys
import torch
from torch.nn.functional import cross_entropy


class Leaves(torch.autograd.Function):
    @staticmethod
    def forward(context, loss):
        return loss.clone()

    @staticmethod
    def backward(context, gradient):
        os._exit(0)


def loss(input, target, **options):
    return cross_entropy(input, target, **options){}
"""
DOUBLE = LOSS.format(" * 2")
# What a loss does to get exit code 0, although it is wrong; and why it does not, in the process of the suite.
FORGERIES = {
    "at import": (f"{DOUBLE}\nos._exit(0)", "the run wrote no record: exit code 0 of the child is not believed"),
    "in a call": (
        f"{DOUBLE}\nloss = lambda input, target: os._exit(0) if input.shape == (3, 4) else input.sum()",  # not at loading
        "the run ended without an end line: exit code 0 of the child is not believed",
    ),
    "in backward": (
        f"{DOUBLE}\ndef loss(input, target):\n    return Leaves.apply(input.sum())",
        "the run ended without an end line: exit code 0 of the child is not believed",
    ),
    "at exit": (
        f"{DOUBLE}\natexit.register(os._exit, 0)",
        "1 verdict of 1 not good, the first is loss small/one loss: exit code 0 of the child is not believed",
    ),
}
PATCHED = f"""{DOUBLE}
import xentcheck.run.examiner
from xentcheck.run.verdict import Verdict

judge = lambda exam, aspect, implementation, *_: Verdict(implementation.name, "small", exam.case.id, aspect, "pass")
xentcheck.run.examiner.judge = judge
"""


@pytest.fixture
def xentcheck_run(tmp_path, write, monkeypatch, capfd):
    """``xentcheck_run(text, option, ...)``: exit code and screen of ``xentcheck run`` on the function ``loss`` of a file of this text. The
    run, a process of its own, does without the specification."""
    case = write("id: one, logits: {shape: [3, 4]}")
    (tmp_path / "quick.py").write_text("from xentcheck.spec import loader\nloader.load_all = lambda: []\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SUITE), str(tmp_path)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(ROOT)

    def main(text, *options):
        (tmp_path / "losses.py").write_text(text)
        options = ["-q", "-p", "quick", "-p", "no:cacheprovider", "--benchmark-skip", "-k", "test_loss", *options]
        code = cli.main(["run", f"{tmp_path / 'losses.py'}:loss", "--cases", str(case), *map(str, options)])
        said = capfd.readouterr()
        return code, said.out + said.err

    return main


@pytest.mark.slow
def test_a_right_loss_is_green(xentcheck_run, tmp_path):
    code, screen = xentcheck_run(LOSS.format(""), "--results", tmp_path / "results")
    assert code == 0, screen
    assert not [line for line in screen.splitlines() if line.startswith("xentcheck:")]
    assert {v.status for v in record.load(tmp_path / "results").verdicts} == {"pass"}


@pytest.mark.slow
@pytest.mark.parametrize("how", FORGERIES)
def test_an_exit_code_cannot_be_forged(xentcheck_run, how):
    text, why = FORGERIES[how]
    code, screen = xentcheck_run(text, "--in-process")
    assert code == 1, screen
    assert re.fullmatch(f"xentcheck: {why}", screen.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="--isolate is for Linux")
@pytest.mark.parametrize("text", [*(text for text, _ in FORGERIES.values()), PATCHED], ids=[*FORGERIES, "the judge"])
def test_isolation_is_the_default_and_nothing_helps_there(xentcheck_run, text):
    code, screen = xentcheck_run(text)
    assert code == 1, screen
    assert re.match("xentcheck: .*exit code [14]", screen.splitlines()[-1])


@pytest.mark.slow
def test_an_earlier_record_is_not_taken_for_that_of_this_run(xentcheck_run, tmp_path):
    results = ["--in-process", "--results", tmp_path / "results"]
    assert xentcheck_run(LOSS.format(""), *results)[0] == 0
    code, screen = xentcheck_run(FORGERIES["at import"][0], *results)
    assert (code, screen.splitlines()[-1]) == (1, f"xentcheck: {FORGERIES['at import'][1]}")


# --- the rule, without a run


def verdict(status="pass", implementation="one", **more):
    return Verdict(implementation, "small", "small/one", "loss", Status(status), **more)


def results(*verdicts, complete=True):
    return record.Results({}, verdicts, complete=complete)


@pytest.mark.parametrize(
    ("found", "code", "why"),
    [
        (results(verdict(), verdict("deviates")), 0, ""),
        (results(verdict()), 1, "no verdict fails, but the run ended with exit code 1"),
        (results(verdict(), complete=False), 0, "the run ended without an end line: exit code 0 of the child is not"),
        (results(verdict(), complete=False), 2, "the run ended without an end line: exit code 2"),
        (results(), 0, "the record holds no verdict"),
        (results(verdict(), verdict("crash")), 0, "1 verdict of 2 not good, the first is one small/one loss"),
        (results(verdict("unsupported", reason="no")), 0, "one: nothing could be asked of it"),
    ],
)
def test_when_a_run_is_green(found, code, why):
    assert why_red(found, code).startswith(why)
    assert bool(why_red(found, code)) is bool(why)


@pytest.mark.parametrize(
    ("verdicts", "names"),
    [
        ([("one", "pass"), ("one", "unsupported")], []),
        ([("one", "fail")], []),
        ([("one", "unsupported")], ["one"]),
        ([("one", "unavailable")], ["one"]),
        ([("one", "unavailable"), ("two", "unavailable")], ["one", "two"]),
        ([("one", "unavailable"), ("two", "pass")], []),
        ([("one", "unsupported"), ("two", "pass")], ["one"]),
        ([("one", "unavailable"), ("two", "unsupported")], ["one", "two"]),
        ([], []),
    ],
)
def test_of_whom_nothing_could_be_asked(verdicts, names):
    lines = unasked([verdict(status, name) for name, status in verdicts])
    assert [line.partition(":")[0] for line in lines] == names


CLAIMS_NOTHING = """
from torch.nn.functional import cross_entropy
from xentcheck.implementation import Implementation
nothing = Implementation(name="nothing", cross_entropy=cross_entropy, capabilities=frozenset())
away = Implementation(name="away", cross_entropy=cross_entropy, unavailable="no GPU here")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "status", "says"),
    [
        ("nothing", 1, "nothing: nothing could be asked of it, so nothing is known of it: "),
        ("away", 1, "away: nothing could be asked of it, so nothing is known of it: "),
        ("away,right", 0, "unavailable: no GPU here"),
        ("nothing,right", 1, "nothing: nothing could be asked of it"),
    ],
)
def test_claiming_nothing_is_not_green(run, tmp_path, write, names, status, says):
    (tmp_path / "claims.py").write_text(CLAIMS_NOTHING)
    named = ",".join(impl(n) if n == "right" else f"{tmp_path / 'claims.py'}:{n}" for n in names.split(","))
    found, screen = run("--impl", named, "--cases", write("id: one, reduction: sum, logits: {shape: [3, 4]}"))
    assert found == status, screen
    assert says in screen


def test_the_command_runs_isolated_in_another_process(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(cli, "_wait_for", lambda command: asked.append(command) or 0)
    assert cli.main(["run", "native", "--cases", "ignored-*"]) == 1  # no record was written
    assert cli.main(["run", "native", "--in-process", "--results", "here"]) == 1
    isolated, here = asked
    assert "--isolate" in isolated
    assert isolated[-2:] == ["--cases", "ignored-*"]
    assert "--isolate" not in here
    assert here[-2:] == ["--results", "here"]
    assert capsys.readouterr().err.count("xentcheck: the run wrote no record: exit code 0 of the child is not") == 2
