"""Runs one implementation on one batch and records all that happened. Judges nothing.

``modes`` defines how a batch becomes a loss and a gradient. What surrounds that (fresh inputs, a second call, a watch over arguments
and global state) is the same for all modes.
"""

from __future__ import annotations

import math
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xentcheck.implementation import Implementation, with_matrix
from xentcheck.implementation.forks import ForkWatch
from xentcheck.implementation.purity import GlobalState
from xentcheck.run.answer import Answer, Array, Failure, Observation, Raised
from xentcheck.run.modes import Mode, mode_of, padded
from xentcheck.spec.batch import Batch
from xentcheck.spec.needs import as_taken

_RECOMPILATIONS = 1_000_000
Function = Callable[..., Any]
# Calls an implementation on a batch, in this process (``observe``) or in another one.
Observe = Callable[[Implementation, Batch, bool, int], Observation | Failure]
# The same for several batches: one call each, with its gradient.
ObserveAll = Callable[[Implementation, Sequence[Batch]], Sequence[Observation | Failure]]


def observe(
    implementation: Implementation, batch: Batch, wants_gradient: bool, calls: int = 2
) -> Observation | Failure:
    """Calls the implementation on fresh copies of the batch: twice, or once where the second answer is not needed.

    One that does not claim an option is called without it where the batch has its default; one that does not claim ``backward``, without
    a graph. A Failure where a process that it forked comes back from the call as well.
    """
    batch = as_taken(batch, implementation.capabilities)
    wants_gradient = wants_gradient and "backward" in implementation.capabilities
    changed: dict[str, None] = {}
    answers: list[Answer] = []
    before = GlobalState(functions=False)
    with warnings.catch_warnings(record=True) as caught, _any_number_of_recompilations():
        warnings.simplefilter("always")
        _unusual_random_states()  # so that any seed that the implementation sets is a change
        state = GlobalState()
        call = _prepared(implementation, batch, wants_gradient)
        for _ in range(calls):
            copy = batch.fresh()
            with ForkWatch() as forks:
                try:
                    answer = call(copy)
                finally:
                    changed |= dict.fromkeys(state.restore())
            if forks.child_came_back:
                before.restore()
                text = "the call forked, and the child process came back from it as well; it was ended"
                return Failure("crash", text)
            changed |= dict.fromkeys(_changed_arguments(batch, copy))
            # An adapter may have given its library copies of them.
            changed |= dict.fromkeys(getattr(implementation.function, "changed_copies", tuple)())
            answers.append(answer)
            if answer.raised:
                break
    before.restore()
    tensors = [answer.tensor for answer in answers if answer.tensor is not None and answer.tensor.numel()]
    if len(tensors) == 2 and tensors[0].data_ptr() == tensors[1].data_ptr():
        changed["the loss that the call before returned"] = None
    texts = dict.fromkeys(f"{w.category.__name__}: {w.message}" for w in caught)
    return Observation(answers[0], answers[1] if len(answers) > 1 else None, tuple(changed), tuple(texts))


def _prepared(implementation: Implementation, batch: Batch, wants_gradient: bool) -> Callable[[Batch], Answer]:
    """The implementation in the batch's form and mode, prepared once for all calls."""
    if implementation.loss_and_gradient is not None:
        arrays = implementation.loss_and_gradient
        return lambda copy: _from_arrays(arrays, copy)
    in_form = with_matrix if batch.is_linear else _through_identity
    function = implementation.cross_entropy or in_form(implementation.linear_cross_entropy)
    if "backward" not in implementation.capabilities:
        function = _without_graph(function)
    mode, nonzero = mode_of(batch), list[tuple[str, int]]()
    if mode.wrap is padded:
        function = padded(function, batch, lambda *found: nonzero.append(found))
    elif mode.wrap is not None:
        function = mode.wrap(function, batch)

    def call(copy: Batch) -> Answer:
        nonzero.clear()
        answer = _answer(mode, function, copy, wants_gradient)
        return replace(answer, nonzero_padding=nonzero[0]) if nonzero else answer

    return call


def _without_graph(function: Function) -> Function:
    def detached(value: Any) -> Any:
        return value.detach() if isinstance(value, Tensor) else value

    def call(input: Tensor, target: Tensor, **options: Any) -> Any:
        return function(input.detach(), target, **{name: detached(value) for name, value in options.items()})

    return call


@contextmanager
def _any_number_of_recompilations() -> Iterator[None]:
    """A suite calls a compiled loss with more shapes and options than any program, which is not the loss's fault."""
    dynamo = sys.modules.get("torch._dynamo")  # not imported here: that takes seconds, and few losses need it
    if dynamo is None:
        yield
        return
    limits = ("recompile_limit", "accumulated_recompile_limit")
    with dynamo.config.patch({name: _RECOMPILATIONS for name in limits if hasattr(dynamo.config, name)}):
        yield


def _unusual_random_states() -> None:
    # Not torch.manual_seed: for GPUs that are not in use yet it records the whole stack, which costs more than a small loss.
    torch.default_generator.manual_seed(0x5EED_0F_A_CA5E)
    np.random.seed(0x5EED_CA5E)
    random.seed(0x5EED_0F_A_CA5E)


