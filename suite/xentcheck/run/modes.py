"""How a batch becomes a loss and a gradient, one function for each mode.

A mode is a generator: it yields the loss, which ends the call, and then the gradient of the input, which ends the backward pass. Gradients
of further arguments are left in their ``grad``. Scripts print these functions as they are, so they may use only these attributes of
``batch``: ``input``, ``target``, ``options``, ``upstream``, ``differentiated``, ``ignore_values``, ``direction``, ``padded_to``, ``padding``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xentcheck.spec.case_modes import micro_batches

LossFunction = Callable[..., Any]
Steps = Callable[[LossFunction, Any], Iterator[Any]]
Wrap = Callable[[LossFunction, Any], LossFunction]


# --- helpers of all modes


def require_gradients(batch: Any) -> None:
    for tensor in batch.differentiated.values():
        tensor.requires_grad_(tensor.is_floating_point())


def upstream_for(loss: Tensor, batch: Any) -> Tensor | None:
    return None if batch.upstream is None else batch.upstream.to(loss.dtype)


# --- the modes


def eager(function: LossFunction, batch: Any) -> Iterator[Any]:
    require_gradients(batch)
    loss = function(batch.input, batch.target, **batch.options)
    yield loss
    loss.backward(upstream_for(loss, batch))
    yield batch.input.grad


def no_grad(function: LossFunction, batch: Any) -> Iterator[Any]:
    batch.input.requires_grad_(batch.input.is_floating_point())
    with torch.no_grad():
        loss = function(batch.input, batch.target, **batch.options)
    yield loss


def inference_mode(function: LossFunction, batch: Any) -> Iterator[Any]:
    with torch.inference_mode():
        loss = function(batch.input, batch.target, **batch.options)
    yield loss


def detached(function: LossFunction, batch: Any) -> Iterator[Any]:
    """Nothing requires a gradient."""
    yield function(batch.input, batch.target, **batch.options)


def twice(function: LossFunction, batch: Any) -> Iterator[Any]:
    """Two backward passes through the same graph; yields the gradient of the second."""
    require_gradients(batch)
    loss = function(batch.input, batch.target, **batch.options)
    yield loss
    loss.backward(upstream_for(loss, batch), retain_graph=True)
    for tensor in batch.differentiated.values():
        tensor.grad = None
    loss.backward(upstream_for(loss, batch))
    yield batch.input.grad


def two_losses(function: LossFunction, batch: Any) -> Iterator[Any]:
    """Two calls, then both backward passes. Their gradients are equal, and halving the sum is exact."""
    require_gradients(batch)
    other = function(batch.input, batch.target, **batch.options)
    loss = function(batch.input, batch.target, **batch.options)
    yield loss
    other.backward(upstream_for(loss, batch))
    loss.backward(upstream_for(loss, batch))
    yield None if batch.input.grad is None else batch.input.grad / 2


def edited(function: LossFunction, batch: Any) -> Iterator[Any]:
    """The logits are edited in place between the call and the backward pass. Autograd may raise an error, which is also right."""
    require_gradients(batch)
    logits = batch.input.clone()
    loss = function(logits, batch.target, **batch.options)
    yield loss
    with torch.no_grad():
        logits.neg_()
    loss.backward(upstream_for(loss, batch))
    yield batch.input.grad


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def deterministic(function: LossFunction, batch: Any) -> Iterator[Any]:
    require_gradients(batch)
    with deterministic_algorithms():
        loss = function(batch.input, batch.target, **batch.options)
    yield loss
    with deterministic_algorithms():
        loss.backward(upstream_for(loss, batch))
    yield batch.input.grad


def func_grad(function: LossFunction, batch: Any) -> Iterator[Any]:
    loss, pull_back = torch.func.vjp(  # type: ignore[misc]  # three values only with has_aux
        lambda logits: function(logits, batch.target, **batch.options), batch.input
    )
    yield loss
    (gradient,) = pull_back(torch.ones_like(loss) if batch.upstream is None else upstream_for(loss, batch))
    yield gradient


def vmap(function: LossFunction, batch: Any) -> Iterator[Any]:
    """The loss once per position, each call with a batch of one, all at once."""

    def one(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        loss = function(x.unsqueeze(0), target.unsqueeze(0), **batch.options)
        return loss.sum(), loss.squeeze(0)

    gradient, loss = torch.func.vmap(torch.func.grad(one, has_aux=True))(batch.input, batch.target)
    yield loss
    yield gradient


def double_backward(function: LossFunction, batch: Any) -> Iterator[Any]:
    """Yields the gradient's derivative along ``batch.direction`` as well."""
    require_gradients(batch)
    loss = function(batch.input, batch.target, **batch.options)
    yield loss
    (gradient,) = torch.autograd.grad(loss, batch.input, upstream_for(loss, batch), create_graph=True)
    (second,) = torch.autograd.grad(gradient, batch.input, torch.as_tensor(batch.direction).to(gradient.dtype))
    yield gradient
    yield second


