"""Libraries in environments of their own: installed by name, called there only, with torch and without."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from suite_runs import ROOT
from xentcheck.cli import main
from xentcheck.implementation import BrokenError, environments, find, load_file
from xentcheck.run.examiner import Examiner
from xentcheck.run.isolation.pool import Workers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="worker processes need Linux")

FAKELIB = '''
import os, sys, time

def with_torch(logits, labels, **options):
    import torch.nn.functional as F
    assert "fakelib" in sys.modules and os.environ["FAKE"] == "1"
    return F.cross_entropy(logits, labels, **options)

def without_torch(logits, labels, upstream, *, ignore_index=-100, reduction="mean"):
    """A mean of NumPy in float64; knows bfloat16 by its bits."""
    import numpy as np
    assert "torch" not in sys.modules
    bits = logits.dtype.names is not None
    x = logits["bfloat16"].astype(np.uint32) << 16 if bits else logits
    x = (x.view(np.float32) if bits else x).astype(np.float64)
    up = upstream["bfloat16"].astype(np.uint32) << 16 if bits else upstream
    up = (up.view(np.float32) if bits else up).astype(np.float64)
    valid = labels != ignore_index
    y = np.where(valid, labels, 0)
    if (y >= x.shape[1]).any() or (y < 0).any():
        raise IndexError("a label is out of range")
    x = np.where(valid[:, None], x, 0.0)
    p = np.exp(x - x.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    loss = np.where(valid, -np.log(p[np.arange(len(y)), y]), 0.0)
    share = np.where(valid, up if reduction == "none" else up / (valid.sum() if reduction == "mean" else 1), 0.0)
    gradient = (p - np.eye(x.shape[1])[y]) * share[:, None]
    total = loss if reduction == "none" else loss.sum() / (valid.sum() if reduction == "mean" else 1)
    if not bits:
        return np.asarray(total, logits.dtype), gradient.astype(logits.dtype)
    def rounded(values):
        wide = np.asarray(values, np.float32).view(np.uint32)
        even = (wide + 0x7FFF + ((wide >> 16) & 1)) >> 16
        return even.astype(np.uint16).view(logits.dtype).reshape(np.shape(values))
    return rounded(total), rounded(gradient)

def crashes(logits, labels, upstream, **options):
    if len(labels) == 3:
        os.abort()
    return without_torch(logits, labels, upstream, **options)

def hangs(logits, labels, upstream, **options):
    if len(labels) == 3:
        time.sleep(1000)
    return without_torch(logits, labels, upstream, **options)

def changes(logits, labels, upstream, **options):
    found = without_torch(logits, labels, upstream, **options)
    logits[...] = 0
    return found

def takes_one(logits):
    return logits.sum()
'''

ADAPTERS = """
from xentcheck.implementation import Adapter
SHARED = {"requires": ["fakelib==1.5"], "no_deps": True, "env": {"FAKE": "1"}, "built_on": "torch"}
APART = {"requires": ["fakelib==1.5"], "no_deps": True, "shares_torch": False, "gradient": "returned", "environment": "fakelib-numpy"}
implementations = (
    Adapter("peer_torch", "fakelib:with_torch", **SHARED),
    Adapter("peer_wrong", "fakelib:takes_one", **SHARED),
    *(Adapter(f"peer_{name}", f"fakelib:{name}", **APART) for name in ("without_torch", "crashes", "hangs", "changes")),
    Adapter("peer_missing", "fakelib:with_torch", requires=["fakelib==2.0"], environment="other"),
)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of implementations, ``peer.py``, beside the environments that they need, made by ``install`` with a pip of ours."""
    made = tmp_path_factory.mktemp("peers")
    (made / "peer.py").write_text(ADAPTERS)

    def pip(environment, arguments):
        (environment.packages / "fakelib.py").write_text(FAKELIB)
        about = environment.packages / "fakelib-1.5.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: fakelib\nVersion: 1.5\n")
        if not environment.shares_torch:
            assert arguments[-2:] == ["numpy", "ml_dtypes"]
            for part in Path(np.__file__).parents[1].glob("numpy*"):
                (environment.packages / part.name).symlink_to(part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(environments.FOLDER, str(made / "environments"))
        patch.setattr(environments, "_pip", pip)
        for one in load_file(made / "peer.py").implementations:
            if one.name in ("peer_torch", "peer_without_torch"):
                environments.install(one.environment, say=lambda text: None)
    return made


@pytest.fixture
def workers(folder, monkeypatch):
    monkeypatch.setenv(environments.FOLDER, str(folder / "environments"))
    made = Workers(limit=60.0)
    yield made
    made.close()


@pytest.fixture
def loaded(folder, workers):
    return lambda name: workers.settle(find(f"{folder / 'peer.py'}:peer_{name}"))[0]


TOKENS = "logits: {shape: [4, 5, 2]}, target: {ignore: {rows: [1, 6]}}"


def verdicts(workers, implementation, case):
    examiner = Examiner(workers.observe)
    return {a: examiner.examine(case, a, implementation) for a in examiner.aspects(case, implementation)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch", "without_torch"])
def test_a_library_is_called_in_its_environment(workers, loaded, cases, name):
    found = loaded(name)
    assert (found.version, found.unavailable, found.broken) == ("1.5", "", "")
    assert "fakelib" not in sys.modules
    body = f"id: one, {TOKENS}, matrix: {{dtype: [float64, float32], reduction: [mean, sum, none]}}"
    for case in cases(body, "id: two, logits: {shape: [3, 4]}, target: {values: [0, 9, 1]}, expect: {error: {}}"):
        seen = verdicts(workers, found, case)
        poisoned = {"poisoning"} if name == "torch" else set()  # as torch does
        assert {aspect for aspect, verdict in seen.items() if verdict.status != "pass"} <= poisoned, case.id
        assert len(seen) > 5 or case.expects_error


def test_bfloat16_travels_as_its_bits(workers, loaded, cases):
    for case in cases(f"id: one, {TOKENS}, dtype: bfloat16, matrix: {{reduction: [mean, none]}}"):
        seen = verdicts(workers, loaded("without_torch"), case)
        assert [str(verdict.message) for verdict in seen.values() if verdict.status != "pass"] == []
        assert 0 < seen["gradient"].error_units < 1


@pytest.mark.parametrize(("name", "status"), [("crashes", "crash"), ("hangs", "timeout")])
def test_what_a_library_does_to_its_process_is_a_verdict(workers, loaded, cases, name, status):
    fatal, fine = cases("id: a, logits: {shape: [3, 4]}", "id: b, logits: {shape: [2, 4]}")
    found = loaded(name)
    workers.limit = 1.0
    assert verdicts(workers, found, fatal)["loss"].status == status
    assert verdicts(workers, found, fine)["loss"].status == "pass"


def test_a_change_of_an_array_is_seen(workers, loaded, cases):
    for case in cases("id: a, logits: {shape: [3, 4]}", f"id: b, {TOKENS}"):  # the batch's own array, and a copy
        assert verdicts(workers, loaded("changes"), case)["purity"].message.endswith("changed: input")


@pytest.mark.slow
def test_a_wrong_call_is_told_in_one_message(loaded):
    with pytest.raises(
        BrokenError, match=r"^peer_wrong: the trial call failed: TypeError in the call: takes_one\(\) takes 1"
    ):
        loaded("wrong")


def test_a_missing_environment_says_what_installs_it(workers, loaded, case):
    found = loaded("missing")
    assert found.unavailable == "xentcheck peers install other"
    assert verdicts(workers, found, case("logits: {shape: [3, 4]}"))["loss"].status == "unavailable"


def test_an_interrupted_or_older_installation_is_not_taken_for_one(folder, monkeypatch):
    monkeypatch.setenv(environments.FOLDER, str(folder / "environments"))
    made = environments.make("fakelib", ["fakelib==1.5"], no_deps=True)
    assert made.is_installed
    assert not environments.make("fakelib", ["fakelib==1.6"], no_deps=True).is_installed

    def interrupted(environment, arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(environments, "_pip", interrupted)
    again = environments.make("again", ["fakelib==1.5"], no_deps=True)
    with pytest.raises(KeyboardInterrupt):
        environments.install(again, say=lambda text: None)
    assert again.python.exists()
    assert not again.is_installed


@pytest.mark.slow
@pytest.mark.parametrize("isolate", [(), ("--isolate",)])
def test_in_a_run(folder, workers, run, specification, isolate):
    specification("id: a, logits: {shape: [3, 4]}, target: {values: [0, -100, 2]}")
    status, screen = run("--implementations", folder, "--impl", "peer_torch,peer_without_torch,peer_missing", *isolate)
    assert status == 0, screen
    assert "peer_torch 1.5, peer_without_torch 1.5, peer_missing (unavailable: xentcheck peers install other)" in screen


def test_the_command(folder, workers, monkeypatch, capsys):
    monkeypatch.setattr("xentcheck.implementation.peers.FOLDER", folder)
    assert main(["peers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["fakelib", "1.5"], ["fakelib-numpy", "1.5"], ["other", "no"]]
    assert main(["peers", "install", "fakelibb"]) == 2
    assert "fakelibb: there is no library of that name; did you mean fakelib" in capsys.readouterr().err
    assert main(["peers", "install"]) == 2
    assert "expected names to install" in capsys.readouterr().err

    def pip_fails(command, **options):
        return type(
            "Done", (), {"returncode": "pip" in command, "stdout": "", "stderr": "ERROR: no matching distribution\n"}
        )

    monkeypatch.setattr(environments.subprocess, "run", pip_fails)
    monkeypatch.setattr(Path, "write_text", lambda *arguments, **options: None)
    assert main(["peers", "install", "peer_missing"]) == 1
    assert "other: pip failed; it said last:\n  ERROR: no matching distribution" in capsys.readouterr().err


@pytest.mark.parametrize("requirement", ["torch==2.14.0", "nvidia-cublas-cu12", "cuda-toolkit"])
def test_no_second_torch(requirement, folder, monkeypatch):
    monkeypatch.setenv(environments.FOLDER, str(folder / "environments"))
    made = environments.make("heavy", ["fakelib", requirement])
    with pytest.raises(
        environments.UsageError, match=f"heavy: expected requirements without torch .*; found {requirement}"
    ):
        environments.install(made, say=lambda text: None)


def test_a_declaration_can_be_read_without_torch(tmp_path):
    """What an environment without torch imports of xentcheck. Only NumPy may be there."""
    import subprocess

    (tmp_path / "numpy").symlink_to(Path(np.__file__).parent)
    code = "import xentcheck.run.isolation.array_worker, sys; print({m.partition('.')[0] for m in sys.modules} & {'torch', 'pydantic', 'yaml', 'packaging'})"
    suite = ROOT / "suite"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{suite}"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "set()\n", done.stderr
    assert torch
