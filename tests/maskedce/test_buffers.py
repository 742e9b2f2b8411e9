"""What the library loss takes in memory, as the system sees it: the most that the process held at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from maskedce import masked_cross_entropy

# What each call takes: (dtype, mode, reduction) to how many times the logits' bytes at most.
MOST = {
    ("float32", "backward", "mean"): 1.2,
    ("float32", "backward", "none"): 1.2,
    ("float32", "forward", "mean"): 0.2,
    ("float32", "inplace", "mean"): 0.2,
    ("float32", "inplace", "none"): 0.2,
    ("bfloat16", "backward", "mean"): 1.4,
    ("bfloat16", "forward", "mean"): 0.4,
    ("bfloat16", "inplace", "mean"): 0.4,
}
PROGRAM = """
import os, sys, torch
from maskedce import masked_cross_entropy
torch.set_num_threads(1)

def held(what):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(what))

def step(source, logits, target, mode, reduction):
    loss = masked_cross_entropy(logits, target, reduction=reduction, inplace=mode == "inplace")
    if mode != "forward":
        torch.autograd.grad(loss.sum(), source)

def taken(dtype, mode, reduction):
    for rows in (300, 1024):  # once on a small batch, so that libraries are loaded
        target = torch.randint(32_000, (rows,))
        target[::5] = -100
        source = torch.randn(rows, 32_000).to(getattr(torch, dtype)).requires_grad_(mode != "forward")
        logits = source.clone()
        before = held("VmRSS")
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets the highest mark
        step(source, logits, target, mode, reduction)
        more = held("VmHWM") - before
    return more / logits.nbytes

for line in sys.stdin:
    if os.fork():  # each call in a process of its own, which finds nothing that another left behind
        assert os.wait()[1] == 0
    else:
        print(line.strip(), taken(*line.split()), flush=True)
        os._exit(0)
"""


@pytest.fixture(scope="module")
def taken() -> dict[tuple[str, ...], float]:
    """The most that each call held beside its logits, in times of their bytes."""
    calls = "".join(f"{' '.join(call)}\n" for call in MOST)
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=calls, check=True, stdout=subprocess.PIPE, text=True)
    return {tuple(call): float(found) for *call, found in map(str.split, done.stdout.splitlines())}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the highest mark can be reset on Linux only")
@pytest.mark.parametrize("call", MOST, ids="-".join)
def test_one_buffer_of_the_logits_size_or_none(taken: dict[tuple[str, ...], float], call: tuple[str, ...]) -> None:
    """Beside it, a block of an eighth of the logits in the working dtype."""
    assert taken[call] < MOST[call]
    assert (taken[call] > 0.9) == ("backward" in call), "a mark that does not see the buffer shows nothing"


def _flags(value: torch.Tensor) -> set[str]:
    """What the kernel was told of the mapping that holds the tensor (proc(5), VmFlags)."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            start, _, end = words[0].partition("-")
            inside = int(start, 16) <= value.data_ptr() < int(end, 16)
        elif inside and words[0] == "VmFlags:":
            return set(words[1:])
    return set()


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no huge pages in this kernel")
@pytest.mark.parametrize(("valid", "told"), [(slice(None, None, 20), "nh"), (slice(0, 20), "hg"), (slice(None), "hg")])
def test_huge_pages_unless_few_scattered_rows_are_written(valid: slice, told: str) -> None:
    logits = torch.randn(400, 2**15, requires_grad=True)  # 50 MiB
    target = torch.full((400,), -100)
    target[valid] = 3
    (gradient,) = torch.autograd.grad(masked_cross_entropy(logits, target), logits)
    assert told in _flags(gradient)
    assert not gradient[target == -100].any()


class _Copies(TorchDispatchMode):
    """The operations that give as many elements as asked for."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements, self.seen = elements, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() == self.elements and "index" in str(function):
            self.seen.append(str(function))
        return result


@pytest.mark.parametrize(("logit", "copies"), [(0.0, 1), (200.0, 2)])
def test_scattered_rows_are_copied_once_unless_a_probability_underflows(logit: float, copies: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 2**13, generator=generator)
    logits[:, 1] = logit
    logits.requires_grad_()
    target = torch.full((400,), -100)
    target[torch.randperm(400, generator=generator)[:100]] = 3
    with _Copies(100 * 2**13) as mode:
        loss = masked_cross_entropy(logits, target)
    assert len(mode.seen) == copies
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, target).item(), rel=1e-6)
