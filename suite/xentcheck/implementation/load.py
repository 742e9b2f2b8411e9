"""Finds the implementations that ``--impl`` names, and decides what a bare callable claims."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import itertools
import os
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from xentcheck.implementation.declare import BrokenError, Implementation, ImplementationError, ModuleCall, version_of
from xentcheck.implementation.execute import load_file, text_of
from xentcheck.implementation.forks import ForkWatch
from xentcheck.implementation.trial import takes_classes_last, takes_lists, wrong_call
from xentcheck.spec.capabilities import LINEAR_CAPABILITIES, LOGITS_CAPABILITIES
from xentcheck.spec.mistakes import one_line
from xentcheck.spec.patterns import nearest
from xentcheck.spec.resources import implementations_folder

FOLDER = implementations_folder()
WORDS = ("all", "field")  # for the shipped implementations, and for those of other libraries
# Capabilities that no signature shows. A bare callable is tested for them all the same: it may refuse, but not be wrong.
_TENTATIVE = frozenset(
    {"k_dim", "unbatched", "uint8_target", "ignore_index_in_range", "autocast", "class_probabilities"}
)
# Capabilities that a correct loss may lack: tested only where they are declared.
_NEVER_ASSUMED = frozenset({"double_backward", "func_grad", "vmap", "compile", "ignore_index_list"})
# Option of the call: the capabilities that a signature with this option shows.
_SHOWN_BY = {
    "weight": {"weight"},
    "ignore_index": {"ignore_index", "ignore_index_in_range"},
    "reduction": {"reduction_option", "reduction_sum", "reduction_none"},
    "label_smoothing": {"label_smoothing"},
    "normalizer": {"normalizer"},
    "linear_bias": {"linear_bias"},
}

# Answers a question that calls an implementation; None where that cannot be asked.
Ask = Callable[[Callable[[], Any]], Any]


def asked_here(question: Callable[[], Any]) -> Any:
    """Asks in this process."""
    return question()


def from_callable(function: Callable[..., Any], name: str, source: str = "", ask: Ask = asked_here) -> Implementation:
    """A bare callable as an implementation: it claims the options of its signature and declares no convention.

    Args:
        function: a loss of logits; a fused linear loss, if it has a parameter ``linear_weight``; or an ``nn.Module`` class, called
            as ``cls(**options)(input, target)``. If its attribute ``implementation`` is an Implementation, that is used instead.
        name: how reports call it.
        source: what ``--impl`` takes to find it again.
        ask: asks whether it takes a list of ignore values, which no signature shows.

    Raises:
        ImplementationError: ``function`` is a class but not an ``nn.Module``.
    """
    declared = getattr(function, "implementation", None)
    if isinstance(declared, Implementation):
        return replace(declared, name=name, source=source)
    function, signature_of = _as_function(function, source)
    try:
        parameters = dict(inspect.signature(signature_of).parameters)
    except (TypeError, ValueError):  # some built-in functions have none
        parameters = {}
    takes_any = not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    is_linear = "linear_weight" in parameters
    claimed = (LINEAR_CAPABILITIES if is_linear else LOGITS_CAPABILITIES) - _NEVER_ASSUMED
    for option, shown in _SHOWN_BY.items():
        if not (takes_any or option in parameters):
            claimed -= shown
    if "ignore_index" in claimed and ask(lambda: takes_lists(function, is_linear)):
        claimed |= {"ignore_index_list"}
    if is_linear:  # under autocast the product may round the logits, as that of a linear layer does
        claimed -= {"autocast"}
    unclear = _TENTATIVE | (set() if "ignore_index" in claimed else {"ignore_minus_100"})
    doc = inspect.getdoc(function) if inspect.isfunction(function) else None
    return Implementation(
        name=name,
        cross_entropy=None if is_linear else function,
        linear_cross_entropy=function if is_linear else None,
        capabilities=claimed,
        tentative=unclear & claimed,
        built_on="torch",
        description=one_line((doc or "").split("\n")[0], 300)[:300],
        version=version_of(signature_of),
        source=source,
    )


def _as_function(function: Callable[..., Any], source: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What to call with (input, target, **options), and the callable whose signature shows its options."""
    if not inspect.isclass(function):
        torch_loaded = sys.modules.get("torch")  # a loss that does without torch has no module
        return function, function.forward if torch_loaded and isinstance(function, torch_loaded.nn.Module) else function
    import torch

    if not issubclass(function, torch.nn.Module):
        raise ImplementationError(
            f"{source}: expected a function, an nn.Module class or an Implementation; found the class {function.__qualname__}"
        )
    # nn.Module's own constructor accepts any keyword in its signature and then raises.
    has_none = function.__init__ is torch.nn.Module.__init__
    return ModuleCall(function), (lambda self: None) if has_none else function.__init__


