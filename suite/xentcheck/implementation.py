"""What can be tested: a callable and what it claims. Finds and loads implementations for ``--impl``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from packaging.specifiers import SpecifierSet

from xentcheck.capabilities import CAPABILITIES, CONVENTIONS
from xentcheck.global_state import GlobalState
from xentcheck.patterns import matches, nearest
from xentcheck.resources import implementations_folder

FOLDER = implementations_folder()
EVERYTHING = frozenset(CAPABILITIES)
# What a signature does not tell. A bare callable is asked; a refusal is then no failure, a wrong number is.
_UNTOLD = frozenset({"k_dim", "unbatched", "uint8_target", "ignore_index_in_range", "autocast", "class_probabilities"})
# What no signature promises and a loss may answer wrongly without being wrong as a loss: asked only where it is claimed.
_EXTRAS = frozenset({"double_backward", "func_grad", "vmap", "compile", "ignore_index_list"})
_OPTIONS = ("weight", "ignore_index", "reduction", "label_smoothing", "normalizer")


class ImplementationError(Exception):
    """An implementation that cannot be found, loaded or used. The text says what to do."""


@dataclass(frozen=True)
class Deviation:
    """Cases that an implementation is known to break.

    cases: one or more patterns of case ids (``*`` and ``?`` are wildcards). aspect: the side that deviates. observed: what it does
    instead, in words. fault: what the judge must find (``value``, ``nan``, ``inf``, ``nonzero``, ``missing``, ``raised``, ``accepted``,
    ``shape``, ``dtype``, ``changed``, ``unstable``). reason: why. link: evidence. torch: the versions it applies to, such as ``<2.14``.
    max_units: the largest error that is known; a larger one is a new failure. certain: False where the outcome hangs on the last
    bits, which differ between CPUs; a pass is then a pass.
    """

    cases: str | tuple[str, ...]
    aspect: str
    observed: str
    fault: str
    link: str
    reason: str = ""
    torch: str = ""
    max_units: float | None = None
    certain: bool = True
    where: str = field(default_factory=lambda: _place_of_call())

    @property
    def patterns(self) -> tuple[str, ...]:
        return (self.cases,) if isinstance(self.cases, str) else self.cases

    def applies_to(self, case_id: str, aspect: str) -> bool:
        return aspect == self.aspect and self.holds_here and any(matches(pattern, case_id) for pattern in self.patterns)

    @property
    def holds_here(self) -> bool:
        return not self.torch or SpecifierSet(self.torch, prereleases=True).contains(torch.__version__.split("+")[0])


@dataclass(frozen=True)
class Implementation:
    """Something that computes cross entropy, in one of three forms, and what it claims.

    cross_entropy(input, target, *, weight, ignore_index, reduction, label_smoothing, normalizer): torch's signature and a denominator of
    the mean that is given from outside; called with only the options that a case sets, on tensors that autograd follows. loss_and_gradient(input, target, upstream, **options) -> (loss,
    gradient): for libraries without torch tensors; takes torch tensors, returns anything that NumPy understands.
    linear_cross_entropy(hidden, linear_weight, target, *, linear_bias, **options): a fused linear loss, as torch's of that name; called
    with the hidden states and matrix of the cases that have them, and with an identity matrix on all others.

    A convention that is None is not stated: any of its answers is taken. ``unavailable`` says why it cannot run here. ``source`` is
    what ``--impl`` takes to name it. ``tentative``: capabilities that it was not asked about; refusing them is no failure.
    """

    name: str
    cross_entropy: Callable[..., Any] | None = None
    loss_and_gradient: Callable[..., Any] | None = None
    linear_cross_entropy: Callable[..., Any] | None = None
    capabilities: frozenset[str] = EVERYTHING
    deviations: tuple[Deviation, ...] = ()
    empty_mean: str | None = None
    infinite_row: str | None = None
    zero_times_infinity: str | None = None
    int32_target: str | None = None
    half_loss_dtype: str | None = None
    description: str = ""
    version: str = ""
    unavailable: str = ""
    tentative: frozenset[str] = frozenset()
    source: str = ""

    def __post_init__(self) -> None:
        forms = [f for f in (self.cross_entropy, self.loss_and_gradient, self.linear_cross_entropy) if f is not None]
        if len(forms) != 1 or not callable(forms[0]):
            raise ImplementationError(
                f"implementation {self.name}: expected one callable as cross_entropy, loss_and_gradient or linear_cross_entropy; found {len(forms)}"
            )
        for name in sorted((self.capabilities | self.tentative) - CAPABILITIES.keys()):
            raise ImplementationError(
                f"implementation {self.name}: unknown capability {name!r}{nearest(name, CAPABILITIES)}"
            )
        for name, (question, answers) in CONVENTIONS.items():
            if getattr(self, name) not in (None, *answers):
                raise ImplementationError(
                    f"implementation {self.name}: {name} ({question}): expected one of {', '.join(answers)}; found {getattr(self, name)!r}"
                )
        if not self.version:
            object.__setattr__(self, "version", _version_of(forms[0]))
        object.__setattr__(self, "capabilities", frozenset(self.capabilities))
        if self.linear_cross_entropy is None:
            object.__setattr__(self, "capabilities", self.capabilities - {"linear", "linear_bias"})
        else:
            object.__setattr__(
                self, "capabilities", self.capabilities - {"non_finite", "many_classes", "k_dim", "unbatched"}
            )
        if self.loss_and_gradient is not None:
            modes = {"double_backward", "compile", "autocast", "func_grad", "vmap"}
            object.__setattr__(self, "capabilities", self.capabilities - modes)

    @property
    def conventions(self) -> dict[str, str]:
        """The conventions that are stated."""
        return {name: getattr(self, name) for name in CONVENTIONS if getattr(self, name) is not None}

    def deviation_for(self, case_id: str, aspect: str) -> Deviation | None:
        return next((d for d in self.deviations if d.applies_to(case_id, aspect)), None)

    def stale_deviations(self, case_ids: Iterable[str]) -> list[Deviation]:
        """Known deviations with a pattern that no case matches."""
        ids = list(case_ids)
        return [d for d in self.deviations if not all(any(matches(p, i) for i in ids) for p in d.patterns)]


def with_matrix(fused: Callable[..., Any] | None) -> Callable[..., Any]:
    """A fused linear loss as a function of hidden states and targets, with the matrix among the options."""
    assert fused is not None
    return lambda input, target, *, linear_weight, **options: fused(input, linear_weight, target, **options)


def from_callable(function: Callable[..., Any], name: str, source: str = "") -> Implementation:
    """What a bare callable claims: the options that its signature has, and no convention.

    An ``nn.Module`` class is taken as ``cls(**options)(input, target)``. A parameter ``linear_weight`` makes a fused linear loss. An
    ``implementation`` attribute says more.
    """
    stated = getattr(function, "implementation", None)
    if isinstance(stated, Implementation):
        return replace(stated, name=name, source=source)
    signature_of: Any = function
    if inspect.isclass(function):
        if not issubclass(function, torch.nn.Module):
            raise ImplementationError(
                f"{source}: expected a function, an nn.Module class or an Implementation; found the class {function.__qualname__}"
            )
        module_class = function
        # nn.Module's own constructor takes any keyword, only to refuse it.
        signature_of = (
            (lambda self: None) if module_class.__init__ is torch.nn.Module.__init__ else module_class.__init__
        )
        function = lambda input, target, **options: module_class(**options)(input, target)  # noqa: E731
    elif isinstance(function, torch.nn.Module):
        signature_of = function.forward
    try:
        parameters = inspect.signature(signature_of).parameters
    except (TypeError, ValueError):  # some built-in functions have none
        parameters = {}
    takes_any = not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    options = {o for o in _OPTIONS if takes_any or o in parameters}
    told = (
        EVERYTHING
        - _EXTRAS
        - {"weight", "label_smoothing", "ignore_index", "ignore_index_in_range", "normalizer"}
        - {"reduction_option", "reduction_sum", "reduction_none"}
    )
    claimed = told | (options - {"reduction"})
    claimed |= {"reduction_option", "reduction_sum", "reduction_none"} if "reduction" in options else set()
    is_linear = "linear_weight" in parameters
    if "ignore_index" in options:
        claimed |= {"ignore_index_in_range"}
        claimed |= {"ignore_index_list"} if _takes_lists(function, is_linear) else set()
    if not (takes_any or "linear_bias" in parameters):
        claimed -= {"linear_bias"}
    if is_linear:  # under autocast the product may round the logits, as that of a linear layer does
        claimed -= {"autocast"}
    doc = inspect.getdoc(function) if inspect.isfunction(function) else None
    return Implementation(
        name=name,
        cross_entropy=None if is_linear else function,
        linear_cross_entropy=function if is_linear else None,
        capabilities=frozenset(claimed),
        tentative=_UNTOLD & claimed,
        description=(doc or "").split("\n")[0],
        version=_version_of(signature_of),
        source=source,
    )


def find(
    specification: str, folder: Path = FOLDER, find_one: Callable[[str], list[Implementation]] | None = None
) -> list[Implementation]:
    """The implementations that ``--impl`` names, in its order: names from ``implementations/``, ``all``, ``package.module:attribute``,
    ``path/to/file.py:attribute`` and ``path/to/file.py:*``, separated by commas. find_one: what finds those of one of them elsewhere."""
    found: list[Implementation] = []
    for part in (p.strip() for p in specification.split(",")):
        if part:
            found += find_one(part) if find_one else _find_one(part, folder)
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


def _find_one(part: str, folder: Path) -> list[Implementation]:
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
            return [_from_module(load_file(path), attribute, part)]
        # Each function gets an execution of the file of its own, so that none sees what another does to the module.
        functions = [
            n for n, value in vars(load_file(path)).items() if not n.startswith("_") and _is_defined_in(value, path)
        ]
        if not functions:
            raise ImplementationError(f"--impl {part}: {path} defines no public function")
        return [_from_module(load_file(path), name, f"{where}:{name}") for name in functions]
    try:
        module = importlib.import_module(where)
    except Exception as error:
        raise ImplementationError(
            f"--impl {part}: the module {where} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    return [_from_module(module, attribute, part)]


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


def _from_module(module: ModuleType, attribute: str, source: str) -> Implementation:
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
    return from_callable(value, attribute.rpartition(".")[2], source)


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


def _takes_lists(function: Callable[..., Any], is_linear: bool) -> bool:
    """A bare callable offers several ignore values if a list of one gives what the plain value gives."""
    logits, target = torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 1.0], [1.0, 5.0, 0.0]]), torch.tensor([2, 1, 0])

    def call(ignore_index: int | list[int]) -> Any:
        matrix = [torch.eye(3)] if is_linear else []
        return function(logits.clone(), *matrix, target.clone(), ignore_index=ignore_index)

    state = GlobalState()
    try:
        with torch.no_grad():
            one, several = call(1), call([1])
            return bool(torch.equal(one, several))
    except KeyboardInterrupt:
        raise
    except BaseException:  # such as pytest.skip
        return False
    finally:
        state.restore()


def _version_of(function: Any) -> str:
    package = (getattr(function, "__module__", None) or "").partition(".")[0]
    if package == "torch":
        return torch.__version__
    try:
        return metadata.version(package) if package else ""
    except (metadata.PackageNotFoundError, ValueError):
        return ""


def _place_of_call() -> str:
    """``file:first-last`` of the ``Deviation(...)`` being built, for messages that say which lines to delete."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (
        frame.f_code.co_filename in (__file__, "<string>") or frame.f_code.co_name == "<lambda>"
    ):
        frame = frame.f_back
    first = last = frame.f_lineno
    if hasattr(frame.f_code, "co_positions"):  # Python 3.11 and later
        start, end, *_ = next(itertools.islice(frame.f_code.co_positions(), frame.f_lasti // 2, None))
        first, last = start or first, end or last
    name = Path(frame.f_code.co_filename)
    return f"{name.parent.name}/{name.name}:{first}" + (f"-{last}" if last != first else "")
