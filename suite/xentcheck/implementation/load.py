"""Finds the implementations that ``--impl`` names, and works out what a bare callable claims."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from xentcheck.implementation.declare import Implementation, ImplementationError, ModuleCall, version_of
from xentcheck.implementation.forks import ForkWatch
from xentcheck.spec.capabilities import LINEAR_CAPABILITIES, LOGITS_CAPABILITIES
from xentcheck.spec.patterns import nearest
from xentcheck.spec.resources import implementations_folder

FOLDER = implementations_folder()
# What a signature does not show, and a bare callable is asked all the same: a refusal is no failure, a wrong number is.
_TENTATIVE = frozenset(
    {"k_dim", "unbatched", "uint8_target", "ignore_index_in_range", "autocast", "class_probabilities"}
)
# What a correct loss need not have: asked only where it is declared.
_NEVER_ASSUMED = frozenset({"double_backward", "func_grad", "vmap", "compile", "ignore_index_list"})
# option of the call: the capabilities that a signature with it shows
_SHOWN_BY = {
    "weight": {"weight"},
    "ignore_index": {"ignore_index", "ignore_index_in_range"},
    "reduction": {"reduction_option", "reduction_sum", "reduction_none"},
    "label_smoothing": {"label_smoothing"},
    "normalizer": {"normalizer"},
    "linear_bias": {"linear_bias"},
}

# Whether a bare callable takes a list of ignore values; the second argument: whether it is a fused linear loss.
Probe = Callable[[Callable[..., Any], bool], bool]


def takes_lists(function: Callable[..., Any], is_linear: bool) -> bool:
    """Calls a loss to find out: it takes a list of ignore values if a list of one gives what the plain value gives."""
    import torch

    from xentcheck.implementation.purity import GlobalState

    logits, target = torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 1.0], [1.0, 5.0, 0.0]]), torch.tensor([2, 1, 0])

    def call(ignore_index: int | list[int]) -> Any:
        matrix = [torch.eye(3)] if is_linear else []
        return function(logits.clone(), *matrix, target.clone(), ignore_index=ignore_index)

    state = GlobalState()
    try:
        with torch.no_grad():
            one, several = call(1), call([1])
            return one.numel() == 1 and torch.equal(one, several)  # more would not be a mean, and might be very many
    except KeyboardInterrupt:
        raise
    except BaseException:  # such as pytest.skip
        return False
    finally:
        state.restore()


def from_callable(
    function: Callable[..., Any], name: str, source: str = "", probe: Probe = takes_lists
) -> Implementation:
    """A bare callable as an implementation: it claims the options of its signature and declares no convention.

    Args:
        function: a loss of logits; a fused linear loss, if it has a parameter ``linear_weight``; or an ``nn.Module`` class, called
            as ``cls(**options)(input, target)``. An ``implementation`` attribute that is an Implementation is taken instead.
        name: how reports call it.
        source: what ``--impl`` takes to find it again.
        probe: decides whether it takes a list of ignore values, which no signature shows.

    Raises:
        ImplementationError: a class that is no ``nn.Module``.
    """
    declared = getattr(function, "implementation", None)
    if isinstance(declared, Implementation):
        return replace(declared, name=name, source=source)
    function, signature_of = _as_function(function, source)
    try:
        parameters = inspect.signature(signature_of).parameters
    except (TypeError, ValueError):  # some built-in functions have none
        parameters = {}
    takes_any = not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    is_linear = "linear_weight" in parameters
    claimed = (LINEAR_CAPABILITIES if is_linear else LOGITS_CAPABILITIES) - _NEVER_ASSUMED
    for option, shown in _SHOWN_BY.items():
        if not (takes_any or option in parameters):
            claimed -= shown
    if "ignore_index" in claimed and probe(function, is_linear):
        claimed |= {"ignore_index_list"}
    if is_linear:  # under autocast the product may round the logits, as that of a linear layer does
        claimed -= {"autocast"}
    doc = inspect.getdoc(function) if inspect.isfunction(function) else None
    return Implementation(
        name=name,
        cross_entropy=None if is_linear else function,
        linear_cross_entropy=function if is_linear else None,
        capabilities=claimed,
        tentative=_TENTATIVE & claimed,
        description=(doc or "").split("\n")[0],
        version=version_of(signature_of),
        source=source,
    )


def _as_function(function: Callable[..., Any], source: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What to call with (input, target, **options), and what has the signature."""
    if not inspect.isclass(function):
        module = sys.modules.get("torch")  # without it, nothing can be a module
        return function, function.forward if module and isinstance(function, module.nn.Module) else function
    import torch

    if not issubclass(function, torch.nn.Module):
        raise ImplementationError(
            f"{source}: expected a function, an nn.Module class or an Implementation; found the class {function.__qualname__}"
        )
    # nn.Module's own constructor takes any keyword, only to refuse it.
    has_none = function.__init__ is torch.nn.Module.__init__
    return ModuleCall(function), (lambda self: None) if has_none else function.__init__


