"""``Adapter``: a library's loss as an ``Implementation``, by declaration. It translates the call and mends nothing."""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from xentcheck.implementation import environments, translate
from xentcheck.implementation.declare import Implementation, ImplementationError
from xentcheck.spec.capabilities import ARRAY_CAPABILITIES, LINEAR_CAPABILITIES, LOGITS_CAPABILITIES
from xentcheck.spec.mistakes import UsageError
from xentcheck.spec.patterns import nearest

IGNORES = ("any", "-100 only", "by-adapter", "none")
GRADIENTS = ("autograd", "returned", "none")
SMOOTHINGS = ("1/C", "1/(C-1)")
DOES = ("remap", "mask", "divide")  # what the kit does where adapter_does says so
_REDUCTIONS = ("mean", "sum", "none")
# What few libraries offer: an adapter that does names it in ``offers``.
_RARE = frozenset(
    {
        "autocast",
        "class_probabilities",
        "compile",
        "double_backward",
        "func_grad",
        "ignore_index_list",
        "label_smoothing",
        "linear_bias",
        "normalizer",
        "uint8_target",
        "vmap",
        "weight",
    }
)


def Adapter(
    name: str,
    call: Callable[..., Any] | str,
    *,
    requires: Sequence[str] = (),
    environment: str = "",
    no_deps: bool = False,
    shares_torch: bool = True,
    env: Mapping[str, str] | None = None,
    layout: str = "flat",
    shifts: bool = False,
    linear: bool = False,
    ignores: str = "any",
    reductions: Collection[str] = _REDUCTIONS,
    returns: int | str | None = None,
    gradient: str = "autograd",
    keywords: Mapping[str, str] | None = None,
    smoothing: str = "1/C",
    offers: Collection[str] = (),
    lacks: Collection[str] = (),
    classes_divisible_by: int = 1,
    adapter_does: Collection[str] = (),
    by_hand: Collection[str] = (),
    device: str = "cpu",
    unavailable: str = "",
    **more: Any,
) -> Implementation:
    """A library's loss as an Implementation.

    Args:
        name: how reports call it.
        call: ``call(logits, labels, **options)``, a function that imports the library when it is called, or ``"package.module:attribute"``
            of the library itself. Options are passed only where a case sets them, by the names of torch: ``weight``, ``ignore_index``,
            ``reduction``, ``label_smoothing``, and ``normalizer``, where ``keywords`` has no other. With ``gradient="returned"``:
            ``call(logits, labels, upstream, **options)``, which returns the loss and the gradient of the logits under ``upstream``, of the
            loss's shape. With ``linear``: ``call(hidden, linear_weight, labels, **options)``.
        requires: requirements of an environment of its own, the library first. Without any, it is called as installed here.
        environment: the name of that environment; if left out, the library's. Adapters with the same requirements share it.
        no_deps: whether pip leaves out what ``requires`` need in turn.
        shares_torch: False for an environment without torch: ``call`` gets arrays of NumPy, of bfloat16 with the dtype of ml_dtypes.
        env: environment variables of its process.
        layout: how the library takes its logits, one of ``translate.LAYOUTS``.
        shifts: whether the library shifts the labels by one itself; needs layout ``sequence``.
        linear: whether it is a fused linear loss.
        ignores: ``any`` ignore value; ``-100 only``, and then ``ignore_index`` is not passed; ``by-adapter``, as ``adapter_does``
            says; or ``none``.
        reductions: those that the library offers. Where it is one, ``reduction`` is not passed.
        returns: which of several returned values is the loss, by index or by attribute.
        gradient: by torch's ``autograd``; ``returned`` by the call; or ``none``, for a loss without one.
        keywords: an option's name in torch, and the library's name for it. What is named here is offered.
        smoothing: the formula of the library's smoothing: how much each class gets. The amount is converted from torch's ``1/C``.
        offers, lacks: capabilities that it has beyond the common ones, such as ``weight`` or ``label_smoothing``, and common ones that
            it lacks, such as ``float64``.
        classes_divisible_by: cases with other numbers of classes are ``unsupported``.
        adapter_does: what is done here in the library's place. ``remap``: ignored labels become -100. ``mask``: they become 0, and what
            the library gives for them counts as zero. ``divide``: the library is asked for the losses of all positions, which are added
            up and divided here.
        by_hand: the same as words for reports, where ``call`` itself does it.
        device: ``cuda`` for what takes nothing else: tensors are moved there and back.
        more: further fields of Implementation, such as ``empty_mean``, ``refuses``, ``deviations`` or ``built_on``.

    Raises:
        ImplementationError: the declaration contradicts itself.
    """

    def wrong(text: str) -> ImplementationError:
        return ImplementationError(f"Adapter {name}: {text}")

    for what, value, known in (
        ("layout", layout, translate.LAYOUTS),
        ("ignores", ignores, IGNORES),
        ("gradient", gradient, GRADIENTS),
        ("smoothing", smoothing, SMOOTHINGS),
        *(("reductions", one, _REDUCTIONS) for one in reductions),
        *(("adapter_does", one, DOES) for one in adapter_does),
    ):
        if value not in known:
            raise wrong(
                f"{what}: expected one of {', '.join(known)}; found {value!r:.80}{nearest(str(value), known, 1)}"
            )
    does = frozenset(adapter_does)
    if unknown := more.keys() - Implementation.__dataclass_fields__.keys():
        raise wrong(f"unknown argument {min(unknown)}{nearest(min(unknown), Implementation.__dataclass_fields__)}")
    if (ignores == "by-adapter") != bool(does & {"remap", "mask"}):
        raise wrong("ignores='by-adapter' goes with 'remap' or 'mask' in adapter_does")
    if shifts and layout != "sequence":
        raise wrong(f"shifts: expected layout='sequence'; found {layout!r}")
    if "mask" in does and "divide" not in does:
        raise wrong("adapter_does: 'mask' works on the losses of positions, so it needs 'divide' as well")
    if "divide" in does and "none" not in reductions:
        raise wrong("adapter_does: 'divide' needs the losses of positions, reductions={'none'}")
    if not shares_torch and (gradient == "autograd" or linear):
        raise wrong("without torch: expected gradient='returned' or 'none', and no linear=True")
    if isinstance(call, str) and not all(call.partition(":")):
        raise wrong(f"call: expected a function or 'package.module:attribute'; found {call!r:.80}")
    made = None
    if requires:
        try:
            made = environments.make(environment, requires, no_deps, shares_torch, env)
        except UsageError as error:
            raise wrong(str(error)) from error
    arrays = gradient == "returned" or not shares_torch
    possible = LINEAR_CAPABILITIES if linear else ARRAY_CAPABILITIES if arrays else LOGITS_CAPABILITIES
    claimed = (possible - _RARE) | set(offers) | set(keywords or ())
    if ignores in ("-100 only", "none"):
        claimed -= {"ignore_index", "ignore_index_in_range"} | ({"ignore_minus_100"} if ignores == "none" else set())
    offered = set(_REDUCTIONS) if "divide" in does else set(reductions)
    claimed -= {f"reduction_{one}" for one in _REDUCTIONS if one not in offered}
    if offered == {"mean"}:
        claimed -= {"reduction_option"}
    if gradient == "none":
        claimed -= {"backward"}
    form = "linear_cross_entropy" if linear else "loss_and_gradient" if arrays else "cross_entropy"
    function = Call(
        call, form, layout, shifts, tuple(reductions), returns, gradient, dict(keywords or {}), smoothing, does, device
    )
    declared = {"adapter_does": does | set(by_hand), "classes_divisible_by": classes_divisible_by, "environment": made}
    return Implementation(
        name=name,
        capabilities=claimed - set(lacks),
        unavailable=unavailable or _why_not_here(device),
        **{form: function, **declared, **more},  # type: ignore[arg-type]
    )


def _why_not_here(device: str) -> str:
    if device != "cuda":
        return ""
    import torch

    return "" if torch.cuda.is_available() else "needs a CUDA device"


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
            ignored = _is_one_of(target, options.get("ignore_index", -100))
            labels = self._without_ignored(target, ignored)
        if "divide" in self.does:
            scale = _share(target, ignored, weight, normalizer) if reduction == "mean" else 1.0
        arguments = self._arguments(options, classes)
        given = [self._given("input", input, to.logits(input))]
        given += [self._on_device(one) for one in matrix]
        given += [self._given("target", target, to.labels(labels))]
        if upstream and self.gradient == "returned":
            above = np.ones((), input.dtype) if upstream[0] is None and isinstance(input, np.ndarray) else upstream[0]
            if above is None:
                above = input.new_ones(())
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
        spread = translate.as_dtype_of(translate.wide(above) * scale, above)
        whole = spread + (
            np.zeros(to.positions, spread.dtype) if isinstance(spread, np.ndarray) else spread.new_zeros(to.positions)
        )
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