def find(
    specification: str,
    folder: Path = FOLDER,
    find_one: Callable[[str], list[Implementation]] | None = None,
    ask: Ask = asked_here,
) -> list[Implementation]:
    """The implementations that ``--impl`` names, in its order.

    Args:
        specification: names from ``folder``; ``all`` of them that need no other library, or ``field`` for those of other libraries; ``package.module:attribute``, ``path/to/file.py:attribute`` and
            ``path/to/file.py:*``, separated by commas.
        folder: where the shipped implementations are.
        find_one: finds the implementations of one part of the specification, for instance in another process.
        ask: asks what only calls can tell; another one is for workers, which may die of it.

    Returns:
        The implementations. Where two have the same name, the later one gets a number. One that cannot be loaded is there with the
        reason as ``broken``, if another one can be.

    Raises:
        ImplementationError: nothing is named, something cannot be found, or nothing can be loaded.
    """
    found: list[Implementation] = []
    files: dict[Path, ModuleType] = {}
    for part in _parts(specification, folder):
        try:
            with ForkWatch() as forks:
                of_part = find_one(part) if find_one else _find_one(part, folder, ask, files)
            if forks.child_came_back:
                raise BrokenError(f"--impl {part}: loading it forked, and the child process came back as well")
            found += of_part
        except BrokenError as error:
            found.append(_broken(part, str(error)))
    if not found:
        raise ImplementationError("--impl names no implementation; expected for instance --impl native,maskedce")
    if all(implementation.broken for implementation in found):
        raise BrokenError("\n".join(dict.fromkeys(implementation.broken for implementation in found)))
    named: dict[str, Implementation] = {}
    for implementation in found:
        numbered = (f"{implementation.name}-{i}" for i in itertools.count(2))
        name = next(n for n in itertools.chain([implementation.name], numbered) if n not in named)
        named[name] = replace(implementation, name=name)
    return list(named.values())


def _parts(specification: str, folder: Path) -> list[str]:
    parts = [part.strip() for part in specification.split(",")]
    return [one for part in parts if part for one in (_of_word(part, folder) if part in WORDS else [part])]


def _of_word(word: str, folder: Path) -> list[str]:
    """What ``all`` or ``field`` stands for. A file that cannot be read belongs to ``all``, which then says why."""
    found = []
    for stem in names(folder):
        try:
            declared = declared_in(folder / f"{stem}.py")
        except ImplementationError:
            found += [stem] if word == "all" else []
            continue
        chosen = [one for one in declared if is_of_another_library(one) is (word == "field")]
        found += [stem] if chosen == declared else [one.name for one in chosen]
    return found


def is_of_another_library(implementation: Implementation) -> bool:
    """Whether an adapter declares it, as a file shows it that was executed in this process."""
    from xentcheck.implementation.call import Call  # here, because it needs NumPy

    return implementation.environment is not None or isinstance(implementation.function, Call)


def _broken(part: str, reason: str) -> Implementation:
    where, _, attribute = part.rpartition(":")
    name = re.sub(r"[^\w.-]", "_", Path(where).stem if attribute == "*" else attribute)[:100]

    def function(*arguments: Any, **options: Any) -> Any:
        raise BrokenError(reason)

    function.__module__ = ""  # of no package, so that no version is taken from it
    return Implementation(name=name or "broken", cross_entropy=function, broken=reason, source=part)


def names(folder: Path = FOLDER) -> list[str]:
    """The implementations that ship with the suite."""
    return sorted(p.stem for p in folder.glob("*.py") if not p.name.startswith("_"))


def _find_one(part: str, folder: Path, ask: Ask, files: dict[Path, ModuleType]) -> list[Implementation]:
    """files: what was executed already, by path."""
    where, colon, attribute = part.rpartition(":")
    if not colon:
        if part.endswith(".py") or "/" in part:
            raise ImplementationError(f"--impl {part}: expected {part}:attribute or {part}:*")
        return _from_folder(part, folder)
    if where.endswith(".py"):
        path = Path(where).expanduser()
        if not path.is_file():
            raise ImplementationError(f"--impl {part}: there is no file {path}")
        path = path.resolve()
        if attribute == "*":
            return _all_of_file(part, path, where, ask)
        if path not in files:
            files[path] = load_file(path, importable=True)
        return _named_in(files[path], attribute, part, where) or [_from_module(files[path], attribute, part, ask)]
    if os.getcwd() not in sys.path:  # ``python -m`` adds it; the commands ``pytest`` and ``xentcheck`` do not
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(where)
    except Exception as error:
        raise BrokenError(
            f"--impl {part}: the module {where} cannot be imported: {type(error).__name__}: {text_of(error)}"
        ) from error
    return [_from_module(module, attribute, part, ask)]


