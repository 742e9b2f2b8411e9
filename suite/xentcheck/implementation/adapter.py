"""``Adapter``: a library's loss as an ``Implementation``, by declaration. It translates the call and mends nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from xentcheck.implementation import environments
from xentcheck.implementation.declare import Implementation, ImplementationError
from xentcheck.spec.capabilities import ARRAY_CAPABILITIES, LINEAR_CAPABILITIES, LOGITS_CAPABILITIES
from xentcheck.spec.mistakes import UsageError
from xentcheck.spec.patterns import nearest

# How a library takes the logits of P positions and C classes, and its labels.
LAYOUTS = {
    "flat": "logits (P, C), labels (P,)",
    "sequence": "logits (1, P, C), labels (1, P)",
    "classes-last": "logits (N, d1, ..., C), labels (N, d1, ...)",
    "channels": "logits (N, C, d1, ...), labels (N, d1, ...), as torch takes them",
}
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
        layout: how the library takes its logits, one of ``LAYOUTS`` above.
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
        more: further fields of Implementation, such as ``empty_mean``, ``refuses``, ``deviations``, ``built_on`` or ``slow``.

    Raises:
        ImplementationError: the declaration contradicts itself.
    """

    def wrong(text: str) -> ImplementationError:
        return ImplementationError(f"Adapter {name}: {text}")

    for what, value, known in (
        ("layout", layout, LAYOUTS),
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
    from xentcheck.implementation.call import Call  # here, because it needs NumPy

    form = "linear_cross_entropy" if linear else "loss_and_gradient" if arrays else "cross_entropy"
    function = Call(
        call, form, layout, shifts, tuple(reductions), returns, gradient, dict(keywords or {}), smoothing, does, device
    )
    declared = {"adapter_does": does | set(by_hand), "classes_divisible_by": classes_divisible_by, "environment": made}
    return Implementation(
        name=name,
        capabilities=claimed - set(lacks),
        unavailable=unavailable or _why_not_here(device),
        **{form: function, **declared, **more},
    )


def _why_not_here(device: str) -> str:
    if device != "cuda":
        return ""
    import torch

    return "" if torch.cuda.is_available() else "needs a CUDA device"
