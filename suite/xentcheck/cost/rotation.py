"""The batches that are timed: equal in size and kind, but never the same twice, and every answer to them is looked at.

A loss that keeps an answer, leaves the work for later or returns nothing would cost next to nothing if it were asked the same tensors
again and again. So before each repetition, untimed, one of two buffers is written anew: the batch with its positions turned by a
random number of places, and with one of two sets of targets. After each repetition some entries of the answer are compared with the
definition, and now and then all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import SystemRandom
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xentcheck.cost.check import examine
from xentcheck.reference import blockwise
from xentcheck.reference.definition import ALLOWED_UNITS
from xentcheck.run.verdict import describe
from xentcheck.spec.batch import Batch

BUFFERS = 2
_POSITIONS, _ENTRIES = 64, 4  # that are looked at in each repetition: positions, and entries of the gradient at each

Array = np.ndarray


class Untrusted(Exception):
    """A figure that cannot be believed. The text says what was expected and what was found."""


@dataclass(frozen=True)
class Dealt:
    """What stands in a buffer: which targets, and by how many places the positions were turned."""

    buffer: int
    variant: int
    shift: int


class Rotation:
    """Deals a batch in ever new forms, and knows the right answers. The draws are not to be foreseen, and no right answer depends on them."""

    def __init__(self, batch: Batch, on_device: Batch, right: blockwise.Expected) -> None:
        other = _other_targets(batch)
        self.variants = [batch, other]
        self._right = [right, blockwise.expected(other)]
        self._sources = [on_device, replace(on_device, target=other.target.to(on_device.target.device))]
        self.buffers = [_copied(on_device) for _ in range(BUFFERS)]
        self._length = max(batch.target.shape)
        self._axis = max(range(batch.target.dim()), key=lambda axis: batch.target.shape[axis])
        self.draw = SystemRandom()
        self._spots = [_Spots(b, r, self._axis, self.draw) for b, r in zip(self.variants, self._right, strict=True)]

    @property
    def tensors(self) -> list[Tensor]:
        """All that belongs to the rotation."""
        batches = (*self.variants, *self._sources, *self.buffers)
        options = [v for b in batches for v in (b.upstream, *b.options.values()) if isinstance(v, Tensor)]
        return [*options, *(tensor for b in batches for tensor in (b.input, b.target))]

    def deal(self) -> Dealt:
        """Writes one of the buffers anew, at random."""
        return self.write(
            Dealt(self.draw.randrange(BUFFERS), self.draw.randrange(2), self.draw.randrange(self._length))
        )

    def deal_for_memory(self) -> Dealt:
        """Writes what an implementation has not been asked before; the same each time, for bytes to be the same."""
        return self.write(Dealt(1, 1, self._length // 2))

    def write(self, dealt: Dealt) -> Dealt:
        source, buffer = self._sources[dealt.variant], self.buffers[dealt.buffer]
        _turn(buffer.target, source.target, self._axis, dealt.shift)
        _turn(buffer.input, source.input, self._axis + (self._axis > 0), dealt.shift)
        if source.upstream is not None and buffer.upstream is not None and source.upstream.dim():
            _turn(buffer.upstream, source.upstream, self._axis, dealt.shift)
        return dealt

    def glance(self, dealt: Dealt, loss: Any, gradients: Sequence[Any]) -> None:
        """Raises Untrusted for an answer that is not plain tensors, or wrong in one of the entries that are looked at."""
        loss, gradients = self._plain(loss, gradients)
        self._spots[dealt.variant].compare(dealt.shift, loss, gradients)

    def examine(self, dealt: Dealt, loss: Any, gradients: Sequence[Any]) -> None:
        """Raises Untrusted for an answer that is wrong anywhere."""
        loss, gradients = self._plain(loss, gradients)
        batch, right = self.variants[dealt.variant], self._right[dealt.variant]
        if loss.dim():
            loss = torch.roll(loss, dealt.shift, self._axis)
        if gradients:
            axis = self._axis + (self._axis > 0)
            gradients = (torch.roll(gradients[0], dealt.shift, axis), *gradients[1:])
        found = examine(batch, right, loss, gradients)
        for faults in found.faults.values():
            raise Untrusted(f"{_EACH}; in one of them, {describe(faults[0])}")

    def _plain(self, loss: Any, gradients: Sequence[Any]) -> tuple[Tensor, tuple[Tensor, ...]]:
        device, arguments = self.buffers[0].input.device, list(self.variants[0].differentiated.values())
        of_loss = self.variants[0].target.shape if self.variants[0].reduction == "none" else ()
        shapes = [tuple(of_loss), *(tuple(argument.shape) for argument in arguments)]
        found = [_plain(value, device, shape) for value, shape in zip((loss, *gradients), shapes, strict=False)]
        if gradients and len(found) != len(shapes):
            raise Untrusted(f"{_EACH}; found {len(gradients)} gradients where {len(arguments)} were asked for")
        return found[0], tuple(found[1:])


_EACH = "expected the right answer in every repetition that is timed"


class _Spots:
    """Some entries of the gradients and of the losses, with what is right there."""

    def __init__(self, batch: Batch, right: blockwise.Expected, axis: int, draw: SystemRandom) -> None:
        count = batch.target.numel()
        chosen = np.asarray(sorted(draw.sample(range(count), min(_POSITIONS, count))))
        self._axis, self._length = axis, batch.target.shape[axis]
        self._places = np.unravel_index(chosen, tuple(batch.target.shape))
        self._allowed = ALLOWED_UNITS[str(batch.input.dtype).removeprefix("torch.")]
        self._is_known = bool(right.denominator)  # otherwise the loss is a convention
        loss, unit = blockwise.reduced(batch, right)
        self._loss = (loss[chosen], unit[chosen]) if batch.reduction == "none" else (loss, unit)
        width = batch.input.shape[1]
        self._entries = np.asarray([draw.randrange(width) for _ in range(len(chosen) * _ENTRIES)])
        self._rows = np.repeat(np.arange(len(chosen)), _ENTRIES)
        self._want = self._unit = np.zeros(len(self._rows))
        if not batch.differentiated:
            return
        if right.gradients is not None:
            want, unit = right.gradients["input"]
            self._want, self._unit = (v[chosen[self._rows], self._entries] for v in (want, unit))
            return
        is_valid = batch.valid[chosen]
        self._entries[::_ENTRIES] = np.where(is_valid, batch.target.reshape(-1).numpy()[chosen], 0)
        exact = blockwise.exact(batch, chosen[is_valid], right.denominator) if is_valid.any() else None
        want, unit = np.zeros((2, len(chosen), width))
        if exact is not None:
            want[is_valid], unit[is_valid] = exact.gradient, exact.gradient_unit
        self._want, self._unit = (v[self._rows, self._entries] for v in (want, unit))

    def compare(self, shift: int, loss: Tensor, gradients: Sequence[Tensor]) -> None:
        places = list(self._places)
        places[self._axis] = (places[self._axis] - shift) % self._length
        if gradients and self._is_known:
            sample, *others = (place[self._rows] for place in places)
            at = tuple(torch.from_numpy(i).to(loss.device) for i in (sample, self._entries, *others))
            self._hold("gradient", gradients[0][at], self._want, self._unit)
        if self._is_known:
            values = loss[tuple(torch.from_numpy(place) for place in places)] if loss.dim() else loss
            self._hold("loss", values, *self._loss)

    def _hold(self, quantity: str, values: Tensor, want: Array, unit: Array) -> None:
        found, want, unit = values.detach().double().cpu().numpy().reshape(-1), np.ravel(want), np.ravel(unit)
        with np.errstate(all="ignore"):
            is_wrong = np.isfinite(want) & ~((found == want) | (abs(found - want) <= self._allowed * unit))
        if is_wrong.any():
            first = int(np.flatnonzero(is_wrong)[0])
            raise Untrusted(
                f"{_EACH}; in one of them, found a {quantity} of {found[first]} where {want[first]} is right. An answer must not be "
                "kept from an earlier call, nor left for a later one"
            )


def _plain(value: Any, device: torch.device, shape: tuple[int, ...]) -> Tensor:
    """The value as a tensor that holds its own numbers. Raises Untrusted for what may only look like one."""
    if type(value) in (np.ndarray, float) or isinstance(value, np.generic):
        value = torch.as_tensor(value)
    is_tensor = type(value) in (Tensor, torch.nn.Parameter)
    if not is_tensor:
        found = f"a {type(value).__module__}.{type(value).__qualname__}"
    elif value.layout is not torch.strided or value.is_quantized or value.is_nested:
        found = f"a tensor of layout {value.layout}"
    elif value.device.type != device.type:
        found = f"a tensor on {value.device}"
    elif tuple(value.shape) != shape:
        found = f"a tensor of shape {tuple(value.shape)}"
    elif any(step == 0 and size > 1 for step, size in zip(value.stride(), value.shape, strict=True)):
        found = f"a tensor of strides {value.stride()}, whose entries share memory"
    else:
        return value.detach()
    raise Untrusted(
        f"expected a plain dense torch.Tensor of shape {shape} on {device}, whose numbers are there; found {found}"
    )


def _other_targets(batch: Batch) -> Batch:
    """The batch with the next class as target where that is neither ignored nor -inf; what is ignored stays so."""
    following = (batch.target + 1) % batch.classes
    ignored = torch.tensor([*batch.padding], dtype=batch.target.dtype)
    usable = ~torch.isin(batch.target, ignored) & ~torch.isin(following, ignored)
    if not batch.is_linear:
        usable &= torch.isfinite(batch.input.gather(1, following.long().unsqueeze(1)).squeeze(1))
    return replace(batch, target=torch.where(usable, following, batch.target))


def _copied(batch: Batch) -> Batch:
    upstream = batch.upstream
    if isinstance(upstream, Tensor) and upstream.dim():
        upstream = upstream.clone()
    return replace(batch, input=batch.input.clone(), target=batch.target.clone(), upstream=upstream)


def _turn(to: Tensor, source: Tensor, axis: int, shift: int) -> None:
    """``to[i] = source[i + shift]`` along the axis, with no room taken."""
    length = source.shape[axis]
    to.narrow(axis, 0, length - shift).copy_(source.narrow(axis, shift, length - shift))
    if shift:
        to.narrow(axis, length - shift, shift).copy_(source.narrow(axis, 0, shift))
