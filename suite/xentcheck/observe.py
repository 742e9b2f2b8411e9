"""Runs one implementation on one batch and writes down all that happened. Judges nothing.

Every mode is a way to get from a batch to a loss and a gradient; what surrounds them (fresh inputs, a second call, a watch over
arguments and global state) is the same for all.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xentcheck.batch import Batch, micro_batches
from xentcheck.global_state import GlobalState
from xentcheck.implementation import Implementation, with_matrix

Array = np.ndarray


@dataclass(frozen=True)
class Raised:
    """An exception: where (call or backward), its type and its text."""

    phase: str
    type: str
    text: str

    def __str__(self) -> str:
        return f"{self.type} in the {'call' if self.phase == 'call' else 'backward pass'}: {self.text.strip().splitlines()[0] if self.text.strip() else ''}"


@dataclass(frozen=True)
class Answer:
    """What one call returned. Values as float64, which holds every dtype exactly; None for what was not there."""

    loss: Array | None = None
    loss_type: str = ""  # a dtype of torch, or the type of what was returned instead of a tensor
    gradient: Array | None = None
    gradient_type: str = ""
    second: Array | None = None
    others: Mapping[str, tuple[Array, str]] = field(
        default_factory=dict
    )  # further gradients, by argument, with their dtypes
    raised: Raised | None = None
    padding: str = ""  # what is not zero at the samples that were added to the batch (padded_to)
    # the loss itself, whose memory is the caller's; it means nothing in another process
    tensor: Tensor | None = field(default=None, metadata={"sent": False})


@dataclass(frozen=True)
class Observation:
    """One implementation on one batch: the answer, the answer to the same call again, and what was touched on the way."""

    first: Answer
    again: Answer | None
    changed: tuple[str, ...]
    warnings: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Failure:
    """No observation, since the process that was to make it did not live to tell. status: ``crash`` or ``timeout``."""

    status: str
    message: str


Function = Callable[..., Any]
# How an implementation is put to a batch, in this process (``observe``) or in another one.
Observe = Callable[[Implementation, Batch, bool, int], Observation | Failure]
ObserveAll = Callable[
    [Implementation, Sequence[Batch]], Sequence[Observation | Failure]
]  # of one call with its gradient each


def observe(implementation: Implementation, batch: Batch, wants_gradient: bool, calls: int = 2) -> Observation:
    """Calls the implementation on fresh copies of the batch: twice, or once where nobody asks what a second call gives."""
    changed: dict[str, None] = {}
    answers: list[Answer] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = GlobalState(functions=False)
        _unusual_random_states()  # so that a seed set by the implementation is a change, whichever it is
        state = GlobalState()
        function = _callable(implementation, batch)
        for _ in range(calls):
            mine = batch.fresh()
            try:
                answer = _answer(implementation, function, mine, wants_gradient)
            finally:
                changed |= dict.fromkeys(state.restore())
            changed |= dict.fromkeys(_touched(batch, mine))
            answers.append(answer)
            if answer.raised:
                break
    before.restore()
    tensors = [answer.tensor for answer in answers if answer.tensor is not None and answer.tensor.numel()]
    if len(tensors) == 2 and tensors[0].data_ptr() == tensors[1].data_ptr():
        changed["the loss that the call before returned"] = None
    texts = dict.fromkeys(f"{w.category.__name__}: {w.message}" for w in caught)
    return Observation(answers[0], answers[1] if len(answers) > 1 else None, tuple(changed), tuple(texts))


def _unusual_random_states() -> None:
    # Not torch.manual_seed: for GPUs that are not in use yet it notes down the whole stack, which costs more than a small loss.
    torch.default_generator.manual_seed(0x5EED_0F_A_CA5E)
    np.random.seed(0x5EED_CA5E)
    random.seed(0x5EED_0F_A_CA5E)


def _callable(implementation: Implementation, batch: Batch) -> Function:
    if implementation.loss_and_gradient is not None:
        return implementation.loss_and_gradient
    through = with_matrix if batch.is_linear else _through_identity
    function = implementation.cross_entropy or through(implementation.linear_cross_entropy)
    if batch.mode == "compile":
        torch.compiler.reset()

        def compiled(
            *arguments: Any, **options: Any
        ) -> Any:  # a function of torch itself compiles inside others only, up to 2.6
            return function(*arguments, **options)

        return torch.compile(compiled)
    return function


def _answer(implementation: Implementation, function: Function, batch: Batch, wants_gradient: bool) -> Answer:
    if implementation.loss_and_gradient is not None:
        return _from_arrays(function, batch)
    if batch.mode == "vmap":
        return _vmapped(function, batch)
    if batch.mode == "func_grad":
        return _functional(function, batch)
    return _eager(function, batch, wants_gradient)


def _eager(function: Function, batch: Batch, wants_gradient: bool) -> Answer:
    x = batch.input.requires_grad_(batch.input.is_floating_point() and batch.mode not in ("inference_mode", "detached"))
    others = {n: t for n, t in batch.differentiated.items() if n != "input" and x.requires_grad}
    for tensor in others.values():
        tensor.requires_grad_()
    contexts: dict[str, Callable[[], Any]] = {
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        "deterministic": _deterministic,
    }
    padding = _Padding(batch)
    try:
        with contexts.get(batch.mode, nullcontext)():
            if batch.mode == "two_losses":
                other = function(x, batch.target, **batch.options)
            if batch.mode == "accumulated":
                loss = _accumulated(function, batch)
            elif batch.mode == "edited":
                loss = function(edited := x.clone(), batch.target, **batch.options)
            elif batch.padded_to is not None:
                loss = padding.call(function)
            else:
                loss = function(x, batch.target, **batch.options)
    except BaseException as error:
        return Answer(raised=_raised("call", error))
    if not isinstance(loss, Tensor):
        return Answer(loss_type=type(loss).__name__)
    if not wants_gradient:
        grad_note = "requires grad" if loss.requires_grad else ""
        return Answer(_array(loss), _dtype(loss), gradient_type=grad_note, tensor=loss)
    value, dtype = _array(loss), _dtype(loss)
    try:
        upstream = None if batch.upstream is None else batch.upstream.to(loss.dtype)
        if batch.mode == "double_backward":
            return _twice_differentiated(loss, x, upstream, batch.direction, value, dtype)
        if batch.mode == "twice":
            loss.backward(upstream, retain_graph=True)
            for tensor in (x, *others.values()):
                tensor.grad = None
        if batch.mode == "two_losses":
            other.backward(upstream)
        if batch.mode == "edited":
            with torch.no_grad():
                edited.neg_()
        with contexts["deterministic"]() if batch.mode == "deterministic" else nullcontext():
            loss.backward(upstream)
    except BaseException as error:
        return Answer(value, dtype, raised=_raised("backward", error), padding=padding.found)
    if x.grad is None:
        return Answer(value, dtype, padding=padding.found, tensor=loss.detach())
    # Both losses give the same gradient; halving is exact.
    gradient = _array(x.grad) / 2 if batch.mode == "two_losses" else _array(x.grad)
    found = {n: (_array(t.grad), _dtype(t.grad)) for n, t in others.items() if t.grad is not None}
    return Answer(value, dtype, gradient, _dtype(x.grad), others=found, padding=padding.found, tensor=loss.detach())


@contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _accumulated(function: Function, batch: Batch) -> Tensor:
    """The loss of the batch from those of its micro-batches: added up, means by the share of what counts in them."""
    parts = micro_batches(batch)
    losses = [function(batch.input[part], batch.target[part], **batch.options) for part in parts]
    if batch.reduction == "sum" or "normalizer" in batch.options:
        return torch.stack(losses).sum()
    weight, valid = batch.options.get("weight"), torch.from_numpy(batch.valid).reshape(batch.positions)
    if weight is None or batch.has_probabilities:
        masses = [float(valid[part].sum()) for part in parts]
    else:
        masses = [weight.double()[batch.target[part][valid[part]].long()].sum().item() for part in parts]
    return sum(loss.double() * (mass / sum(masses)) for loss, mass in zip(losses, masses, strict=True)).to(
        losses[0].dtype
    )


class _Padding:
    """The batch's samples spread among ignored ones; notes what at the others is not zero, as it should be."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.found = batch, ""

    def call(self, function: Function) -> Tensor:
        batch, samples = self.batch, self.batch.padded_to or 0
        where = torch.linspace(0, samples - 1, batch.input.shape[0], dtype=torch.float64).round().long()
        others = torch.ones(samples, dtype=torch.bool)
        others[where] = False
        logits = torch.zeros((samples, *batch.input.shape[1:]), dtype=batch.input.dtype)
        logits[where] = batch.input
        target = torch.full((samples, *batch.target.shape[1:]), batch.padding[0], dtype=batch.target.dtype)
        target[where] = batch.target
        if logits.requires_grad:
            logits.register_hook(lambda gradient: self._check("gradient", gradient, others))
        loss = function(logits, target, **batch.options)
        if batch.reduction != "none" or not isinstance(loss, Tensor) or loss.dim() == 0:
            return loss
        self._check("loss", loss.detach(), others)
        return loss[where]

    def _check(self, name: str, values: Tensor, others: Tensor) -> None:
        for index in torch.nonzero(others).flatten().split(4096):
            wrong = (values[index] != 0).flatten(1).any(1) if values.dim() > 1 else values[index] != 0
            if wrong.any() and not self.found:
                self.found = f"a {name} at the ignored sample {index[wrong][0].item()}"


