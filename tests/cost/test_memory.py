"""Memory: what is counted, held against allocations that are known by construction."""

import mmap
import subprocess
import sys

import numpy as np
import pytest
import torch

from xentcheck.cost import memory, timing
from xentcheck.cost.measurement import Memory
from xentcheck.cost.memory import OverLimit, limited, measure, set_up
from xentcheck.implementation import Implementation
from xentcheck.spec.batch import Batch

pytestmark = pytest.mark.slow

MIB = 2**20
ROWS, CLASSES = 64, 1024  # 256 KiB of float32
LOGITS = ROWS * CLASSES * 4


def batch(rows=ROWS, dtype=torch.float32):
    return Batch(torch.ones(rows, CLASSES, dtype=dtype), torch.zeros(rows, dtype=torch.long), {}, None, "eager")


def of(function, on=None):
    implementation = Implementation(name="known", cross_entropy=function)
    asked = on or batch()
    set_up(lambda b: timing.step(implementation, b), asked)
    return measure(timing.step(implementation, asked), asked.input.device)


class _Known(torch.autograd.Function):
    """Forward: ``temporary`` logits for a while, ``kept`` of them to stay. Backward: ``more`` for a while, and the gradient."""

    @staticmethod
    def forward(ctx, x, temporary, kept, more):
        torch.empty(temporary * x.numel(), dtype=x.dtype)
        ctx.kept = torch.empty(kept * x.numel(), dtype=x.dtype)
        ctx.more = more
        return torch.zeros((), dtype=x.dtype)

    @staticmethod
    def backward(ctx, upstream):
        gradient = torch.ones(ROWS, CLASSES, dtype=upstream.dtype)
        torch.empty(ctx.more * gradient.numel(), dtype=upstream.dtype)
        return gradient, None, None, None


def known(temporary, kept, more):
    return lambda input, target, **options: _Known.apply(input, temporary, kept, more)


def about(found, expected):
    """Exact but for the few bytes of scalars: the loss and the gradient of the loss."""
    assert 0 <= found - expected <= 16, (found, expected)


@pytest.mark.parametrize(
    ("temporary", "kept", "more"), [(0, 0, 0), (1, 0, 0), (3, 1, 0), (1, 3, 2), (0, 1, 5), (7, 0, 1)]
)
def test_peaks_and_what_is_kept(temporary, kept, more):
    found = of(known(temporary, kept, more))
    about(found.forward, max(temporary, kept) * LOGITS)
    about(found.kept, kept * LOGITS)
    about(found.backward, (kept + 1 + more) * LOGITS)
    assert found.retained == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_bytes_and_not_numbers_are_counted(dtype):
    found = of(known(2, 1, 0), batch(dtype=dtype))
    about(found.forward, 2 * ROWS * CLASSES * dtype.itemsize)


def test_it_is_the_same_each_time():
    found = {of(torch.nn.functional.cross_entropy, on=batch()) for _ in range(5)}
    assert len(found) == 1
    (one,) = found
    about(one.forward, LOGITS)  # log_softmax, which stays
    about(one.kept, LOGITS)
    about(one.backward, 3 * LOGITS)  # beside it the gradients of log_softmax and of the logits


def test_it_counts_after_other_measurements_and_frees():
    """Memory that was taken before, and let go in between, is nobody's."""
    kept = torch.ones(MIB)

    def lets_go(input, target, **options):
        nonlocal kept
        kept = None
        return known(1, 0, 0)(input, target)

    about(of(lets_go).forward, LOGITS)


def test_what_stays_after_the_call_is_retained():
    hoard = []

    def hoards(input, target, **options):
        hoard.append(torch.empty(input.numel(), dtype=input.dtype))
        return known(0, 0, 0)(input, target)

    assert of(hoards).retained == LOGITS


def test_the_buffer_of_a_no_grad_call_and_of_half_types():
    def reads_as_double(input, target, **options):
        return (input.double().sum() * 0).to(input.dtype)

    found = of(reads_as_double, batch(dtype=torch.bfloat16))
    assert 0 <= found.forward - ROWS * CLASSES * 8 <= 64


