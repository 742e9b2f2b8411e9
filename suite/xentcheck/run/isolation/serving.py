"""What all workers have in common: loading an implementation, and the way of requests and answers. Imports no torch."""

from __future__ import annotations

import ctypes
import itertools
import os
import resource
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from xentcheck.implementation.declare import BrokenError, Implementation, ImplementationError
from xentcheck.implementation.forks import end_in_a_child
from xentcheck.implementation.load import Ask, find
from xentcheck.run.isolation.protocol import receive, send
from xentcheck.spec.capabilities import FORMS

Exchange = Callable[[Any], dict[str, Any]]  # answers a request, and returns the next one
_LIBC = ctypes.CDLL(None)


def answer_requests(channel: socket.socket, answer: Callable[..., Any]) -> None:
    """Loads what the first request names, and answers all others: ``answer(implementation, memory, **request)``."""
    me = os.getpid()
    token, start = receive(channel)

    def exchange(reply: Any) -> dict[str, Any]:
        nonlocal token
        end_in_a_child(me)
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        _LIBC.fflush(None)
        send(channel, token, reply)
        token, request = receive(channel)
        return request

    found: list[Implementation] = []
    reply: Any = _load(found, exchange, **start)
    while True:
        request = exchange(reply)  # comes only if something was found
        reply = answer(found[0], start["memory"], **request)


def _load(
    found: list[Implementation], exchange: Exchange, source: str, memory: int | None, unasked: list[int]
) -> dict[str, Any]:
    """Adds what is found, and gives all of it that can be passed, which is everything but the functions."""
    try:
        _limit(memory)
        found += map(_with_version, find(source, ask=_announced(exchange, unasked)))
    except ImplementationError as error:
        return {"refused": str(error), "broken": isinstance(error, BrokenError)}
    except BaseException as error:
        return {"refused": f"--impl {source}: {type(error).__name__}: {error}", "broken": True}
    described = []
    for implementation in found:
        declared = {field.name: getattr(implementation, field.name) for field in fields(implementation)}
        form = next(form for form in FORMS if declared[form] is not None)
        described.append({name: value for name, value in declared.items() if name not in FORMS} | {"form": form})
    return {"found": described}


def _announced(exchange: Exchange, unasked: list[int]) -> Ask:
    """Loading a bare callable calls it. Should this process die of a question, the next one is told to leave it unasked."""
    numbers = itertools.count(1)

    def ask(question: Callable[[], Any]) -> Any:
        number, answer = next(numbers), None
        if number not in unasked:
            exchange({"asking": number})
            with suppress(BaseException):  # such as SystemExit
                answer = question()
            exchange({"asking": 0})
        return answer

    return ask


def _with_version(implementation: Implementation) -> Implementation:
    """Of what is installed in an environment of its own, the version is known there."""
    if implementation.version or implementation.environment is None:
        return implementation
    return replace(implementation, version=implementation.environment.version())


def _limit(memory: int | None) -> None:
    """Bytes of data for this process. Raises ImplementationError where torch alone holds more."""
    if memory is None:
        return
    lines = Path("/proc/self/status").read_text().splitlines()
    held = next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmData"))
    if memory < held:
        wanted = f"expected more than the {held / 2**30:.2g} GiB that torch alone holds"
        raise ImplementationError(f"--worker-memory {memory / 2**30:g}: {wanted}")
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
