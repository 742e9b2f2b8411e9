"""Compares an observation with what the case expects. Runs nothing.

A fault is what is wrong with an answer, whatever it is excused by; the verdict on an aspect is a fault, or none, seen in the
light of what the implementation claims and of its known deviations.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xentcheck import relations
from xentcheck.batch import Batch
from xentcheck.capabilities import CONVENTIONS, OPTIONS
from xentcheck.case import RELATIONS, Aspect, Case, Relation
from xentcheck.compare import ALLOWED_UNITS, Fault, compare, first, place
from xentcheck.implementation import Deviation, Implementation
from xentcheck.observe import Answer, Failure, Observation
from xentcheck.reference import Array, Truth

STATUSES = ("pass", "fail", "deviates", "unexpected-pass", "unsupported", "unavailable", "error", "crash", "timeout")
GOOD = frozenset({"pass", "deviates", "unsupported", "unavailable"})
_WORST_FIRST = (
    "crash",
    "timeout",
    "error",
    "fail",
    "unexpected-pass",
    "deviates",
    "unavailable",
    "pass",
    "unsupported",
)


@dataclass(frozen=True)
class Verdict:
    """The judgement of one aspect of one case. ``conventions``: the answers that the implementation was seen to give."""

    implementation: str
    clause: str
    case: str
    aspect: str
    status: str
    error_units: float | None = None
    message: str = ""
    fault: str = ""
    dtype: str = ""
    conventions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Exam:
    """A case made ready to be judged.

    needed: the capabilities that it needs. relevant: the conventions on which its answer depends. truth: the expected values
    under given answers to them.
    """

    case: Case
    batch: Batch
    needed: frozenset[str]
    relevant: frozenset[str]
    truth: Callable[[Mapping[str, str]], Truth]

    def may_be_refused_by(self, implementation: Implementation) -> bool:
        """Whether a convention leaves the call to the implementation, and it does not state that it takes it."""
        convention = self.case.question.expect.convention
        return convention is not None and implementation.conventions.get(convention) in (None, "refused")

    @property
    def asks_for_refusal(self) -> bool:
        return self.case.question.expect.refused_unless_claimed

    def must_be_put_to(self, implementation: Implementation) -> bool:
        """Whether the case concerns the implementation at all."""
        return not implementation.unavailable and (self.asks_for_refusal or self.needed <= implementation.capabilities)


# What autograd says where saved logits were edited before the backward pass.
_EDIT_NOTICED = "modified by an inplace operation"

Finding = tuple[Sequence[Fault], float | None, Mapping[str, str]]


def judge(
    exam: Exam,
    aspect: Aspect,
    implementation: Implementation,
    seen: Observation | Failure | None,
    relate: Callable[[Relation], tuple[relations.Relating, Sequence[Answer | Failure]]] | None = None,
) -> Verdict:
    """The verdict on one aspect. seen: None where the implementation was not asked. relate: begins a relation of the batch, and
    returns it with the answers that it asks for."""
    case = exam.case

    def verdict(
        status: str,
        message: str = "",
        units: float | None = None,
        fault: str = "",
        conventions: Mapping[str, str] | None = None,
    ) -> Verdict:
        return Verdict(
            implementation.name,
            case.clause.clause,
            case.id,
            aspect,
            status,
            units,
            message,
            fault,
            case.question.dtype,
            conventions or {},
        )

    if implementation.unavailable:
        return verdict("unavailable", implementation.unavailable)
    missing = (exam.needed | relations.NEEDS.get(aspect, frozenset())) - implementation.capabilities
    refusal = aspect == "rejection" and exam.asks_for_refusal
    if refusal and not missing & OPTIONS:
        return verdict("unsupported", "the option is claimed, so there is nothing to refuse")
    if missing and not refusal:
        return verdict("unsupported", f"not claimed: {', '.join(sorted(missing))}")
    assert seen is not None
    if isinstance(seen, Failure):
        return verdict(seen.status, seen.message)
    raised = seen.first.raised
    tentative = (
        raised
        and raised.phase == "call"
        and not case.expects_error
        and not refusal
        and exam.needed & implementation.tentative
    )
    if tentative and not seen.changed:
        return verdict("unsupported", f"refused: {raised}")
    if aspect in RELATIONS:
        if seen.first.loss is None or seen.first.gradient is None:
            return verdict("unsupported", "there is no answer that others could be related to")
        assert relate is not None
        asked = relations.Asked(exam.batch, seen.first, _any_truth(exam, implementation), case.question.dtype)
        relating, answers = relate(aspect)
        broken = relating.broken(asked, answers)
        faults, units, conventions = [broken] if broken else [], None, {}
    else:
        faults, units, conventions = _FINDINGS[aspect](exam, implementation, seen)
    deviation = implementation.deviation_for(case.id, aspect)
    if not faults:
        if deviation is not None and deviation.certain:
            return verdict(
                "unexpected-pass",
                f"this is a known deviation ({deviation.observed}), and it holds; delete {deviation.where}",
                units,
            )
        return verdict("pass", "", units, conventions=conventions)
    # A deviation excuses no other fault that stands beside it.
    worst = min(faults, key=lambda fault: _WORST_FIRST.index(held_to(deviation, fault)[0]))
    return verdict(*held_to(deviation, worst), worst.units, worst.kind)


def held_to(deviation: Deviation | None, fault: Fault) -> tuple[str, str]:
    """The status and the message of a fault, beside what is known of the implementation: its kind and its size at most."""
    if deviation is None or deviation.fault != fault.kind:
        return {"raised": "error", "crash": "crash", "timeout": "timeout"}.get(fault.kind, "fail"), fault.message
    if deviation.max_units is None or (np.inf if fault.units is None else fault.units) <= deviation.max_units:
        return "deviates", fault.message
    return "fail", f"{fault.message}; a deviation is known up to {deviation.max_units:g} units"


def case_status(statuses: Iterable[str]) -> str:
    """A case's status from those of its aspects: the worst. It is unsupported only if nothing of it could be asked."""
    return min(statuses, key=_WORST_FIRST.index)