# --- what torch's allocator does not see


def mapped(count):
    return torch.frombuffer(mmap.mmap(-1, count), dtype=torch.uint8)


class _Mapped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        mapped(3 * LOGITS)[:] = 1
        ctx.buffer = mapped(LOGITS)
        return torch.zeros(())

    @staticmethod
    def backward(ctx, upstream):
        return mapped(LOGITS).view(torch.float32).view(ROWS, CLASSES)


def test_anonymous_maps_are_counted_as_tensors_are():
    plain = mmap.mmap
    found = of(lambda input, target, **options: _Mapped.apply(input))
    about(found.forward, 3 * LOGITS)
    about(found.kept, LOGITS)
    about(found.backward, 2 * LOGITS)
    assert found.retained == 0
    assert mmap.mmap is plain


def test_a_map_that_is_closed_is_let_go():
    def closes(input, target, **options):
        map_ = mmap.mmap(-1, 4 * LOGITS)
        map_.close()
        return known(0, 1, 0)(input, target)

    found = of(closes)
    about(found.forward, 4 * LOGITS)
    about(found.kept, LOGITS)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's count of the process is Linux's")
def test_memory_that_leaves_no_event_is_seen_from_outside():
    def hides(input, target, **options):
        np.ones(128 * MIB, dtype=np.uint8)
        return known(0, 0, 0)(input, target)

    found = of(hides)
    assert found.forward < MIB
    assert 100 * MIB < found.uncounted < 160 * MIB
    large = Batch(torch.ones(16 * 1024, CLASSES), torch.zeros(16 * 1024, dtype=torch.long), {}, None, "eager")  # 64 MiB
    assert of(torch.nn.functional.cross_entropy, large).uncounted == 0


# --- limits


LIMITED = """
import torch
from xentcheck.cost.memory import OverLimit, limited
torch.ones(8)
with limited(1024 * 2**20):
    torch.ones(100 * 2**20, dtype=torch.uint8)
try:
    with limited(64 * 2**20):
        torch.ones(100 * 2**20, dtype=torch.uint8)
except OverLimit as error:
    print(error)
torch.ones(100 * 2**20, dtype=torch.uint8)
print("went on")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the kernel's count of the address space")
def test_what_asks_for_too_much_is_stopped_and_the_run_goes_on():
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first.startswith("expected at most 64 MiB beside the input; found a call that asked for more:")
    assert second == "went on"


def test_other_errors_pass_a_limit_unchanged():
    with pytest.raises(RuntimeError, match="something else"), limited(1024 * MIB):
        raise RuntimeError("something else")
    with pytest.raises(OverLimit), limited(1024 * MIB):
        raise MemoryError
    with pytest.raises(MemoryError), limited(None):
        raise MemoryError


def test_sizes_are_for_people():
    assert [memory.size(n) for n in (12, 1536, 3 * MIB, 1.5 * 2**30)] == ["12 bytes", "1.5 KiB", "3 MiB", "1.5 GiB"]


def test_on_cuda_the_peaks_are_the_allocators(monkeypatch):
    """What its statistics say, less what was there before; on a device that is played."""
    now, peak = [1000], [1000]

    def take(count):
        now[0] += count
        peak[0] = max(peak[0], now[0])

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: now[0])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak[0])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peak.__setitem__(0, now[0]))
    one = timing.Step(lambda: take(300) or take(-200), lambda loss: take(50) or take(-130))
    assert memory._on_cuda(one, torch.device("cuda"), lambda loss, gradients: take(999) or take(-999)) == Memory(
        forward=300, kept=100, backward=150, retained=20
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_memory_on_cuda():
    on = timing.on("cuda", batch())
    found = of(torch.nn.functional.cross_entropy, on)
    assert isinstance(found, Memory)
    assert found.kept >= LOGITS
    assert found.model_copy(update={"uncounted": 0}) == of(torch.nn.functional.cross_entropy, on)
