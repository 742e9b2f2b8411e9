"""How much memory an implementation takes on one batch, in bytes: exact and repeatable. Judges nothing.

On the CPU every allocation and every release that torch's allocator makes is an event of torch's profiler, with its address and size;
what ``mmap.mmap`` hands out, which that allocator does not see, is counted beside it by standing in for that class. What a library
takes by other ways (its own malloc, NumPy) leaves no event. It shows only in the memory that the process holds, which is no exact
figure; where that peak is clearly beyond what was counted, the difference is given as ``uncounted``, so that nobody looks frugal
for allocating out of sight. On CUDA the caching allocator keeps these statistics itself.
"""

from __future__ import annotations

import gc
import mmap
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.profiler import profile, record_function

from xentcheck.cost.measurement import Memory
from xentcheck.cost.timing import Step
from xentcheck.spec.batch import Batch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
SLACK = 24 * 2**20  # how far the memory of the process may differ for reasons of its own
_MARK = "xentcheck memory "
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory|cannot allocate memory", re.IGNORECASE)


class OverLimit(Exception):
    """The implementation asked for more memory than the case allows. The text says how much was allowed."""


def measure(
    one: Step,
    device: torch.device,
    limit: int | None = None,
    look: Callable[[Any, Any], None] = lambda loss, gradients: None,
) -> Memory:
    """The memory of one training step.

    Args:
        limit: bytes that the step itself may have (``limited``).
        look: called with what forward and backward gave, while it is there; what it takes does not count.
    """
    gc.collect()
    return _on_cuda(one, device, look) if device.type == "cuda" else _on_cpu(one, limit, look)


def set_up(make: Callable[[Batch], Step], batch: Batch) -> None:
    """One step on a single sample of the batch, for what an implementation, torch and its profiler make once for all."""
    try:
        one = make(_small(batch))
        with profile(profile_memory=True):
            loss = one.forward()
            if one.backward is not None:
                one.backward(loss)
    except Exception:
        return  # the batch itself will say so


@contextmanager
def limited(more: int | None) -> Iterator[None]:
    """No more than so many bytes are to be had inside, as far as the platform can refuse them (Linux, by address space).

    Raises OverLimit in place of the allocator's error. None sets no limit.
    """
    try:
        with _address_space(more) if more is not None else nullcontext():
            yield
    except (MemoryError, RuntimeError) as error:
        if more is None or not (isinstance(error, MemoryError) or _NO_MEMORY.search(str(error))):
            raise
        text = " ".join(str(error).split()) or "no memory"
        raise OverLimit(
            f"expected at most {size(more)} beside the input; found a call that asked for more: {text[:160]}"
        ) from None


def size(count: float) -> str:
    """Bytes for people: 1.5 GiB."""
    for unit in ("bytes", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.4g} {unit}" if unit != "bytes" else f"{count:.0f} bytes"
        count /= 1024
    return f"{count:.4g} GiB"


@contextmanager
def _address_space(more: int) -> Iterator[None]:
    taken = _held("VmSize")
    if taken is None:
        yield
        return
    import resource  # where there is such a count, there is such a limit

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = taken + more
    if soft != resource.RLIM_INFINITY and soft < wanted:
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _on_cpu(one: Step, limit: int | None, look: Callable[[Any, Any], None]) -> Memory:
    before = _held("VmRSS")
    if before is not None:
        try:
            _CLEAR.write_text("5")  # the peak starts anew from here
        except OSError:
            before = None
    with _counted_mmap(), profile(profile_memory=True) as profiled:
        with limited(limit):
            with record_function(_MARK + "forward"):
                loss = one.forward()
            with record_function(_MARK + "backward"):
                gradients = None if one.backward is None else one.backward(loss)
        peak = _held("VmHWM")
        with record_function(_MARK + "look"):
            look(loss, gradients)
        with record_function(_MARK + "release"):
            del loss, gradients
            gc.collect()
    counted = _peaks(profiled.kineto_results.experimental_event_tree())
    if one.backward is None and one.alone == "both":
        counted = counted.model_copy(update={"backward": counted.forward})
    if before is None or peak is None:
        return counted
    beyond = peak - before - max(counted.forward, counted.backward)
    return counted.model_copy(update={"uncounted": beyond if beyond > SLACK else 0})