def _loss(exam: Exam, implementation: Implementation, seen: Observation) -> Finding:
    answer, stated, convention = seen.first, implementation.conventions, exam.case.question.expect.convention
    if answer.padding.startswith("a loss"):
        return _wrong(
            "nonzero", f"expected zero where the batch was padded with ignored samples; found {answer.padding}"
        )
    if answer.raised and answer.raised.phase == "call":
        if convention and exam.may_be_refused_by(implementation):
            return (), None, {convention: "refused"}
        return _wrong("raised", f"expected a loss; found {answer.raised}")
    if answer.loss is None:
        return _wrong("missing", f"expected a tensor; found {answer.loss_type}")
    if convention and stated.get(convention) == "refused":
        return _wrong("accepted", f"states that it refuses {CONVENTIONS[convention][0]}; found a loss")
    # A stated answer is the only one that is right; without one each of them is.
    choices = [
        [(name, stated[name])] if name in stated else [(name, a) for a in CONVENTIONS[name][1]]
        for name in sorted(exam.relevant)
    ]
    faults = []
    for answers in itertools.product(*choices):
        truth = exam.truth(dict(answers))
        expected = _expected(exam.case.question.expect.loss, truth.loss)
        fault, units = compare(
            "loss",
            answer.loss,
            expected,
            _exact(exam.case.question.expect.loss, truth.loss_unit),
            exam.case.question.dtype,
            answer.loss_type,
            None,
        )
        if fault is None:
            return (), units, dict(answers) | ({convention: "taken"} if convention else {})
        faults.append(fault)
    expectations = " or ".join(dict.fromkeys(f.message.split("; found")[0].removeprefix("expected ") for f in faults))
    return _wrong(
        faults[0].kind, f"expected {expectations}; found{faults[0].message.split('; found', 1)[1]}", faults[0].units
    )


