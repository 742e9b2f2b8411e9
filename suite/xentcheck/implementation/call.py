"""The call of an adapter: to its library, in the library's layout and by its names, and back."""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from xentcheck.implementation import translate


@dataclass
class Call:
    """The function of an Adapter's Implementation: translates a call to the library and what it returns. Its fields are the Adapter's.

    form: one of ``spec.capabilities.FORMS``.
    """

    call: Callable[..., Any] | str
    form: str
    layout: str
    shifts: bool
    reductions: tuple[str, ...]
    returns: int | str | None
    gradient: str
    keywords: Mapping[str, str]
    smoothing: str
    does: frozenset[str]
    device: str
    # The library's own copies of arguments: their names, the copies, and the bytes that they held before the call.
    _copies: deque[tuple[str, Any, bytes]] = field(default_factory=lambda: deque(maxlen=16))

    def __post_init__(self) -> None:
        self.__module__ = ""  # of no package, so that no version is taken from it

    @cached_property
    def library(self) -> Callable[..., Any]:
        if not isinstance(self.call, str):
            return self.call
        module, _, attribute = self.call.partition(":")
        found: Any = importlib.import_module(module)
        for step in attribute.split("."):
            found = getattr(found, step)
        return found

    def changed_copies(self) -> list[str]:
        """The arguments of which the library changed a copy that it was given since this was last asked."""
        changed = [name for name, copy, before in self._copies if translate.bits_of(copy) != before]
        self._copies.clear()
        return changed

    def __call__(self, input: Any, *others: Any, **options: Any) -> Any:
        matrix = others[:1] if self.form == "linear_cross_entropy" else ()
        target, *upstream = others[len(matrix) :]
        to = translate.Translation(input, self.layout, self.shifts)
        classes = matrix[0].shape[0] if matrix else to.shape[to.axis]
        reduction, weight = options.get("reduction", "mean"), options.get("weight")
        normalizer, ignored = options.get("normalizer"), None
        labels = target
        if self.does:
            if tuple(target.shape) != to.positions:
                raise ValueError(f"expected labels of shape {to.positions}; found {tuple(target.shape)}")
            ignored = _is_one_of(target, options.get("ignore_index", -100))
            labels = self._without_ignored(target, ignored)
        if "divide" in self.does:
            scale = _share(target, ignored, weight, normalizer) if reduction == "mean" else 1.0
        arguments = self._arguments(options, classes)
        given = [self._given("input", input, to.logits(input))]
        given += [self._on_device(one) for one in matrix]
        given += [self._given("target", target, to.labels(labels))]
        if upstream and self.gradient == "returned":
            above = translate.one_like(input) if upstream[0] is None else upstream[0]
            wanted = self._to_positions(above, to, ignored, scale) if "divide" in self.does else above
            given += [self._given("upstream gradient", above, to.upstream(wanted))]
        value = self.library(*given, **arguments)
        found = None
        if self.gradient == "returned":
            value, found = value
        elif self.returns is not None:
            value = getattr(value, self.returns) if isinstance(self.returns, str) else value[self.returns]
        loss = to.loss(value)
        if "divide" in self.does:
            loss = self._reduced(loss, to, ignored, reduction, scale)
        if self.device != "cpu" and hasattr(loss, "cpu"):
            loss = loss.cpu()
        if self.form != "loss_and_gradient":
            return loss
        return loss, None if found is None else to.gradient(found)

    def _arguments(self, options: Mapping[str, Any], classes: int) -> dict[str, Any]:
        """The options as the library takes them. What it does not offer is passed all the same, for it to refuse."""
        options = dict(options)
        reduction = options.get("reduction", "mean")
        if "divide" in self.does:
            options.pop("normalizer", None)
            options["reduction"] = "none"
        if len(self.reductions) == 1 and ("divide" in self.does or reduction in self.reductions):
            options.pop("reduction", None)
        if self.does & {"remap", "mask"}:
            options.pop("ignore_index", None)
        if "label_smoothing" in options and self.smoothing == "1/(C-1)":
            options["label_smoothing"] = options["label_smoothing"] * (classes - 1) / classes
        return {self.keywords.get(name, name): self._on_device(value) for name, value in options.items()}

    def _given(self, name: str, original: Any, value: Any) -> Any:
        value = self._on_device(value)
        if value is not original and not translate.shares_memory(value, original):
            self._copies.append((name, value, translate.bits_of(value)))
        return value

    def _on_device(self, value: Any) -> Any:
        return value if self.device == "cpu" or not hasattr(value, "to") else value.to(self.device)

    def _without_ignored(self, target: Any, ignored: Any) -> Any:
        if "mask" in self.does:
            return translate.where(ignored, 0, target)
        if "remap" not in self.does:
            return target
        if bool(((target == -100) & ~ignored).any()):
            raise IndexError("Target -100 is out of bounds.")
        return translate.where(ignored, -100, target)

    def _to_positions(self, above: Any, to: translate.Translation, ignored: Any, scale: float) -> Any:
        """The gradient from above of the losses of positions."""
        spread = translate.wide(above) * scale + (translate.wide(ignored) * 0).reshape(to.positions)
        whole = translate.as_dtype_of(spread, above)
        return translate.where(ignored, 0, whole) if "mask" in self.does else whole

    def _reduced(self, losses: Any, to: translate.Translation, ignored: Any, reduction: str, scale: float) -> Any:
        if tuple(getattr(losses, "shape", ())) != to.positions:
            found = getattr(losses, "shape", type(losses).__name__)
            raise TypeError(f"expected the losses of all positions, of shape {to.positions}; found {found}")
        if self.device != "cpu" and hasattr(losses, "cpu"):
            losses = losses.cpu()
        if "mask" in self.does:
            losses = translate.where(ignored, 0, losses)
        if reduction == "none":
            return losses
        total = translate.wide(losses).sum() * scale
        return translate.as_dtype_of(total if scale else total + float("nan"), losses)


def _is_one_of(target: Any, values: Any) -> Any:
    values = [values] if isinstance(values, int) else list(values)
    return sum(((target == value) for value in values[1:]), target == values[0])


def _share(target: Any, ignored: Any, weight: Any, normalizer: Any) -> float:
    """What the sum of all losses is multiplied by for a mean: nothing where it is of no position."""
    if normalizer is not None:
        denominator = float(normalizer)
    elif weight is None:
        denominator = float((~ignored).sum())
    else:
        denominator = float(translate.wide(weight)[target[~ignored]].sum())
    return 1 / denominator if denominator else 0.0