def _twice_differentiated(
    loss: Tensor, x: Tensor, upstream: Tensor | None, direction: Array | None, value: Array, dtype: str
) -> Answer:
    (gradient,) = torch.autograd.grad(loss, x, upstream, create_graph=True)
    assert direction is not None
    (second,) = torch.autograd.grad(gradient, x, torch.from_numpy(direction).to(gradient.dtype))
    return Answer(value, dtype, _array(gradient), _dtype(gradient), _array(second))


def _functional(function: Function, batch: Batch) -> Answer:
    try:
        loss, pull_back = torch.func.vjp(lambda x: function(x, batch.target, **batch.options), batch.input)
    except BaseException as error:
        return Answer(raised=_raised("call", error))
    try:
        upstream = torch.ones_like(loss) if batch.upstream is None else batch.upstream.to(loss.dtype)
        (gradient,) = pull_back(upstream)
    except BaseException as error:
        return Answer(_array(loss), _dtype(loss), raised=_raised("backward", error))
    return Answer(_array(loss), _dtype(loss), _array(gradient), _dtype(gradient))


def _vmapped(function: Function, batch: Batch) -> Answer:
    """The loss once per position, each call with a batch of one, all at once."""

    def one(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        loss = function(x.unsqueeze(0), target.unsqueeze(0), **batch.options)
        return loss.sum(), loss.squeeze(0)

    try:
        gradient, loss = torch.func.vmap(torch.func.grad(one, has_aux=True))(batch.input, batch.target)
    except BaseException as error:
        return Answer(raised=_raised("call", error))
    return Answer(_array(loss), _dtype(loss), _array(gradient), _dtype(gradient))


def _from_arrays(function: Function, batch: Batch) -> Answer:
    try:
        loss, gradient = function(batch.input, batch.target, batch.upstream, **batch.options)
    except BaseException as error:
        return Answer(raised=_raised("call", error))
    loss_values, gradient_values = _numbers(loss), _numbers(gradient)
    return Answer(loss_values, _dtype(loss), gradient_values, "" if gradient_values is None else _dtype(gradient))


def _numbers(value: Any) -> Array | None:
    """None for what holds no numbers."""
    try:
        return None if value is None else _array(value)
    except (TypeError, ValueError):
        return None


def _through_identity(function: Function | None) -> Function:
    """A fused linear loss as a loss of logits: hidden states, whose features stand last, times the identity matrix."""
    assert function is not None

    def call(input: Tensor, target: Tensor, **options: Any) -> Any:
        hidden = input.movedim(1, -1) if input.dim() > 2 else input
        return function(hidden, torch.eye(hidden.shape[-1], dtype=input.dtype), target, **options)

    return call


def _touched(before: Batch, after: Batch) -> list[str]:
    """The arguments whose values are no longer what they were, bit for bit."""
    pairs: dict[str, tuple[Any, Any]] = {"input": (before.input, after.input), "target": (before.target, after.target)}
    pairs["upstream gradient"] = (before.upstream, after.upstream)
    pairs |= {name: (value, after.options.get(name)) for name, value in before.options.items()}
    return [name for name, (old, new) in pairs.items() if not _same(old, new)]


def _same(old: Any, new: Any) -> bool:
    if not isinstance(old, Tensor) or not isinstance(new, Tensor):
        return type(old) is type(new) and old == new
    if old.shape != new.shape or old.dtype != new.dtype:
        return False
    return _bits(old) == _bits(new)


def _bits(tensor: Tensor) -> bytes:
    # A single element keeps its stride in contiguous(), and as bytes it must have none.
    whole = tensor.detach().clone(memory_format=torch.contiguous_format)
    return whole.view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def _array(value: Any) -> Array:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", torch.float64).contiguous().numpy().copy()
    return np.asarray(value, dtype=np.float64)


def _dtype(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.") if hasattr(value, "dtype") else type(value).__name__


def _raised(phase: str, error: BaseException) -> Raised:
    """Also what is no Exception, such as sys.exit and pytest.skip: a case must not be lost by it. Ctrl-C is the user's."""
    if isinstance(error, KeyboardInterrupt):
        raise error
    return Raised(phase, type(error).__name__, str(error))
