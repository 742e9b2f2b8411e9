"""What is found in one aspect of an answer: faults, errors and conventions, regardless of excuses. Runs nothing."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xentcheck.implementation import Implementation
from xentcheck.reference.definition import ALLOWED_UNITS
from xentcheck.reference.truth import Array, Truth
from xentcheck.run.observe import Answer, Observation
from xentcheck.run.units import compare, first
from xentcheck.run.verdict import Fault
from xentcheck.spec.batch import Batch
from xentcheck.spec.capabilities import CONVENTIONS, GRADES
from xentcheck.spec.case import Case

# Autograd's message where saved logits were edited before the backward pass.
_EDIT_NOTICED = "modified by an inplace operation"


@dataclass(frozen=True)
class Exam:
    """A case and what judging it takes.

    needed: the capabilities that it needs. relevant: the conventions on which its answer depends. truth: the expected values for given
    answers to these conventions.
    """

    case: Case
    batch: Batch
    needed: frozenset[str]
    relevant: frozenset[str]
    truth: Callable[[Mapping[str, str]], Truth]

    def may_be_refused_by(self, implementation: Implementation) -> bool:
        """Whether a convention allows the implementation to refuse the call, and it does not state that it accepts it."""
        convention = self.case.question.expect.convention
        return convention is not None and implementation.conventions.get(convention) in (None, "refused")

    @property
    def asks_for_refusal(self) -> bool:
        return self.case.question.expect.refused_unless_claimed

    def concerns(self, implementation: Implementation) -> bool:
        """Whether the implementation has to be called."""
        if implementation.unavailable or implementation.broken:
            return False
        return self.asks_for_refusal or self.needed <= implementation.capabilities


@dataclass(frozen=True)
class Finding:
    """What was found in one aspect: faults, the largest error in units, and the conventions that the answer follows."""

    faults: Sequence[Fault] = ()
    units: float | None = None
    conventions: Mapping[str, str] | None = None


def wrong(kind: str, expected: Any, found: Any, **more: Any) -> Finding:
    return Finding([Fault(kind, expected=expected, found=found, **more)])


def _loss(exam: Exam, implementation: Implementation, seen: Observation) -> Finding:
    answer, stated, convention = seen.first, implementation.conventions, exam.case.question.expect.convention
    if answer.nonzero_padding and answer.nonzero_padding[0] == "loss":
        return _nonzero_padding(answer.nonzero_padding)
    if answer.loss is None:
        return _no_loss(exam, implementation, answer)
    if convention and stated.get(convention) == "refused":
        return wrong("accepted", f"a refusal of {CONVENTIONS[convention][0]}, as is stated", "a loss")
    # Only the stated answer is right; where none is stated, each one is.
    choices = [
        [(name, stated[name])] if name in stated else [(name, a) for a in CONVENTIONS[name][1]]
        for name in sorted(exam.relevant - {*GRADES})
    ]
    word, dtype = exam.case.question.expect.loss, exam.case.question.dtype

    def compared(answers: Mapping[str, str]) -> tuple[Fault | None, float | None]:
        truth = exam.truth(answers)
        wanted, unit = _expected(word, truth.loss), _exact(word, truth.loss_unit)
        assert answer.loss is not None
        return compare("loss", answer.loss, wanted, unit, dtype, answer.loss_type, None)

    faults = list[Fault]()
    for answers in itertools.product(*choices):
        finding = _graded(exam, implementation, dict(answers), lambda answers: [compared(answers)])
        if not finding.faults:
            taken = {str(convention): "taken"} if convention else {}
            return replace(finding, conventions={**dict(answers), **(finding.conventions or {}), **taken})
        faults += finding.faults
    alternatives = tuple(dict.fromkeys(fault.expected for fault in faults))
    return Finding([replace(faults[0], expected=alternatives) if len(alternatives) > 1 else faults[0]])


Compared = Sequence[tuple[Fault | None, float | None]]


def _graded(
    exam: Exam,
    implementation: Implementation,
    answers: Mapping[str, str],
    compared: Callable[[Mapping[str, str]], Compared],
) -> Finding:
    """What is found at the best grades of accuracy that the answer reaches, of those that the implementation may have: the one that it
    states and better ones. Errors are counted in the units of the best."""
    names = sorted(exam.relevant & {*GRADES})
    choices = []
    for name in names:
        grades = CONVENTIONS[name][1]
        choices.append(grades[: grades.index(implementation.conventions.get(name, grades[-1])) + 1])
    best, faults = None, list[Fault]()
    for grades in itertools.product(*choices):
        reached = dict(zip(names, grades, strict=True))
        found = compared({**answers, **implementation.precision, **reached})
        units = max((units for _, units in found if units is not None), default=None)
        best = units if best is None else best
        faults = [fault for fault, _ in found if fault]
        if not faults:
            return Finding((), best, reached)
        if not all(fault.kind == "value" for fault in faults):
            break  # no grade excuses it
    return Finding(faults, units)


def _no_loss(exam: Exam, implementation: Implementation, answer: Answer) -> Finding:
    """The finding where a call returned no loss: a refusal that a convention allows, or a fault."""
    convention = exam.case.question.expect.convention
    if answer.raised is None:
        return wrong("missing", "a tensor", answer.loss_type)
    if convention and exam.may_be_refused_by(implementation):
        return Finding(conventions={convention: "refused"})
    return wrong("raised", "a loss", str(answer.raised))


def _nonzero_padding(found: tuple[str, int]) -> Finding:
    quantity, sample = found
    wanted = f"a {quantity} of zero where the batch was padded with ignored samples"
    return wrong("nonzero", wanted, f"another value at sample {sample}")


def _gradient(exam: Exam, implementation: Implementation, seen: Observation) -> Finding:
    answer, dtype = seen.first, exam.case.question.dtype
    if answer.nonzero_padding and answer.nonzero_padding[0] == "gradient":
        return _nonzero_padding(answer.nonzero_padding)
    if answer.raised and exam.case.question.mode == "edited" and _EDIT_NOTICED in answer.raised.text:
        return Finding()
    if answer.raised:
        if exam.may_be_refused_by(implementation):
            return Finding()
        return wrong("raised", "a gradient", str(answer.raised))
    if answer.gradient is None:
        instead = answer.unreadable.get("gradient", "none (input.grad is None)")
        return wrong("missing", "a gradient of the input", instead)
    word = exam.case.question.expect.gradient
    stated = {name: implementation.conventions.get(name, "") for name in exam.relevant}

    def compared(answers: Mapping[str, str]) -> Compared:
        truth = exam.truth(answers)
        wanted, unit = _expected(word, truth.gradient), _exact(word, truth.gradient_unit)
        assert answer.gradient is not None
        found = [compare("gradient", answer.gradient, wanted, unit, dtype, answer.gradient_type, truth.ignored)]
        for name, (value, unit) in truth.others.items():
            if name not in answer.others:
                instead = answer.unreadable.get(f"gradient of {name}", "none")
                found.append((Fault("missing", expected=f"a gradient of {name}", found=instead), None))
                continue
            values, found_type = answer.others[name]
            of_others = word if isinstance(word, str) else "reference"
            wanted, exact = _expected(of_others, value), _exact(of_others, unit)
            none_ignored = np.zeros(value.shape, dtype=bool)
            found.append(compare(f"gradient of {name}", values, wanted, exact, dtype, found_type, none_ignored))
        if truth.second is not None:
            found.append(_second(truth, answer, dtype))
        return found

    return _graded(exam, implementation, stated, compared)


def _second(truth: Truth, answer: Answer, dtype: str) -> tuple[Fault | None, float | None]:
    name = "gradient of the gradient"
    if answer.second is None or truth.second is None:
        return Fault("missing", expected=f"a {name}", found=answer.unreadable.get(name, "none")), None
    return compare(name, answer.second, truth.second, truth.second_unit, dtype, answer.gradient_type, truth.ignored)


def _shape(exam: Exam, implementation: Implementation, seen: Observation) -> Finding:
    answer, dtype, mode = seen.first, exam.case.question.dtype, exam.case.question.mode
    if answer.loss is None:
        return replace(_no_loss(exam, implementation, answer), conventions=None)  # stated with the loss
    shape = exam.batch.positions if exam.batch.reduction == "none" else ()
    if answer.loss.shape != shape:
        return wrong("shape", shape, answer.loss.shape, quantity="loss")
    half, stated = dtype in ("bfloat16", "float16") or mode == "autocast", implementation.half_loss_dtype
    if half and (stated is None or mode == "autocast"):
        allowed = {dtype, "float32"}
    else:
        allowed = {"float32" if half and stated == "float32" else dtype}
    if implementation.computes_in and dtype == "float64":
        allowed |= {"float32"}
    if answer.loss_type not in allowed:
        return wrong("dtype", " or ".join(sorted(allowed)), answer.loss_type, quantity="loss")
    if not exam.case.has_gradient and answer.requires_grad:
        return wrong("dtype", f"a loss without a graph under {mode}", "one that requires grad")
    if answer.gradient is not None and answer.gradient.shape != tuple(exam.batch.input.shape):
        return wrong("shape", tuple(exam.batch.input.shape), answer.gradient.shape, quantity="gradient")
    if answer.gradient is not None and answer.gradient_type != dtype:
        return wrong("dtype", dtype, answer.gradient_type, quantity="gradient")
    for name, (gradient, found_type) in answer.others.items():
        wanted = tuple(exam.batch.options[name].shape)
        if (gradient.shape, found_type) != (wanted, dtype):
            found = f"shape {gradient.shape} and dtype {found_type}"
            return wrong("shape", f"a gradient of {name} of shape {wanted} and dtype {dtype}", found)
    if half and mode != "autocast":
        return Finding(conventions={"half_loss_dtype": "input" if answer.loss_type == dtype else "float32"})
    return Finding()


def _rejection(exam: Exam, implementation: Implementation, seen: Observation) -> Finding:
    expected, raised = exam.case.question.expect.error, seen.first.raised
    if raised is None:
        found = seen.first.loss_type if seen.first.loss is None else f"a loss of {_show(seen.first.loss)}"
        unclaimed = "an error, since an option that is not claimed must not be ignored silently"
        return wrong("accepted", unclaimed if expected is None else f"an error in the {expected.phase}", found)
    if expected is None:
        return Finding()
    if expected.match and not re.search(expected.match, f"{raised.type}: {raised.text}", re.IGNORECASE):
        return wrong("accepted", f"an error that matches {expected.match!r}", str(raised))
    return Finding()


def _purity(exam: Exam, implementation: Implementation, seen: Observation) -> Finding:
    if seen.changed:
        return wrong("changed", "a call that leaves everything as it was", f"changed: {', '.join(seen.changed)}")
    if seen.again is None or exam.case.expects_error or exam.case.question.expect.loss == "unspecified":
        return Finding()
    if seen.again.raised:
        return wrong("unstable", "the same answer to the same call", str(seen.again.raised))
    truth = any_truth(exam, implementation)
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
        wanted = f"the same {name} from the same call"
        if one is None or two is None or one.shape != two.shape:
            return wrong("unstable", wanted, "another shape")
        with np.errstate(all="ignore"):
            noise = unit.astype(np.float64) if unit.shape == one.shape else np.zeros(one.shape)
            allowed = ALLOWED_UNITS[exam.case.question.dtype] * noise
            same = (one == two) | (np.isnan(one) & np.isnan(two)) | (abs(one - two) <= allowed)
        if not same.all():
            where = first(~same)
            found = f"{float(one[where])!r} and then {float(two[where])!r}"
            return wrong("unstable", wanted, found, index=where)
    return Finding()


FINDINGS: dict[str, Callable[[Exam, Implementation, Observation], Finding]] = {
    "loss": _loss,
    "gradient": _gradient,
    "shape": _shape,
    "rejection": _rejection,
    "purity": _purity,
}


def any_truth(exam: Exam, implementation: Implementation) -> Truth:
    """Gradients and units, which depend on no convention but the grades of accuracy: those that it states, or the lower ones."""
    stated = {name: implementation.conventions.get(name, "") for name in exam.relevant}
    return exam.truth({**stated, **implementation.precision})


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
    """A value that must be zero has to be exactly zero."""
    return np.zeros_like(unit) if isinstance(word, str) and word == "zero" else unit


def _show(values: Array) -> str:
    return f"{float(values):g}" if values.ndim == 0 else f"shape {values.shape}"