# --- wrappers that some modes put around the function


def compiled(function: LossFunction, batch: Any) -> LossFunction:
    torch.compiler.reset()

    def call(*arguments: Any, **options: Any) -> Any:  # up to torch 2.6 its own functions compile only inside others
        return function(*arguments, **options)

    return torch.compile(call)


def autocast(function: LossFunction, batch: Any) -> LossFunction:
    def call(*arguments: Any, **options: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return function(*arguments, **options)

    return call


def accumulated(function: LossFunction, batch: Any) -> LossFunction:
    """The loss of a batch from those of its micro-batches: added up, or weighted by each one's share of the denominator."""

    def share(target: Tensor, weight: Tensor | None) -> float:
        if target.is_floating_point():  # class probabilities
            return float(len(target))
        classes = target.long()
        counted = classes[~torch.isin(classes, torch.tensor(batch.ignore_values, dtype=torch.int64))]
        return float(len(counted) if weight is None else weight.double()[counted].sum())

    def call(logits: Tensor, target: Tensor, **options: Any) -> Tensor:
        parts = micro_batches(len(logits))
        losses = [function(logits[part], target[part], **options) for part in parts]
        if options.get("reduction") == "sum" or "normalizer" in options:
            return torch.stack(losses).sum()
        shares = [share(target[part], options.get("weight")) for part in parts]
        together = sum(loss.double() * (one / sum(shares)) for loss, one in zip(losses, shares))  # noqa: B905
        return together.to(losses[0].dtype)

    return call


def padded(function: LossFunction, batch: Any, note: Callable[[str, int], Any] = print) -> LossFunction:
    """The batch's samples spread among ignored ones. ``note`` is called with a quantity that is not zero at an ignored one, and its index."""

    def call(logits: Tensor, target: Tensor, **options: Any) -> Any:
        samples, ignored = batch.padded_to, batch.padding[0]
        where = torch.linspace(0, samples - 1, len(logits), dtype=torch.float64).round().long()
        others = torch.ones(samples, dtype=torch.bool)
        others[where] = False

        def check(name: str, values: Tensor) -> None:
            for index in torch.nonzero(others).flatten().split(4096):
                wrong = (values[index] != 0).flatten(1).any(1) if values.dim() > 1 else values[index] != 0
                if wrong.any():
                    return note(name, int(index[wrong][0]))

        all_logits = torch.zeros((samples, *logits.shape[1:]), dtype=logits.dtype)
        all_logits[where] = logits
        all_targets = torch.full((samples, *target.shape[1:]), ignored, dtype=target.dtype)
        all_targets[where] = target
        if all_logits.requires_grad:
            all_logits.register_hook(lambda gradient: check("gradient", gradient))
        loss = function(all_logits, all_targets, **options)
        if options.get("reduction", "mean") != "none" or not isinstance(loss, Tensor) or loss.dim() == 0:
            return loss
        check("loss", loss.detach())
        return loss[where]

    return call


@dataclass(frozen=True)
class Mode:
    """steps: the generator. wrap: wraps the function once, before all calls. helpers: the functions that these two call."""

    steps: Steps
    wrap: Wrap | None = None
    helpers: tuple[Callable[..., Any], ...] = (require_gradients, upstream_for)


PLAIN = Mode(eager)
PADDED = Mode(eager, padded)
MODES: dict[str, Mode] = {
    "eager": PLAIN,
    "compile": Mode(eager, compiled),
    "autocast": Mode(eager, autocast),
    "no_grad": Mode(no_grad, helpers=()),
    "inference_mode": Mode(inference_mode, helpers=()),
    "detached": Mode(detached, helpers=()),
    "func_grad": Mode(func_grad, helpers=(upstream_for,)),
    "vmap": Mode(vmap, helpers=()),
    "double_backward": Mode(double_backward),
    "twice": Mode(twice),
    "two_losses": Mode(two_losses),
    "edited": Mode(edited),
    "accumulated": Mode(eager, accumulated, (require_gradients, upstream_for, micro_batches)),
    "deterministic": Mode(deterministic, helpers=(require_gradients, upstream_for, deterministic_algorithms)),
}


def mode_of(batch: Any) -> Mode:
    return PADDED if batch.padded_to is not None else MODES[batch.mode]