def find(
    specification: str,
    folder: Path = FOLDER,
    find_one: Callable[[str], list[Implementation]] | None = None,
    probe: Probe = takes_lists,
) -> list[Implementation]:
    """The implementations that ``--impl`` names, in its order.

    Args:
        specification: names from ``folder``, ``all``, ``package.module:attribute``, ``path/to/file.py:attribute`` and
            ``path/to/file.py:*``, separated by commas.
        folder: where the shipped implementations are.
        find_one: finds those of one part of the specification, for instance in another process.
        probe: as of ``from_callable``.

    Returns:
        Implementations of different names: one that is there already gets a number.

    Raises:
        ImplementationError: nothing is named, or something cannot be found or loaded.
    """
    found: list[Implementation] = []
    for part in (p.strip() for p in specification.split(",")):
        if part:
            with ForkWatch() as forks:
                found += find_one(part) if find_one else _find_one(part, folder, probe)
            if forks.child_came_back:
                raise ImplementationError(f"--impl {part}: loading it forked, and the child process came back as well")
    if not found:
        raise ImplementationError("--impl names no implementation; expected for instance --impl native,maskedce")
    taken: set[str] = set()
    for index, implementation in enumerate(found):
        name = next(n for n in _alternatives(implementation.name) if n not in taken)
        taken.add(name)
        found[index] = replace(implementation, name=name)
    return found


def names(folder: Path = FOLDER) -> list[str]:
    """The implementations that ship with the suite."""
    return sorted(p.stem for p in folder.glob("*.py") if not p.name.startswith("_"))


def _alternatives(name: str) -> Iterable[str]:
    return itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2)))


def _find_one(part: str, folder: Path, probe: Probe) -> list[Implementation]:
    where, colon, attribute = part.rpartition(":")
    if not colon:
        if part == "all":
            return [_from_folder(name, folder) for name in names(folder)]
        if part.endswith(".py") or "/" in part:
            raise ImplementationError(f"--impl {part}: expected {part}:attribute or {part}:*")
        return [_from_folder(part, folder)]
    if where.endswith(".py"):
        path = Path(where).expanduser()
        if not path.is_file():
            raise ImplementationError(f"--impl {part}: there is no file {path}")
        if attribute != "*":
            return [_from_module(load_file(path), attribute, part, probe)]
        # Each function gets an execution of the file of its own, so that none sees what another does to the module.
        functions = [
            n for n, value in vars(load_file(path)).items() if not n.startswith("_") and _is_defined_in(value, path)
        ]
        if not functions:
            raise ImplementationError(f"--impl {part}: {path} defines no public function")
        return [_from_module(load_file(path), name, f"{where}:{name}", probe) for name in functions]
    if os.getcwd() not in sys.path:  # as ``python -m`` has it; the commands ``pytest`` and ``xentcheck`` do not
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(where)
    except Exception as error:
        raise ImplementationError(
            f"--impl {part}: the module {where} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    return [_from_module(module, attribute, part, probe)]


def _from_folder(name: str, folder: Path) -> Implementation:
    path = folder / f"{name}.py"
    if not path.is_file() or name.startswith("_"):
        known = names(folder)
        raise ImplementationError(
            f"--impl {name}: there is no implementation of that name{nearest(name, known)} Known: {', '.join(known)}. "
            "Your own: package.module:attribute or path/to/file.py:attribute"
        )
    module = load_file(path)
    implementation = getattr(module, "implementation", None)
    if not isinstance(implementation, Implementation):
        raise ImplementationError(f"{path}: expected `implementation = Implementation(...)`; found {implementation!r}")
    description = implementation.description or (module.__doc__ or "").strip().split("\n")[0]
    return replace(implementation, source=name, description=description)


def _from_module(module: ModuleType, attribute: str, source: str, probe: Probe) -> Implementation:
    value: Any = module
    for step in attribute.split("."):
        if not hasattr(value, step):
            public = [n for n, v in vars(value).items() if callable(v) and not n.startswith("_")]
            raise ImplementationError(f"--impl {source}: no attribute {step!r}{nearest(step, public)}")
        value = getattr(value, step)
    if isinstance(value, Implementation):
        return replace(value, source=source)
    if not callable(value):
        raise ImplementationError(f"--impl {source}: expected a callable; found {type(value).__name__} {value!r:.80}")
    return from_callable(value, attribute.rpartition(".")[2], source, probe)


_count = itertools.count()


def load_file(path: Path) -> ModuleType:
    """Executes a file as a new module, its folder importable meanwhile. Raises ImplementationError with the failing line."""
    path = path.resolve()
    spec = importlib.util.spec_from_file_location(
        f"xentcheck_loaded_{next(_count)}_{re.sub(r'[^0-9a-zA-Z]', '_', path.stem)}", path
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent))
    before = set(sys.modules)
    try:
        spec.loader.exec_module(module)
    except ImplementationError:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        line = next(
            (f.lineno for f in reversed(inspect.trace()) if f.filename == str(path)), getattr(error, "lineno", "?")
        )
        raise ImplementationError(
            f"{path}:{line}: the file cannot be imported: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(str(path.parent))
        # What the file imports from its own folder belongs to this execution alone. It stays there under a name of its own, as
        # torch.compile looks up the module of each function that it meets by the name.
        for name in [
            n for n in sys.modules.keys() - before if _lies_in(path.parent, sys.modules.get(n.partition(".")[0]))
        ]:
            own = sys.modules.pop(name)
            own.__name__ = f"{spec.name}_{name}"
            sys.modules[own.__name__] = own
    return module


def _lies_in(folder: Path, module: ModuleType | None) -> bool:
    """Whether a top-level module or package is one of a folder, and not of a library that is installed below it."""
    places = [*getattr(module, "__path__", []), getattr(module, "__file__", None) or "/"]
    return any(Path(place).parent == folder for place in places)


def _is_defined_in(value: Any, path: Path) -> bool:
    return (
        inspect.isfunction(value)
        and Path(value.__code__.co_filename) == path.resolve()
        and value.__name__ != "<lambda>"
    )