def _gradient(exam: Exam, implementation: Implementation, seen: Observation) -> Finding:
    answer, dtype = seen.first, exam.case.question.dtype
    if answer.padding.startswith("a gradient"):
        return _wrong(
            "nonzero", f"expected zero where the batch was padded with ignored samples; found {answer.padding}"
        )
    if answer.raised and exam.case.question.mode == "edited" and _EDIT_NOTICED in answer.raised.text:
        return (), None, {}
    if answer.raised:
        if exam.may_be_refused_by(implementation):
            return (), None, {}
        return _wrong("raised", f"expected a gradient; found {answer.raised}")
    if answer.gradient is None:
        return _wrong("missing", "expected a gradient of the input; found none (input.grad is None)")
    truth = _any_truth(exam, implementation)
    word = exam.case.question.expect.gradient
    compared = [
        compare(
            "gradient",
            answer.gradient,
            _expected(word, truth.gradient),
            _exact(word, truth.gradient_unit),
            dtype,
            answer.gradient_type,
            truth.ignored,
        )
    ]
    for name, (value, unit) in truth.others.items():
        if name not in answer.others:
            compared.append((Fault("missing", f"expected a gradient of {name}; found none"), None))
            continue
        found, found_type = answer.others[name]
        of_others = word if isinstance(word, str) else "reference"
        wanted, exact = _expected(of_others, value), _exact(of_others, unit)
        unasked = np.zeros(value.shape, dtype=bool)
        compared.append(compare(f"gradient of {name}", found, wanted, exact, dtype, found_type, unasked))
    if truth.second is not None and answer.second is None:
        compared.append((Fault("missing", "expected a gradient of the gradient; found none"), None))
    elif truth.second is not None:
        compared.append(
            compare(
                "gradient of the gradient",
                answer.second,
                truth.second,
                truth.second_unit,
                dtype,
                answer.gradient_type,
                truth.ignored,
            )
        )
    faults = [fault for fault, _ in compared if fault]
    return faults, max((units for _, units in compared if units is not None), default=None), {}


def _shape(exam: Exam, implementation: Implementation, seen: Observation) -> Finding:
    answer, dtype, mode = seen.first, exam.case.question.dtype, exam.case.question.mode
    if answer.raised and answer.raised.phase == "call":
        return (
            ((), None, {})
            if exam.may_be_refused_by(implementation)
            else _wrong("raised", f"expected a loss; found {answer.raised}")
        )
    if answer.loss is None:
        return _wrong("missing", f"expected a tensor; found {answer.loss_type}")
    shape = exam.batch.positions if exam.batch.reduction == "none" else ()
    if answer.loss.shape != shape:
        return _wrong("shape", f"expected a loss of shape {shape}; found {answer.loss.shape}")
    half, stated = dtype in ("bfloat16", "float16") or mode == "autocast", implementation.half_loss_dtype
    allowed = (
        {dtype, "float32"}
        if half and (stated is None or mode == "autocast")
        else {"float32" if half and stated == "float32" else dtype}
    )
    if answer.loss_type not in allowed:
        return _wrong("dtype", f"expected a loss of dtype {' or '.join(sorted(allowed))}; found {answer.loss_type}")
    if not exam.case.has_gradient and answer.gradient_type:
        return _wrong("dtype", f"expected a loss without a graph under {mode}; found one that requires grad")
    if answer.gradient is not None and answer.gradient.shape != tuple(exam.batch.input.shape):
        return _wrong(
            "shape", f"expected a gradient of shape {tuple(exam.batch.input.shape)}; found {answer.gradient.shape}"
        )
    if answer.gradient is not None and answer.gradient_type != dtype:
        return _wrong("dtype", f"expected a gradient of dtype {dtype}; found {answer.gradient_type}")
    for name, (gradient, found_type) in answer.others.items():
        if (gradient.shape, found_type) != (tuple(exam.batch.options[name].shape), dtype):
            wanted = f"shape {tuple(exam.batch.options[name].shape)} and dtype {dtype}"
            return _wrong(
                "shape", f"expected a gradient of {name} of {wanted}; found {gradient.shape} and {found_type}"
            )
    return (
        (),
        None,
        {"half_loss_dtype": "input" if answer.loss_type == dtype else "float32"} if half and mode != "autocast" else {},
    )