def _answer(mode: Mode, function: Function, batch: Batch, wants_gradient: bool) -> Answer:
    """What the steps of a mode gave, up to the one that raised."""
    steps = mode.steps(function, batch)
    try:
        loss = next(steps)
    except BaseException as error:
        return Answer(raised=_raised("call", error))
    if not isinstance(loss, Tensor):
        return Answer(loss_type=type(loss).__name__)
    read, unreadable = _readings({"loss": loss}, batch)
    if unreadable:
        return Answer(loss_type=unreadable["loss"])
    answer = Answer(*read["loss"], loss.requires_grad, tensor=loss.detach())
    if not wants_gradient:
        return answer
    try:
        gradient, *derivatives = steps
    except BaseException as error:
        return replace(answer, raised=_raised("backward", error), tensor=None)
    if gradient is None:
        return answer
    found = {"gradient": gradient, **dict(zip(["gradient of the gradient"], derivatives, strict=False))}
    others = {n: t.grad for n, t in batch.differentiated.items() if n != "input" and t.grad is not None}
    read, unreadable = _readings(found | {f"gradient of {name}": one for name, one in others.items()}, batch)
    values, gradient_type = read.get("gradient", (None, ""))
    return replace(
        answer,
        gradient=values,
        gradient_type=gradient_type,
        second=read.get("gradient of the gradient", (None, ""))[0],
        others={name: read[f"gradient of {name}"] for name in others if f"gradient of {name}" in read},
        unreadable=unreadable,
    )


def _from_arrays(function: Function, batch: Batch) -> Answer:
    try:
        loss, gradient = function(batch.input, batch.target, batch.upstream, **batch.options)
    except BaseException as error:
        return Answer(raised=_raised("call", error))
    found = {"loss": loss} if gradient is None else {"loss": loss, "gradient": gradient}
    read, unreadable = _readings(found, batch)
    loss_values, loss_type = read.get("loss") or (None, unreadable["loss"])
    gradient_values, gradient_type = read.get("gradient", (None, ""))
    return Answer(loss_values, loss_type, gradient=gradient_values, gradient_type=gradient_type, unreadable=unreadable)


class UnreadableError(Exception):
    """An answer that holds no plain numbers. The text says what it is instead."""


def _readings(found: Mapping[str, Any], batch: Batch) -> tuple[dict[str, tuple[Array, str]], dict[str, str]]:
    """By quantity: what could be read, with its dtype, and what the rest is. No other function looks into an answer."""
    most = max(_MOST, batch.input.numel(), *(tensor.numel() for tensor in batch.differentiated.values()))
    read, unreadable = {}, {}
    for quantity, value in found.items():
        try:
            read[quantity] = _read(value, most)
        except UnreadableError as error:
            unreadable[quantity] = str(error)
    return read, unreadable


_MOST = 1 << 24  # values that are read of an answer that is larger than all arguments


def _read(value: Any, most: int) -> tuple[Array, str]:
    """The values as float64, and their dtype. Raises UnreadableError, also for what raises when it is looked at."""
    try:
        if value is None:
            raise UnreadableError("NoneType")
        dtype = _dtype(value)
        values = value if isinstance(value, Tensor) else np.asarray(value)
        if reason := _why_not_plain(values, most):
            raise UnreadableError(reason)
        if isinstance(values, Tensor):
            values = values.detach().to("cpu", torch.float64).contiguous().numpy()
        return np.array(values, dtype=np.float64), dtype
    except (UnreadableError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise UnreadableError(f"{type(value).__name__} that cannot be read ({_one_line(error)})") from error


def _why_not_plain(values: Tensor | Array, most: int) -> str:
    """What it is where it holds no plain numbers; nothing where it does."""
    if isinstance(values, Tensor):
        if values.is_nested:
            return "a nested tensor"
        if values.layout != torch.strided:
            return f"a tensor of layout {str(values.layout).removeprefix('torch.')}"
        if values.is_quantized:
            return f"a quantized tensor of dtype {_dtype(values)}"
        if values.is_meta:
            return "a tensor on the device meta, where there are no values"
    if str(values.dtype).removeprefix("torch.").startswith("complex"):
        return f"a tensor of dtype {_dtype(values)}"
    if math.prod(values.shape) > most:
        return f"a tensor of shape {tuple(values.shape)}, far larger than the arguments"
    return ""


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {_text(error)}".splitlines()[0][:300]


def _through_identity(function: Function | None) -> Function:
    """A fused linear loss as a loss of logits: hidden states, whose features come last, times the identity matrix."""
    assert function is not None

    def call(input: Tensor, target: Tensor, **options: Any) -> Any:
        hidden = input.movedim(1, -1) if input.dim() > 2 else input
        return function(hidden, torch.eye(hidden.shape[-1], dtype=input.dtype), target, **options)

    return call


def _changed_arguments(before: Batch, after: Batch) -> list[str]:
    """The arguments whose values changed in any bit."""
    old, new = (
        {"input": b.input, "target": b.target, "upstream gradient": b.upstream, **b.options} for b in (before, after)
    )
    return [name for name, value in old.items() if not _same(value, new.get(name))]


def _same(old: Any, new: Any) -> bool:
    if not isinstance(old, Tensor) or not isinstance(new, Tensor):
        return type(old) is type(new) and old == new
    return old.shape == new.shape and old.dtype == new.dtype and _bits(old) == _bits(new)


def _bits(tensor: Tensor) -> bytes:
    # A single element keeps its stride in contiguous(), and as bytes it must have none.
    whole = tensor.detach().clone(memory_format=torch.contiguous_format)
    return whole.view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def _dtype(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.") if hasattr(value, "dtype") else type(value).__name__


def _raised(phase: str, error: BaseException) -> Raised:
    """BaseExceptions such as sys.exit and pytest.skip included, or the case would be lost; but not Ctrl-C."""
    if isinstance(error, KeyboardInterrupt):
        raise error
    return Raised(phase, type(error).__name__, _text(error))


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as another:
        return f"(no text: its __str__ raises {type(another).__name__})"