def _peaks(roots: Any) -> Memory:
    changes: list[tuple[int, int, int]] = []  # time, address, bytes
    starts: dict[str, int] = {}

    def collect(events: Any) -> None:
        for event in events:
            fields = event.extra_fields
            if hasattr(fields, "alloc_size"):
                changes.append((event.start_time_ns, fields.ptr, fields.alloc_size))
            elif event.name.startswith(_MARK):
                what, *numbers = event.name.removeprefix(_MARK).split()
                if what == "mmap":
                    changes.append((event.start_time_ns, -int(numbers[0]), int(numbers[1])))
                else:
                    starts[what] = event.start_time_ns
            collect(event.children)

    collect(roots)
    alive: dict[int, int] = {}
    now, peaks, ends = 0, dict.fromkeys(("forward", "backward", "look", "release"), 0), dict.fromkeys(starts, 0)
    for moment, address, count in sorted(changes, key=lambda change: change[0]):
        phase = max((name for name in starts if starts[name] <= moment), key=starts.__getitem__, default="forward")
        if count > 0:
            alive[address] = count
            now += count
        else:
            now -= alive.pop(address, 0)  # what was there before is not ours to count
        peaks[phase], ends[phase] = max(peaks[phase], now), now
        if phase == "forward":
            peaks["backward"] = now
            ends["backward"] = ends["release"] = now
        elif phase in ("backward", "look"):
            ends["release"] = now
    return Memory(forward=peaks["forward"], kept=ends["forward"], backward=peaks["backward"], retained=ends["release"])


@contextmanager
def _counted_mmap() -> Iterator[None]:
    """Anonymous maps made by ``mmap.mmap`` leave the same kind of mark as torch's allocations."""
    plain = mmap.mmap

    class Counted(plain):  # type: ignore[misc, valid-type]
        _counted: bool

        def __new__(cls, fileno: int, length: int, *args: Any, **kwargs: Any) -> Any:
            made = super().__new__(cls, fileno, length, *args, **kwargs)
            made._counted = fileno == -1
            if made._counted:
                _mark(id(made), len(made))
            return made

        def close(self) -> None:
            super().close()  # refuses while a tensor looks at it
            self._forget()

        def _forget(self) -> None:
            if self._counted:
                self._counted = False
                _mark(id(self), -1)

        def __del__(self) -> None:
            self._forget()

    places = [
        (module, name)
        for module in list(sys.modules.values())
        for name, value in list(getattr(module, "__dict__", {}).items())
        if value is plain
    ]
    for module, name in places:
        setattr(module, name, Counted)
    try:
        yield
    finally:
        for module, name in places:
            setattr(module, name, plain)


def _mark(identity: int, count: int) -> None:
    with record_function(f"{_MARK}mmap {identity} {count}"):
        pass


def _on_cuda(one: Step, device: torch.device, look: Callable[[Any, Any], None]) -> Memory:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)

    def peak() -> int:
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before

    def now() -> int:
        return torch.cuda.memory_allocated(device) - before

    torch.cuda.reset_peak_memory_stats(device)
    loss = one.forward()
    forward, kept = peak(), now()
    torch.cuda.reset_peak_memory_stats(device)
    gradients = None if one.backward is None else one.backward(loss)
    backward = forward if one.backward is None and one.alone == "both" else peak()
    look(loss, gradients)
    del loss, gradients
    gc.collect()
    return Memory(forward=forward, kept=kept, backward=backward, retained=now())


def _held(what: str) -> int | None:
    """Bytes of the process, by the kernel's count: VmSize, VmRSS or VmHWM. None where there is no such count."""
    try:
        found = re.search(rf"^{what}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _small(batch: Batch) -> Batch:
    """The first sample alone; of a reduction that is not none the upstream gradient is a scalar and stays."""
    if batch.input.dim() < 2:
        return batch
    upstream = batch.upstream
    if isinstance(upstream, Tensor) and upstream.dim():
        upstream = upstream[:1]
    return replace(batch, input=batch.input[:1, ...].clone(), target=batch.target[:1], upstream=upstream)
