"""The two wheels, in an environment of their own and outside the checkout, do what the checkout does."""

import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
LOSS = """
import torch.nn.functional as F


def cross_entropy(input, target, *, ignore_index=-100):
    return F.cross_entropy(input, target, ignore_index=ignore_index)


def off(input, target, *, ignore_index=-100):
    return 1.001 * F.cross_entropy(input, target, ignore_index=ignore_index)
"""


def run(*command, cwd, **expected):
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == expected.get("code", 0), done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Built from a copy, so that nothing is left behind in the checkout and nothing that lies about there gets into them."""
    source, target = tmp_path_factory.mktemp("source") / "xentcheck", tmp_path_factory.mktemp("wheels")
    left_out = shutil.ignore_patterns(".git", ".venv*", "reports", "build", "*.egg-info", "__pycache__", ".hypothesis")
    shutil.copytree(ROOT, source, ignore=left_out)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", target]
    run(*build, ".", "suite/maskedce", cwd=source)
    return sorted(target.glob("*.whl"))


@pytest.fixture(scope="module")
def elsewhere(wheels, tmp_path_factory):
    """A fresh environment with both wheels, which shares this one's torch and other dependencies, and a user's folder beside it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    run(sys.executable, "-m", "venv", folder / "env", cwd=folder)
    python = folder / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", *wheels, cwd=folder)
    (site,) = folder.glob("env/lib/python*/site-packages")
    (site / "zz_shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (folder / "user").mkdir()
    (folder / "user" / "losses.py").write_text(LOSS)
    return folder / "env" / "bin", folder / "user"


def test_the_wheels_hold_what_they_need_and_nothing_else(wheels):
    maskedce, xentcheck = ({*zipfile.ZipFile(path).namelist()} for path in wheels)
    cases = {f"xentcheck/cases/{p.relative_to(ROOT / 'cases')}" for p in (ROOT / "cases").rglob("*.yaml")}
    tests = {f"xentcheck/suite/{p.name}" for p in (ROOT / "suite").glob("test_*.py")}
    implementations = {f"xentcheck/implementations/{p.name}" for p in (ROOT / "implementations").glob("*.py")}
    assert cases | tests | implementations | {"xentcheck/py.typed"} <= xentcheck
    assert not [name for name in xentcheck if name.startswith(("tests", "maskedce"))]
    assert {name.split("/")[0].split("-")[0] for name in maskedce} == {"maskedce"}


def test_it_is_the_installed_package_that_runs(elsewhere):
    binaries, user = elsewhere
    found = run(
        binaries / "python", "-c", "import xentcheck, maskedce; print(xentcheck.__file__, maskedce.__file__)", cwd=user
    )
    assert all(path.startswith(str(binaries.parent)) for path in found.split())


def test_the_suite_runs_on_a_users_loss(elsewhere):
    binaries, user = elsewhere
    asked = ["--cases", "ignored-nonfinite/seed-002-row-of-minus-inf", "--benchmark-skip", "-q"]
    pyargs = ["-m", "pytest", "--pyargs", "xentcheck.suite", "--impl", "maskedce"]
    said = run(binaries / "python", *pyargs, *asked, cwd=user)
    assert re.search(r"^\d+ passed", said.splitlines()[-1])
    results = ["--results", user / "results"]
    said = run(binaries / "xentcheck", "run", "losses:off,maskedce", *asked, *results, cwd=user, code=1)
    assert "expected a loss of" in said
    assert "xentcheck repro ignored-nonfinite/seed-002-row-of-minus-inf --impl losses:off" in said
    assert "wrote" in run(binaries / "xentcheck", "report", user / "results", "--to", user / "pages", cwd=user)
    assert (user / "pages" / "conformance.md").is_file()


def test_the_other_commands_work_there(elsewhere):
    binaries, user = elsewhere
    listed = run(binaries / "xentcheck", "cases", "plain-values", cwd=user).split()
    script = run(binaries / "xentcheck", "repro", listed[0], "--impl", "losses:off", cwd=user)
    assert "def loss_function" in script or "loss_function = " in script
    captured = "import torch, xentcheck; xentcheck.capture(torch.zeros(2, 3), torch.tensor([0, 2]), 'captured/step')"
    run(binaries / "python", "-c", captured, cwd=user)
    assert "problems: 0" in run(binaries / "xentcheck", "lint", "captured/step.yaml", cwd=user)


def test_other_peoples_runs_of_pytest_get_nothing_of_it(elsewhere):
    binaries, user = elsewhere
    project = user / "project"
    project.mkdir()
    (project / "conftest.py").write_text("def pytest_addoption(parser):\n    parser.addoption('--device')\n")
    (project / "test_one.py").write_text(
        "import sys\n\n\ndef test_one(request):\n"
        "    ours = {name for name in sys.modules if name.startswith('xentcheck')}\n"
        "    assert ours <= {'xentcheck', 'xentcheck.pytest_plugin'}, ours\n"
        "    assert 'torch' not in sys.modules\n"
        "    assert request.config.getoption('--impl', default=None) is None\n"
    )
    assert "1 passed" in run(binaries / "python", "-m", "pytest", "-q", "--device", "cpu", cwd=project)
