"""maskedce as a package of its own: it needs torch and nothing else, and its wheel holds its files and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import maskedce

FOLDER = Path(maskedce.__file__).parent

ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
import torch._dynamo  # which torch imports by itself when a custom operator is defined; with Triton, where it is installed
imported_by_torch = {name.partition(".")[0] for name in sys.modules}
allowed = imported_by_torch | sys.stdlib_module_names | {"maskedce"}

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ImportError(f"{name} is blocked")

for name in ("xentcheck", "pydantic", "yaml", "safetensors", "pandas"):
    assert name not in imported_by_torch, name
sys.meta_path.insert(0, Finder())
for name in ("xentcheck", "pydantic", "pandas"):
    try:
        __import__(name)
    except ImportError as error:
        assert "is blocked" in str(error)
    else:
        raise AssertionError(f"{name} is not blocked")

import maskedce
x, target = torch.randn(4, 5, requires_grad=True), torch.tensor([1, -100, 4, 0])
maskedce.masked_cross_entropy(x, target).backward()
maskedce.MaskedCrossEntropyLoss(label_smoothing=0.1)(x, target).backward()
maskedce.linear_masked_cross_entropy(x, torch.randn(7, 5, requires_grad=True), target).backward()
large = torch.randn(300, 8000, requires_grad=True)
maskedce.masked_cross_entropy(large, torch.arange(300)).backward()
assert large.grad.isfinite().all() and x.grad.isfinite().all()
print("alone")
"""


def test_it_needs_nothing_but_torch():
    """NumPy only as far as torch imports it."""
    done = subprocess.run([sys.executable, "-c", ALONE, str(FOLDER.parent)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "alone\n"


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    shutil.copytree(FOLDER, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    (source / "tests").mkdir()
    (source / "tests" / "test_stray.py").write_text("")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "-w", str(tmp_path), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"maskedce-{maskedce.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
        metadata = file.read(f"maskedce-{maskedce.__version__}.dist-info/METADATA").decode().splitlines()
    assert names == {f"maskedce/{path.name}" for path in FOLDER.iterdir() if path.suffix in (".py", ".typed")}
    assert [line for line in metadata if line.startswith("Requires-Dist")] == ["Requires-Dist: torch>=2.6"]
