"""What the README shows is what happens."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from suite_runs import ROOT, SUITE

README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_failure_in_the_readme_is_what_the_command_prints(tmp_path):
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    (code,) = [block for language, block in blocks if language == "python"]
    (command,) = re.findall(r"`(pytest suite/ [^`]*--impl losses.py:padded_mean[^`]*)`", README)
    (shown,) = [block for language, block in blocks if not language and "padded_mean" in block]
    (tmp_path / "losses.py").write_text(code)
    arguments = [str(ROOT / a) if a == "suite/" else a for a in shlex.split(command)[1:]]
    arguments = [str(tmp_path / "losses.py:padded_mean") if a == "losses.py:padded_mean" else a for a in arguments]
    environment = {**os.environ, "PYTHONPATH": str(SUITE), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    ran = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--benchmark-skip", *arguments]
    done = subprocess.run(ran, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    assert shown.replace("losses.py:", f"{tmp_path}/losses.py:").strip() in done.stdout
