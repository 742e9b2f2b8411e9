"""What a worker does in an environment without torch: as ``worker``, for implementations with ``loss_and_gradient``. Needs NumPy only.

Batches arrive as namespaces of arrays. What is of bfloat16 is an array of ml_dtypes where that is installed; elsewhere one with a single
field, ``values["bfloat16"]``, that holds its bits as uint16.
"""

from __future__ import annotations

import copy
import socket
import traceback
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np

from xentcheck.implementation.declare import Implementation
from xentcheck.implementation.translate import wide
from xentcheck.run.answer import Answer, Failure, Observation, Raised
from xentcheck.run.isolation.protocol import Bits
from xentcheck.run.isolation.serving import answer_requests

try:
    import ml_dtypes

    BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
except ImportError:
    BFLOAT16 = np.dtype([("bfloat16", np.uint16)])


def serve(channel: socket.socket) -> None:
    """Answers requests, of which the first says what to load."""
    answer_requests(channel, _answer)


def _answer(
    implementation: Implementation,
    memory: int | None,
    batches: list[Any],
    wants_gradient: bool,
    calls: int,
    threads: int,
) -> list[Observation] | Failure:
    try:
        return [_observe(implementation, batch, wants_gradient, calls) for batch in batches]
    except BaseException as error:
        traceback.print_exc()
        return Failure("error", f"the worker process was left by {type(error).__name__}: {error}")


def _observe(implementation: Implementation, batch: Any, wants_gradient: bool, calls: int) -> Observation:
    answers, changed = list[Answer](), dict[str, None]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(calls):
            given = _fresh(batch)
            before = copy.deepcopy(given)
            answers.append(_called(implementation, given, wants_gradient))
            after = vars(given) | given.options
            old = vars(before) | before.options
            changed |= dict.fromkeys(_NAMES.get(n, n) for n, value in old.items() if not _same(value, after.get(n)))
            changed |= dict.fromkeys(getattr(implementation.function, "changed_copies", list)())
            if answers[-1].raised:
                break
    texts = dict.fromkeys(f"{w.category.__name__}: {w.message}" for w in caught)
    return Observation(answers[0], answers[1] if len(answers) > 1 else None, tuple(changed), tuple(texts))


_NAMES = {"upstream": "upstream gradient"}


def _called(implementation: Implementation, given: Any, wants_gradient: bool) -> Answer:
    try:
        loss, gradient = implementation.function(given.input, given.target, given.upstream, **given.options)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return Answer(raised=Raised("call", type(error).__name__, _text(error)))
    answer, unreadable = {}, {}
    for quantity, value in {"loss": loss, "gradient": gradient if wants_gradient else None}.items():
        try:
            if value is not None or quantity == "loss":
                answer[quantity] = _read(value)
        except Exception as error:
            unreadable[quantity] = f"{type(value).__name__} that cannot be read ({_text(error)})"[:300]
    loss_values, loss_type = answer.get("loss", (None, unreadable.get("loss", "")))
    gradient_values, gradient_type = answer.get("gradient", (None, ""))
    return Answer(loss_values, loss_type, gradient=gradient_values, gradient_type=gradient_type, unreadable=unreadable)


def _fresh(batch: Any) -> SimpleNamespace:
    """The arguments of one call, which share no memory with the batch."""
    options = {name: _array(value) for name, value in batch.options.items()}
    return SimpleNamespace(
        input=_array(batch.input), target=_array(batch.target), upstream=_array(batch.upstream), options=options
    )


def _array(value: Any) -> Any:
    """A copy, the axes of an array in the same order in memory."""
    if isinstance(value, Bits):
        return np.array(value.bits, order="K", ndmin=1).view(BFLOAT16).reshape(value.bits.shape)
    return value.copy(order="K") if isinstance(value, np.ndarray) else copy.deepcopy(value)


def _read(value: Any) -> tuple[np.ndarray, str]:
    if isinstance(value, Bits):
        return _read(_array(value))
    values = np.asarray(value)
    if values.dtype.names == ("bfloat16",):
        return wide(values), "bfloat16"
    if values.dtype.kind not in "fiubV" or values.dtype.names:
        raise TypeError(f"an array of dtype {values.dtype}")
    dtype = values.dtype.name if hasattr(value, "dtype") else type(value).__name__
    return np.array(values, dtype=np.float64), dtype


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
        return (old.shape, old.dtype, old.tobytes()) == (new.shape, new.dtype, new.tobytes())
    return isinstance(old, dict) or (type(old) is type(new) and old == new)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as another:
        return f"(no text: its __str__ raises {type(another).__name__})"
