"""Clocks that are replaced."""

import time

from _registry import cheat, right


def _slowed(patch, name):
    plain, zero = getattr(time, name), getattr(time, name)()
    patch.setattr(time, name, lambda: zero + (plain() - zero) // 50)
    return right


@cheat("time.perf_counter_ns replaced")
def a_slow_clock_in_nanoseconds(patch):
    return _slowed(patch, "perf_counter_ns")


@cheat("time.perf_counter replaced")
def a_slow_clock(patch):
    return _slowed(patch, "perf_counter")


@cheat("time.process_time_ns replaced")
def a_slow_clock_of_the_processor(patch):
    return _slowed(patch, "process_time_ns")
