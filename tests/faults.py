"""What no loss should do to its process. ``NAME_in_forward`` and ``NAME_in_backward`` are cross entropies that are right, and do it where there
are five classes."""

import atexit
import ctypes
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch

from fakes import right
from xentcheck.implementation import Implementation


def segfault():
    ctypes.string_at(0)


def abort():
    os.abort()


def leave():
    os._exit(3)


def leave_as_if_all_were_well():
    os._exit(0)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_the_guard():
    os.kill(os.getppid(), signal.SIGKILL)
    hang()


def hang():
    while True:
        time.sleep(1)


def hang_in_c():
    """With the interpreter's lock held, deaf to signals that Python handles."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    ctypes.PyDLL(None).sleep(1000)


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


def hog():
    kept = [torch.empty(2**28) for _ in range(1000)]
    kept.clear()


def hog_in_python():
    bytes(8 * 2**30)


def hog_in_numpy():
    kept = [np.empty(2**30, dtype=np.uint8) for _ in range(1000)]
    kept.clear()


def print_and_leave():
    print("this is on its way")
    sys.stderr.write("that, too\n" * 10)
    os._exit(4)


def leave_a_thread():
    threading.Thread(target=time.sleep, args=(1000,), name="the one that stays").start()


def leave_a_daemon():
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()


def garble():
    """Writes to every file descriptor there is."""
    for descriptor in range(100):
        try:
            os.write(descriptor, b"0123456789" * 10)
        except OSError:
            continue


def close_everything():
    os.closerange(0, 100)


def flood():
    while True:
        print("a long line " * 1000)


def leave_a_child_and_die():
    """The child holds the worker's ends of all pipes."""
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(5)


def leave_while_answering():
    """A part of the answer is written."""

    def a_part(channel, data):
        os.write(channel.fileno(), bytes(data)[:10])
        os._exit(6)

    socket.socket.sendall = a_part


def print_a_line():
    print("printed")


def write_to_stdout():
    os.write(1, b"written\n")


def print_in_c():
    ctypes.CDLL(None).puts(b"put")


def close_stdout():
    sys.stdout.close()


def die_at_exit():
    atexit.register(segfault)
    faulthandler.disable()


def leave_a_child():
    if os.fork() == 0:
        os._exit(7)


def start_a_daemon():
    """A process without a parent, in a session of its own, that sleeps; its number."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(writing, str(os.getpid()).encode())
            time.sleep(1000)
        os._exit(0)
    return int(os.read(reading, 20))


def return_twice():
    """The child comes back from the call as well."""
    os.fork()


def finish_a_thread_late():
    threading.Thread(target=time.sleep, args=(0.05,)).start()


CRASHES = {
    segfault: "was killed by signal 11 (SIGSEGV)",
    abort: "was killed by signal 6 (SIGABRT)",
    leave: "exited with status 3 before it answered",
    leave_as_if_all_were_well: "exited with status 0 before it answered",
    kill: "was killed by signal 9 (SIGKILL), perhaps by the system for want of memory",
    kill_the_guard: "died with the process that guards it",
    hog: "exhausted the memory limit of 4 GiB (--worker-memory): RuntimeError in the",
    hog_in_python: "exhausted the memory limit of 4 GiB (--worker-memory): MemoryError in the",
    hog_in_numpy: "exhausted the memory limit of 4 GiB (--worker-memory): MemoryError in the",
    print_and_leave: "exited with status 4 before it answered; it wrote last:",
    leave_a_thread: "left 2 threads running after the call: the one that stays, the one that stays",
    leave_a_daemon: "left 2 threads running after the call: Thread-",
    garble: "wrote to the socket that answers go through",
    close_everything: "exited with status 1 before it answered",
    leave_a_child_and_die: "exited with status 5 before it answered",
    leave_while_answering: "exited with status 6 before it answered",
}
TIMEOUTS = (hang, hang_in_c, stop, flood)
HARMLESS = (
    print_a_line, write_to_stdout, print_in_c, close_stdout, die_at_exit, leave_a_child, finish_a_thread_late
)  # fmt: skip


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, fault):
        ctx.fault = fault
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.fault()
        return gradient, None


def _in_forward(fault):
    def loss(input, target, **options):
        if input.shape[-1] == 5:
            fault()
        return right(input, target, **options)

    return loss


def _in_backward(fault):
    def loss(input, target, **options):
        value = right(input, target, **options)
        return _Backward.apply(value, fault) if input.shape[-1] == 5 else value

    return loss


for _fault in (*CRASHES, *TIMEOUTS, *HARMLESS, return_twice):
    globals()[f"{_fault.__name__}_in_forward"] = _in_forward(_fault)
    globals()[f"{_fault.__name__}_in_backward"] = _in_backward(_fault)


def always_segfaults(input, target, **options):
    """Even when it is asked, at loading, whether it takes lists."""
    segfault()


def always_hangs(input, target, **options):
    """As above."""
    hang()


def wrong_and_talkative(input, target, **options):
    print("it is printed where the failure is")
    return right(input, target, **options) * 1.5


class DiesAsAnArray:
    """A result that is fatal to look at."""

    dtype = "float32"

    def __array__(self, *_, **__):
        segfault()


def dies_when_it_is_looked_at(input, target, upstream, **options):
    return DiesAsAnArray(), DiesAsAnArray()


def says_its_process(input, target, **options):
    print(os.getpid())
    return right(input, target, **options)


def _with_a_daemon(then):
    def loss(input, target, **options):
        """Where there are five classes and no file $XENTCHECK_CALLS yet; there it writes who runs: worker, guard and daemon."""
        place = Path(os.environ["XENTCHECK_CALLS"])
        if input.shape[-1] == 5 and not place.exists():
            place.write_text(f"{os.getpid()} {os.getppid()} {start_a_daemon()}")
            then()
        return right(input, target, **options)

    return loss


answers_once, hangs_once, leaves_once = map(_with_a_daemon, (lambda: None, hang, leave))


def exits(input, target, **options):
    sys.exit("enough of this")


def interrupts(input, target, **options):
    raise KeyboardInterrupt


looked_at = Implementation(name="looked_at", loss_and_gradient=dies_when_it_is_looked_at)