def _rejection(exam: Exam, implementation: Implementation, seen: Observation) -> Finding:
    expected, raised = exam.case.question.expect.error, seen.first.raised
    if raised is None:
        found = seen.first.loss_type if seen.first.loss is None else f"a loss of {_show(seen.first.loss)}"
        what = (
            "an error, since an option that is not claimed may not be dropped in silence"
            if expected is None
            else f"an error in the {expected.phase}"
        )
        return _wrong("accepted", f"expected {what}; found {found}")
    if expected is None:
        return (), None, {}
    if expected.phase == "call" and raised.phase != "call":
        return _wrong("accepted", f"expected an error in the call; found {raised}")
    if expected.match and not re.search(expected.match, f"{raised.type}: {raised.text}", re.IGNORECASE):
        return _wrong("accepted", f"expected an error that matches {expected.match!r}; found {raised}")
    return (), None, {}


def _purity(exam: Exam, implementation: Implementation, seen: Observation) -> Finding:
    if seen.changed:
        return _wrong(
            "changed", f"expected a call that leaves everything as it was; found changed: {', '.join(seen.changed)}"
        )
    if seen.again is None or exam.case.expects_error or exam.case.question.expect.loss == "unspecified":
        return (), None, {}
    if seen.again.raised:
        return _wrong("unstable", f"expected the same answer to the same call; found {seen.again.raised}")
    truth = _any_truth(exam, implementation)
    pairs = [
        ("loss", seen.first.loss, seen.again.loss, truth.loss_unit),
        ("gradient", seen.first.gradient, seen.again.gradient, truth.gradient_unit),
    ]
    for name, (_, unit) in truth.others.items():
        one, two = (a.others.get(name, (None, ""))[0] for a in (seen.first, seen.again))
        pairs.append((f"gradient of {name}", one, two, unit))
    for name, one, two, unit in pairs:
        if one is None and two is None:
            continue
        if one is None or two is None or one.shape != two.shape:
            return _wrong("unstable", f"expected the same {name} from the same call; found another shape")
        with np.errstate(all="ignore"):
            noise = unit.astype(np.float64) if unit.shape == one.shape else np.zeros(one.shape)
            same = (
                (one == two)
                | (np.isnan(one) & np.isnan(two))
                | (abs(one - two) <= ALLOWED_UNITS[exam.case.question.dtype] * noise)
            )
        if not same.all():
            where = first(~same)
            return _wrong(
                "unstable",
                f"expected the same {name} from the same call; found {float(one[where])!r} and then {float(two[where])!r}{place(where)}",
            )
    return (), None, {}


_FINDINGS: dict[str, Callable[[Exam, Implementation, Observation], Finding]] = {
    "loss": _loss,
    "gradient": _gradient,
    "shape": _shape,
    "rejection": _rejection,
    "purity": _purity,
}


def _wrong(kind: str, message: str, units: float | None = None) -> Finding:
    return [Fault(kind, message, units)], units, {}


def _any_truth(exam: Exam, implementation: Implementation) -> Truth:
    """For what no convention decides: gradients and units."""
    return exam.truth({name: implementation.conventions.get(name, "") for name in exam.relevant})


def _expected(word: Any, reference: Array) -> Array | str:
    """The expected values: an array, or ``finite`` or ``unspecified``."""
    if word in ("reference", "empty-mean"):
        return reference
    if isinstance(word, str):
        words = {"nan": np.nan, "inf": np.inf, "zero": 0.0}
        return np.full(reference.shape, words[word]) if word in words else word
    literal = np.asarray(word, dtype=np.float64)
    return np.broadcast_to(literal, reference.shape) if literal.ndim == 0 else literal


def _exact(word: Any, unit: Array) -> Array:
    """What must be zero is exactly zero."""
    return np.zeros_like(unit) if isinstance(word, str) and word == "zero" else unit


def _show(values: Array) -> str:
    return f"{float(values):g}" if values.ndim == 0 else f"shape {values.shape}"