def _all_of_file(part: str, path: Path, where: str, ask: Ask) -> list[Implementation]:
    """Every public function. The file is executed once for each, so that none sees what another does to the module."""
    module = load_file(path, importable=True)
    functions = [name for name, value in vars(module).items() if _is_public_function_of(path, name, value)]
    if not functions:
        raise ImplementationError(f"--impl {part}: {path} defines no public function")
    found = []
    for name in functions:
        source = f"{where}:{name}"
        try:
            found.append(_from_module(module if name == functions[0] else load_file(path), name, source, ask))
        except BrokenError as error:
            found.append(_broken(source, str(error)))
    return found


def _from_folder(name: str, folder: Path) -> list[Implementation]:
    """One by its name, or all of a file by the file's. The names of several in one file begin with the file's."""
    stems = [] if name.startswith("_") else [stem for stem in names(folder) if f"{name}_".startswith(f"{stem}_")]
    known = names(folder)
    for stem in sorted(stems, key=len, reverse=True):
        path = folder / f"{stem}.py"
        declared = declared_in(path)
        if stem == name:
            return [replace(one, source=one.name if len(declared) > 1 else name) for one in declared]
        if found := [one for one in declared if one.name == name]:
            return [replace(found[0], source=name)]
        known += [one.name for one in declared]
    raise ImplementationError(
        f"--impl {name}: there is no implementation of that name{nearest(name, known)} Known: {', '.join(names(folder))}. "
        "Your own: package.module:attribute or path/to/file.py:attribute"
    )


def declared_in(path: Path) -> list[Implementation]:
    """What a file declares. Raises BrokenError where it cannot be executed, ImplementationError where it declares something else."""
    return _declared(load_file(path), path)


def _declared(module: ModuleType, path: Path) -> list[Implementation]:
    """What a file declares: ``implementation``, or several as ``implementations``. One of the latter has a name that begins with the file's."""
    several = getattr(module, "implementations", None)
    found = [getattr(module, "implementation", None)] if several is None else [*several]
    for one in found:
        if not isinstance(one, Implementation):
            expected = "`implementation = Implementation(...)`, or several as `implementations = (...)`"
            raise ImplementationError(f"{path}: expected {expected}; found {one!r:.80}")
        if several is not None and not one.name.startswith(
            f"{path.stem}_"
        ):  # the file's own name stands for all of them
            raise ImplementationError(
                f"{path}: implementations: expected names that begin with {path.stem}_, by which --impl finds the file; found {one.name}"
            )
    doc = one_line((module.__doc__ or "").strip().split("\n")[0], 300)[:300]
    return [replace(one, description=one.description or doc) for one in found if isinstance(one, Implementation)]


def _named_in(module: ModuleType, attribute: str, source: str, where: str) -> list[Implementation]:
    """Of a file with several implementations, the one of a name; all by the names ``implementation`` and ``implementations``."""
    if (hasattr(module, attribute) and attribute != "implementations") or not hasattr(module, "implementations"):
        return []
    declared = _declared(module, Path(where))
    found = [one for one in declared if attribute in (one.name, "implementation", "implementations")]
    if not found:
        raise ImplementationError(
            f"--impl {source}: no implementation {attribute!r}{nearest(attribute, [d.name for d in declared])}"
        )
    return [replace(one, source=f"{where}:{one.name}") for one in found]


def _from_module(module: ModuleType, attribute: str, source: str, ask: Ask) -> Implementation:
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
    name = attribute.rpartition(".")[2]
    found = from_callable(value, name, source, ask)
    if isinstance(getattr(value, "implementation", None), Implementation):
        return found
    if wrong := ask(lambda: wrong_call(found.function, name, found.form == "linear_cross_entropy")):
        raise BrokenError(f"--impl {source}: {wrong}")
    if "k_dim" in found.capabilities and ask(lambda: takes_classes_last(found.function)):
        advice = f"to have it asked, wrap it: lambda x, t, **o: {name}(x.movedim(1, -1), t, **o)"
        text = f"--impl {source}: takes the classes in the last dimension, so k_dim, classes in dimension 1, is not asked; {advice}"
        warnings.warn(text, stacklevel=2)
        return replace(found, capabilities=found.capabilities - {"k_dim"}, tentative=found.tentative - {"k_dim"})
    return found


def _is_public_function_of(path: Path, name: str, value: Any) -> bool:
    if name.startswith("_") or not inspect.isfunction(value) or value.__name__ == "<lambda>":
        return False
    return Path(value.__code__.co_filename) == path.resolve()
