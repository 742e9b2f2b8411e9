"""What calls on small batches tell about a bare callable: whether it is called right, and whether it takes lists of ignore values."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from xentcheck.implementation.declare import ModuleCall
from xentcheck.implementation.forks import ForkWatch

Function = Callable[..., Any]
_OPTIONS = {"weight", "ignore_index", "reduction", "label_smoothing", "normalizer", "linear_bias"}


def takes_lists(function: Function, is_linear: bool) -> bool:
    """Whether a loss means to take a list of ignore values. Whether it does so rightly is for the cases to find out.

    A list of one gives what the plain value gives, and a list of two is not refused, as it is by whoever compares it with five targets by
    broadcasting.
    """
    import torch

    logits = torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 1.0], [1.0, 5.0, 0.0], [0.5, 0.0, 4.0], [3.0, 1.0, 1.0]])
    target = torch.tensor([2, 1, 0, 2, 1])

    def call(ignore_index: int | list[int]) -> Any:
        matrix = [torch.eye(3)] if is_linear else []
        return function(logits.clone(), *matrix, target.clone(), ignore_index=ignore_index)

    def is_taken() -> bool:
        one, listed = call(1), call([1])  # of one value: more would not be a mean, and might be very many
        return one.numel() == 1 and torch.equal(one, listed) and isinstance(call([1, 2]), torch.Tensor)

    with torch.no_grad():
        return bool(_quietly(is_taken))


def wrong_call(function: Function, name: str, is_linear: bool) -> str:
    """What is wrong with the way in which a callable is called, and what to write instead; empty if nothing is, or nobody can tell.

    It is called with two positions, three classes and float32. An exception that says nothing about the call, such as one that asks
    for another device, is no reason to object.
    """
    import torch

    input, target = _batch(2, 3)
    given = (input, torch.eye(3), target) if is_linear else (input, target)
    first = "hidden, linear_weight, target" if is_linear else "input, target"
    expected = f"expected {name}({first}, ...) that returns a tensor"
    short = "h, w, t" if is_linear else "x, t"
    raised: list[Exception] = []
    returned = _quietly(lambda: (function(*given),), raised)
    if returned is not None:
        found, more = _not_a_tensor(returned[0])
        wrapped = f"; wrap it: lambda {short}, **o: {name}({short}, **o){more}" if more else ""
        return found and f"{expected}; found one that returns {found}{wrapped}"
    if not is_linear and _gives_a_loss(function, target, input):
        return f"{expected}; found one that takes the labels first; wrap it: lambda x, t, **o: {name}(t, x, **o)"
    if raised and isinstance(raised[0], TypeError) and (found := _not_bound(function, name, given, short)):
        return f"{expected}; found {found}"
    if not is_linear and takes_classes_last(function):
        advice = f"wrap it: lambda x, t, **o: {name}(x.movedim(1, -1), t, **o)"
        return f"expected {name}(input, target, ...) with the classes in dimension 1 of input; found one that takes them last; {advice}"
    return ""


def takes_classes_last(function: Function) -> bool:
    """Whether it takes an input of shape (N, d1, C), and none of shape (N, C, d1). Calls the loss once or twice."""
    input, target = _batch(2, 3, 4)
    return not _gives_a_loss(function, input, target) and _gives_a_loss(function, input.movedim(1, -1), target)


def _batch(positions: int, classes: int, *more: int) -> tuple[Any, Any]:
    """Logits of shape (positions, classes, *more), all of them different, and a target of shape (positions, *more)."""
    import torch

    shape = (positions, classes, *more)
    logits = torch.arange(float(torch.Size(shape).numel())).mul(7).remainder(11).div(4).reshape(shape)
    target = torch.arange(torch.Size((positions, *more)).numel()).remainder(classes).reshape(positions, *more)
    return logits.requires_grad_(), target


def _gives_a_loss(function: Function, *given: Any) -> bool:
    import torch

    def gives() -> bool:
        value = function(*given)
        return isinstance(value, torch.Tensor) and value.is_floating_point()

    return bool(_quietly(gives))


def _quietly(call: Callable[[], Any], raised: list[Exception] | None = None) -> Any:
    """What the call returns, None if it raises; nothing stays changed, and no process that it forks goes on. raised: gets the exception."""
    from xentcheck.implementation.purity import GlobalState

    state = GlobalState()
    try:
        with warnings.catch_warnings(), ForkWatch():
            warnings.simplefilter("ignore")
            return call()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # such as pytest.skip
        if raised is not None and isinstance(error, Exception):
            raised.append(error)
        return None
    finally:
        state.restore()


def _not_a_tensor(value: Any) -> tuple[str, str]:
    """What was returned instead of a tensor, with an article, and what takes the tensor out of it; twice empty for a tensor."""
    import torch

    if isinstance(value, torch.Tensor):
        return "", ""
    if value is None:
        return "None", ""
    kind = type(value).__name__
    found = f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"
    if isinstance(value, (tuple, list, Mapping)):
        inside = value.items() if isinstance(value, Mapping) else enumerate(value)
        tensors = {key: one for key, one in inside if isinstance(one, torch.Tensor)}
        scalars = [key for key, one in tensors.items() if one.dim() == 0]
        return found, next((f"[{key!r}]" for key in [*scalars, *tensors]), "")
    return found, ".loss" if isinstance(getattr(value, "loss", None), torch.Tensor) else ""


def _not_bound(function: Function, name: str, given: tuple[Any, ...], short: str) -> str:
    """Which arguments do not fit a signature, and what to write; empty if all fit, or if there is no signature."""
    import torch

    calls: list[tuple[Function, tuple[Any, ...], str]] = [(function, given, f"{name}({short}, {{}}, **o)")]
    if isinstance(function, ModuleCall):
        forward = function.module_class.forward  # type: ignore[attr-defined]
        calls = [(function.module_class, (), f"{name}({{}}, **o)({short})")]
        calls += [(forward, (None, *given), f"{name}(**o)({short}, {{}})")]
    elif isinstance(function, torch.nn.Module):
        calls = [(function.forward, given, f"{name}({short}, {{}}, **o)")]
    for called, arguments, right in calls:
        try:
            signature = inspect.signature(called)
        except (TypeError, ValueError):  # some built-in functions have none
            continue
        try:
            signature.bind(*arguments)
        except TypeError as error:
            parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
            needed = [
                p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            ]
            missing = needed[len(arguments) :]
            if missing and set(missing) <= _OPTIONS:  # there are cases that set them
                continue
            values = ", ".join(f"{one}=..." for one in missing)
            advice = f"wrap it: lambda {short}, **o: {right.format(values)}"
            shown = signature.replace(parameters=parameters, return_annotation=signature.empty)
            return f"{name}{shown}: {error}; {advice if missing else 'wrap it in a function of (input, target, **options)'}"
    return ""
