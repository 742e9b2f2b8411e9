"""What an implementation declares: its function, its capabilities, its conventions and its known deviations."""

from __future__ import annotations

import itertools
import re
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from xentcheck.implementation.environments import Environment
from xentcheck.spec.aspects import ASPECTS, RELATIONS
from xentcheck.spec.capabilities import CAPABILITIES, COMPUTES_IN, CONVENTIONS, FAULT_KINDS, FORMS
from xentcheck.spec.mistakes import UsageError, kind, one_line
from xentcheck.spec.patterns import matches, nearest

REFUSALS = ("raise", "nan", "nothing")
MOST_UNCERTAIN = 40  # cases of one deviation that may fail or pass; the shipped implementations need up to 27


class ImplementationError(UsageError):
    """An implementation that cannot be found, loaded or used. The text says what to do."""


class BrokenError(ImplementationError):
    """An implementation that was found but cannot be imported or called. Others of the same run go on without it."""


@dataclass(frozen=True)
class Deviation:
    """Cases that an implementation is known to fail, and how.

    A case that fails as described has the status ``deviates`` instead of ``fail`` or ``error``. One that fails in another way is
    still a failure. One that passes is an ``unexpected-pass``, so a deviation that was fixed cannot stay declared::

        Deviation(
            "ignored-nonfinite/*",
            aspect="gradient",
            fault="nan",
            observed="NaN gradients in ignored rows that hold an infinity",
            reason="0 * NaN in the backward pass of log_softmax",
            link="https://github.com/pytorch/pytorch/issues/11551",
        )

    Args:
        cases: one or more patterns of case ids. ``*`` and ``?`` are wildcards; the name of a clause, or of a case with several
            variants, selects all of it.
        aspect: which aspect of the cases fails: ``loss``, ``gradient``, ``shape``, ``rejection``, ``purity`` or a relation such as
            ``poisoning``.
        observed: what the implementation does instead, in words.
        fault: the kind of fault that is expected, one of ``spec.capabilities.FAULT_KINDS``, such as ``value``, ``nan`` or ``raised``.
        link: where it is reported or can be seen.
        reason: why it happens, or how to reproduce it. Without a link, this is needed.
        torch: the versions of torch that have it, such as ``<2.14``; all of them if left out.
        max_units: the largest error seen, in error units; a larger one is a failure. None: any size.
        certain: False if it depends on the last bits, which differ between CPUs; a pass is then accepted as well.

    Raises:
        ImplementationError: ``aspect`` or ``fault`` is unknown; there is neither link nor reason; a text is empty, too long or has control
            characters; or it covers every case, which only purity and relations may.
    """

    cases: str | tuple[str, ...]
    aspect: str
    observed: str
    fault: str
    link: str = ""
    reason: str = ""
    torch: str = ""
    max_units: float | None = None
    certain: bool = True
    where: str = field(default_factory=lambda: _place_of_call())

    def __post_init__(self) -> None:
        for name, known in (("aspect", ASPECTS), ("fault", FAULT_KINDS)):
            value = getattr(self, name)
            if value not in known:
                expected = f"{name}: expected one of {', '.join(known)}"
                raise self._error(f"{expected}; found {value!r:.80}{nearest(str(value).lower()[:80], known, 1)}")
        for name, at_most in (("observed", 1000), ("reason", 2000), ("link", 1000), ("torch", 100)):
            if wrong := _wrong_text(getattr(self, name), at_most, is_needed=name == "observed"):
                raise self._error(f"{name}: {wrong}")
        if not (self.link.strip() or self.reason.strip()):
            raise self._error(
                "expected a link to where it is reported, or a reason that says how to reproduce it; found neither"
            )
        if re.match(r"(?!https?:)[a-z][a-z0-9+.-]*:", self.link, re.IGNORECASE):
            raise self._error(f"link: expected one that begins with https:// or http://; found {self.link!r:.80}")
        for pattern in self.patterns:
            if wrong := _wrong_text(pattern, 300):
                raise self._error(f"cases: {wrong}")
            if pattern and not pattern.strip("*?/") and not self._may_be_everywhere:
                raise self._error(
                    f"cases: expected the cases whose {self.aspect} fails, by their ids or clauses; found {pattern!r}, which is every case; "
                    "only purity and relations between batches may fail everywhere"
                )

    def _error(self, text: str) -> ImplementationError:
        return ImplementationError(f"{self.where}: Deviation({self.cases!r:.80}): {text}")

    @property
    def _may_be_everywhere(self) -> bool:
        return self.aspect == "purity" or self.aspect in RELATIONS

    def check_extent(self, case_ids: Collection[str]) -> None:
        """Compares what it covers with the specification.

        Args:
            case_ids: the ids of all cases of the specification.

        Raises:
            ImplementationError: it covers more cases than an uncertain one may, or more than half of all; purity and relations aside.
        """
        if self._may_be_everywhere:
            return
        covered = sum(any(matches(pattern, case_id) for pattern in self.patterns) for case_id in case_ids)
        if not self.certain and covered > MOST_UNCERTAIN:
            raise self._error(
                f"expected at most {MOST_UNCERTAIN} cases with certain=False, which excuses a failure and accepts a pass; "
                f"found {covered}; name the cases that depend on the last bits, and leave certain out for the others"
            )
        if covered > max(MOST_UNCERTAIN, len(case_ids) // 2):
            raise self._error(
                f"expected at most half of the {len(case_ids)} cases; found {covered}; name the cases that fail, "
                "or take a capability back that is not offered"
            )

    @property
    def patterns(self) -> tuple[str, ...]:
        return (self.cases,) if isinstance(self.cases, str) else self.cases

    def applies_to(self, case_id: str, aspect: str) -> bool:
        return aspect == self.aspect and self.holds_here and any(matches(pattern, case_id) for pattern in self.patterns)

    @property
    def holds_here(self) -> bool:
        """Whether the installed torch is one of the versions that have it."""
        if not self.torch:
            return True
        from packaging.specifiers import SpecifierSet  # here, because a declaration can be read without it

        return SpecifierSet(self.torch, prereleases=True).contains(_torch_version().split("+")[0])


@dataclass(frozen=True)
class Implementation:
    """A function that computes cross entropy, and what it claims.

    The function has one of three forms; give exactly one:

    - ``cross_entropy(input, target, *, weight, ignore_index, reduction, label_smoothing, normalizer)``: the signature of
      ``torch.nn.functional.cross_entropy``, and a ``normalizer`` that the mean divides by. Autograd differentiates it.
    - ``linear_cross_entropy(hidden, linear_weight, target, *, linear_bias, **options)``: a fused linear loss: ``hidden`` of shape
      (N, H), ``linear_weight`` of shape (C, H). Cases that have logits only are run with an identity matrix.
    - ``loss_and_gradient(input, target, upstream, **options) -> (loss, gradient)``: for libraries without torch tensors. It gets
      torch tensors and returns anything that NumPy can read.

    Options are passed only where a case sets them, so the function needs its own defaults. An example::

        implementation = Implementation(
            name="my_loss",
            cross_entropy=my_loss,
            capabilities=LOGITS_CAPABILITIES - {"label_smoothing", "vmap"},
            empty_mean="nan",
        )

    Args:
        name: how reports call it.
        capabilities: what it offers, a subset of ``spec.capabilities.CAPABILITIES``; if left out, all that its form can offer. A case
            that needs more is ``unsupported``. Subtract from ``LOGITS_CAPABILITIES``, ``LINEAR_CAPABILITIES`` or ``ARRAY_CAPABILITIES``.
        deviations: cases that it is known to fail.
        empty_mean: the mean over no position, ``"nan"`` or ``"zero"``. This and the next six are conventions, questions with
            several defensible answers. One that is None is not stated, and each of its answers passes.
        infinite_row: the loss of a valid row that holds +inf, ``"nan"``, ``"inf"`` or ``"limit"`` (0 at the target).
        zero_times_infinity: an infinite term under a weight of zero, ``"nan"`` or ``"zero"``.
        int32_target: targets of dtype int32, ``"taken"`` or ``"refused"``.
        half_loss_dtype: the dtype of the loss of bfloat16 or float16 logits, ``"input"`` or ``"float32"``.
        sums: how well it adds up more than 36 terms, ``"careful"`` (as well as fewer) or ``"plain"`` (as a running sum).
            This and the next are grades of accuracy: an answer must reach the one that is stated, the lower one if none is.
        half_rounding: ``"once"`` if a bfloat16 or float16 answer is rounded at the end only, ``"native"`` if sums and logarithms before it
            are, too, as in torch's own loss on a CPU.
        computes_in: a precision that is lower than that of its input, ``"float32"`` for one that takes float64 logits and computes in
            float32; ``"tf32"`` or ``"bfloat16"`` for a fused linear loss whose products, too, round their operands to that. It is held to
            what rounding in that precision causes.
        gradient_threshold: probabilities below it may be missing from the gradient, which is then an approximation.
        description: one line for reports; the first line of the docstring of a shipped file, if left out.
        version: the version of its package, which is looked up if left out.
        unavailable: why it cannot run here; all its cases are then ``unavailable``.
        built_on: ``"torch"`` for what hands the work to torch's own loss. Where it fails exactly as ``native`` is known to, it deviates
            as ``native`` does; a bare callable is taken to be built on torch.
        refuses: what it does with bad values where others raise an error: ``"raise"``, ``"nan"``, or ``"nothing"`` where it gives some
            number. A loss that cannot raise, such as a compiled one of JAX, is not asked to, but held to what is stated here.
        adapter_does: what an adapter does in its library's place: ``"mask"``, ``"divide"``, ``"remap"``, or other words.
        classes_divisible_by: a case whose number of classes is no multiple of it is ``unsupported``.
        environment: where its library is installed. It is then called in a process of that environment only.
        slow: whether all cases take too long. ``xentcheck field`` then asks it ``--cases telling``.
        broken: why it could not be loaded; all its cases are then ``error``. Set by the loader.
        tentative: capabilities that nobody declared but that a bare callable may have. Refusing a case that needs one is
            ``unsupported`` and not an error; a wrong answer is still a failure.
        source: what ``--impl`` takes to find it again; set by the loader.

    Raises:
        ImplementationError: the declaration contradicts itself, for instance a loss of logits that claims ``linear``, or it names
            an unknown capability or convention, or a name, version or description that is empty, too long or has control characters.
    """

    name: str
    cross_entropy: Callable[..., Any] | None = None
    loss_and_gradient: Callable[..., Any] | None = None
    linear_cross_entropy: Callable[..., Any] | None = None
    capabilities: frozenset[str] = None  # type: ignore[assignment]  # never None once the instance exists
    deviations: tuple[Deviation, ...] = ()
    empty_mean: str | None = None
    infinite_row: str | None = None
    zero_times_infinity: str | None = None
    int32_target: str | None = None
    half_loss_dtype: str | None = None
    sums: str | None = None
    half_rounding: str | None = None
    computes_in: str = ""
    gradient_threshold: float = 0.0
    description: str = ""
    version: str = ""
    unavailable: str = ""
    built_on: str = ""
    refuses: str = "raise"
    adapter_does: frozenset[str] = frozenset()
    classes_divisible_by: int = 1
    environment: Environment | None = None
    slow: bool = False
    broken: str = ""
    tentative: frozenset[str] = frozenset()
    source: str = ""

    def __post_init__(self) -> None:
        for name, at_most in (("name", 100), ("version", 100), ("description", 1000)):
            if wrong := _wrong_text(getattr(self, name), at_most, is_needed=name == "name"):
                raise ImplementationError(f"Implementation(name={self.name!r:.80}): {name}: {wrong}")
        object.__setattr__(self, "unavailable", one_line(self.unavailable, 1000))
        given = [form for form in FORMS if getattr(self, form) is not None]
        if len(given) != 1 or not callable(getattr(self, given[0])):
            raise self._error(
                f"expected one callable as cross_entropy, loss_and_gradient or linear_cross_entropy; found {len(given)}"
            )
        if self.capabilities is None:
            object.__setattr__(self, "capabilities", FORMS[self.form])
        for name in ("capabilities", "tentative", "adapter_does"):
            object.__setattr__(self, name, frozenset(getattr(self, name)))
        if "ignore_index" in self.capabilities:
            object.__setattr__(self, "capabilities", self.capabilities | {"ignore_minus_100"})
        self._check_capabilities()
        for name, (question, answers) in CONVENTIONS.items():
            if getattr(self, name) not in (None, *answers):
                raise self._error(
                    f"{name} ({question}): expected one of {', '.join(answers)}; found {getattr(self, name)!r}"
                )
        if self.computes_in not in ("", *COMPUTES_IN):
            raise self._error(f"computes_in: expected one of {', '.join(COMPUTES_IN)}; found {self.computes_in!r}")
        if not isinstance(self.gradient_threshold, float) or not 0 <= self.gradient_threshold <= 0.01:
            raise self._error(
                f"gradient_threshold: expected a number from 0 to 0.01; found {self.gradient_threshold!r}"
            )
        if self.refuses not in REFUSALS:
            raise self._error(f"refuses: expected one of {', '.join(REFUSALS)}; found {self.refuses!r:.80}")
        if self.built_on not in ("", "torch"):
            raise self._error(f"built_on: expected 'torch', or nothing; found {self.built_on!r}")
        if not self.version:
            object.__setattr__(self, "version", version_of(self.function))

    def _check_capabilities(self) -> None:
        for name in sorted((self.capabilities | self.tentative) - CAPABILITIES.keys()):
            raise self._error(f"unknown capability {name!r}{nearest(name, CAPABILITIES)}")
        if impossible := sorted(self.capabilities - FORMS[self.form]):
            raise self._error(
                f"claims {', '.join(impossible)}, which the form {self.form} cannot offer; "
                "leave capabilities out to claim all that it can"
            )
        if unclaimed := sorted(self.tentative - self.capabilities):
            raise self._error(f"tentative: expected some of its capabilities; found {', '.join(unclaimed)}")

    def _error(self, text: str) -> ImplementationError:
        return ImplementationError(f"implementation {self.name}: {text}")

    @property
    def form(self) -> str:
        """``cross_entropy``, ``loss_and_gradient`` or ``linear_cross_entropy``."""
        return next(form for form in FORMS if getattr(self, form) is not None)

    @property
    def function(self) -> Callable[..., Any]:
        """The function, whichever form it has."""
        return getattr(self, self.form)

    @property
    def conventions(self) -> dict[str, str]:
        """The conventions that it states, with its answers."""
        return {name: getattr(self, name) for name in CONVENTIONS if getattr(self, name) is not None}

    @property
    def precision(self) -> dict[str, str]:
        """What it states about its precision, beside its grades of accuracy; empty if it states none."""
        stated = {"computes_in": self.computes_in, "gradient_threshold": str(self.gradient_threshold or "")}
        return {name: value for name, value in stated.items() if value}

    def deviation_for(self, case_id: str, aspect: str) -> Deviation | None:
        """The first known deviation of this aspect of a case."""
        return next((d for d in self.deviations if d.applies_to(case_id, aspect)), None)

    def stale_deviations(self, case_ids: Iterable[str]) -> list[Deviation]:
        """Known deviations that have a pattern which matches no case."""
        ids = list(case_ids)
        return [d for d in self.deviations if not all(any(matches(p, i) for i in ids) for p in d.patterns)]


def _wrong_text(value: Any, at_most: int, is_needed: bool = False) -> str:
    """What is wrong with a text that tables and terminals show; empty if nothing is."""
    if not isinstance(value, str):
        return f"expected text; found {kind(value)}"
    if is_needed and not value.strip():
        return f"expected 1 to {at_most} characters; found {value!r:.80}"
    if len(value) > at_most:
        return f"expected at most {at_most} characters; found {len(value)}"
    # control and format characters, lone surrogates, and separators of lines
    if any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in value):
        return f"expected one line without control characters; found {one_line(value, 80)!r}"
    return ""


@dataclass(frozen=True)
class ModuleCall:
    """An ``nn.Module`` class as a function: a module is made for each call, from the options of the call."""

    module_class: type

    def __call__(self, input: Any, target: Any, **options: Any) -> Any:
        return self.module_class(**options)(input, target)


def with_matrix(fused: Callable[..., Any] | None) -> Callable[..., Any]:
    """A fused linear loss as a function of hidden states and targets, with the matrix among the options."""
    assert fused is not None
    return lambda input, target, *, linear_weight, **options: fused(input, linear_weight, target, **options)


def version_of(function: Any) -> str:
    """The version of the package that a function or module class comes from, "" if it comes from none."""
    function = function.module_class if isinstance(function, ModuleCall) else function
    package = (getattr(function, "__module__", None) or "").partition(".")[0]
    if package == "torch":
        return _torch_version()
    try:
        return metadata.version(package) if package else ""
    except (metadata.PackageNotFoundError, ValueError):
        return ""


def _torch_version() -> str:
    import torch  # here, because a declaration can be read without it

    return torch.__version__


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
