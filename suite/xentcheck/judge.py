"""Compares an observation with what the case expects. Runs nothing.

A fault is what is wrong with an answer, whatever it is excused by; the verdict on an aspect is a fault, or none, seen in the
light of what the implementation claims and of its known deviations.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from xentcheck.batch import DTYPES, Batch
from xentcheck.case import Aspect, Case
from xentcheck.claims import CONVENTIONS, OPTIONS
from xentcheck.implementation import Implementation
from xentcheck.observe import Observation
from xentcheck.reference import Array, Truth

# How many units of rounding error an answer may have; DESIGN: calibrated on correct implementations written in different ways.
ALLOWED_UNITS = {"float64": 3.0, "float32": 3.0, "bfloat16": 1.0, "float16": 1.0}
STATUSES = ("pass", "fail", "deviates", "unexpected-pass", "unsupported", "unavailable", "error", "crash", "timeout")
GOOD = frozenset({"pass", "deviates", "unsupported", "unavailable"})
_WORST_FIRST = ("crash", "timeout", "error", "fail", "unexpected-pass", "deviates", "unavailable", "pass", "unsupported")


@dataclass(frozen=True)
class Fault:
    """What is wrong: a kind (see ``Deviation``), a sentence, and the error in units where it is one of size."""

    kind: str
    message: str
    units: float | None = None


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


TruthFor = Callable[[Mapping[str, str]], Truth]


def judge(case: Case, aspect: Aspect, implementation: Implementation, needed: frozenset[str], batch: Batch, seen: Observation | None, truth_for: TruthFor, relevant: frozenset[str]) -> Verdict:
    """The verdict on one aspect.

    needed: the capabilities that the case needs. seen: None where the implementation was not asked. truth_for: the expected
    values under given answers to conventions. relevant: the conventions that matter to this batch.
    """

    def verdict(status: str, message: str = "", units: float | None = None, kind: str = "", conventions: Mapping[str, str] | None = None) -> Verdict:
        return Verdict(implementation.name, case.clause.clause, case.id, aspect, status, units, message, kind, case.question.dtype, conventions or {})

    if implementation.unavailable:
        return verdict("unavailable", implementation.unavailable)
    missing = needed - implementation.capabilities
    refusal = aspect == "rejection" and case.question.expect.refused_unless_claimed
    if refusal and not missing & OPTIONS:
        return verdict("unsupported", "the option is claimed, so there is nothing to refuse")
    if missing and not refusal:
        return verdict("unsupported", f"not claimed: {', '.join(sorted(missing))}")
    assert seen is not None
    raised = seen.first.raised
    tentative = raised and raised.phase == "call" and not case.expects_error and not refusal and needed & implementation.tentative
    if tentative and not seen.changed:
        return verdict("unsupported", f"refused: {raised}")
    fault, units, conventions = _FAULTS[aspect](case, implementation, batch, seen, truth_for, relevant)
    deviation = implementation.deviation_for(case.id, aspect)
    if fault is None:
        if deviation is not None and deviation.certain:
            return verdict("unexpected-pass", f"this is a known deviation ({deviation.observed}), and it holds; delete {deviation.where}", units)
        return verdict("pass", "", units, conventions=conventions)
    if deviation is not None and deviation.fault == fault.kind:
        if deviation.max_units is None or (fault.units or 0) <= deviation.max_units:
            return verdict("deviates", fault.message, fault.units, fault.kind)
        return verdict("fail", f"{fault.message}; a deviation is known up to {deviation.max_units:g} units", fault.units, fault.kind)
    status = "error" if fault.kind == "raised" else "fail"
    return verdict(status, fault.message, fault.units, fault.kind)


def case_status(statuses: Iterable[str]) -> str:
    """A case's status from those of its aspects: the worst. It is unsupported only if nothing of it could be asked."""
    return min(statuses, key=_WORST_FIRST.index)


Finding = tuple[Fault | None, float | None, Mapping[str, str]]


def _loss(case: Case, implementation: Implementation, batch: Batch, seen: Observation, truth_for: TruthFor, relevant: frozenset[str]) -> Finding:
    answer = seen.first
    if answer.raised and answer.raised.phase == "call":
        if case.question.expect.convention and implementation.conventions.get(case.question.expect.convention) in (None, "refused"):
            return None, None, {case.question.expect.convention: "refused"}
        return Fault("raised", f"expected a loss; found {answer.raised}"), None, {}
    if answer.loss is None:
        return Fault("missing", f"expected a tensor; found {answer.loss_type}"), None, {}
    stated = implementation.conventions
    if case.question.expect.convention and stated.get(case.question.expect.convention) == "refused":
        return Fault("accepted", f"states that it refuses {CONVENTIONS[case.question.expect.convention][0]}; found a loss"), None, {}
    options = [[(name, stated[name])] if name in stated else [(name, a) for a in CONVENTIONS[name][1]] for name in sorted(relevant)]
    faults = []
    for answers in itertools.product(*options):
        truth = truth_for(dict(answers))
        expected = _expected(case.question.expect.loss, truth.loss, case)
        fault, units = _compare("loss", answer.loss, expected, truth.loss_unit, case, answer.loss_type, None)
        if fault is None:
            given = dict(answers)
            if case.question.expect.convention:
                given[case.question.expect.convention] = "taken"
            return None, units, given
        faults.append(fault)
    if len(faults) == 1:
        return faults[0], faults[0].units, {}
    expected_words = " or ".join(dict.fromkeys(f.message.split("; found")[0].removeprefix("expected ") for f in faults))
    return Fault(faults[0].kind, f"expected {expected_words}; found{faults[0].message.split('; found')[1]}", faults[0].units), faults[0].units, {}


def _gradient(case: Case, implementation: Implementation, batch: Batch, seen: Observation, truth_for: TruthFor, relevant: frozenset[str]) -> Finding:
    answer = seen.first
    if answer.raised:
        if case.question.expect.convention and implementation.conventions.get(case.question.expect.convention) in (None, "refused"):
            return None, None, {case.question.expect.convention: "refused"}
        return Fault("raised", f"expected a gradient; found {answer.raised}"), None, {}
    if answer.gradient is None:
        return Fault("missing", "expected a gradient of the input; found none (input.grad is None)"), None, {}
    truth = truth_for({name: implementation.conventions.get(name, "") for name in relevant})
    expected = _expected(case.question.expect.gradient, truth.gradient, case)
    fault, units = _compare("gradient", answer.gradient, expected, truth.gradient_unit, case, answer.gradient_type, truth.ignored)
    if fault is None and truth.second is not None:
        if answer.second is None:
            return Fault("missing", "expected a gradient of the gradient; found none"), None, {}
        fault, more = _compare("gradient of the gradient", answer.second, truth.second, truth.second_unit, case, answer.gradient_type, truth.ignored)
        units = max(units or 0.0, more or 0.0)
    return fault, units if fault is None else fault.units, {}


def _shape(case: Case, implementation: Implementation, batch: Batch, seen: Observation, truth_for: TruthFor, relevant: frozenset[str]) -> Finding:
    answer, dtype = seen.first, case.question.dtype
    if answer.raised and answer.raised.phase == "call":
        if case.question.expect.convention:
            return None, None, {}
        return Fault("raised", f"expected a loss; found {answer.raised}"), None, {}
    if answer.loss is None:
        return Fault("missing", f"expected a tensor; found {answer.loss_type}"), None, {}
    shape = tuple(batch.target.shape) if batch.reduction == "none" else ()
    if answer.loss.shape != shape:
        return Fault("shape", f"expected a loss of shape {shape}; found {answer.loss.shape}"), None, {}
    half = dtype in ("bfloat16", "float16") or case.question.mode == "autocast"
    stated = implementation.half_loss_dtype
    allowed = {dtype, "float32"} if half and stated is None else {"float32" if half and stated == "float32" else dtype}
    if answer.loss_type not in allowed:
        return Fault("dtype", f"expected a loss of dtype {' or '.join(sorted(allowed))}; found {answer.loss_type}"), None, {}
    if not case.has_gradient and answer.gradient_type:
        return Fault("dtype", f"expected a loss without a graph under {case.question.mode}; found one that requires grad"), None, {}
    if answer.gradient is not None and answer.gradient.shape != tuple(batch.input.shape):
        return Fault("shape", f"expected a gradient of shape {tuple(batch.input.shape)}; found {answer.gradient.shape}"), None, {}
    if answer.gradient is not None and answer.gradient_type != dtype:
        return Fault("dtype", f"expected a gradient of dtype {dtype}; found {answer.gradient_type}"), None, {}
    given = {"half_loss_dtype": "input" if answer.loss_type == dtype else "float32"} if dtype in ("bfloat16", "float16") else {}
    return None, None, given


def _rejection(case: Case, implementation: Implementation, batch: Batch, seen: Observation, truth_for: TruthFor, relevant: frozenset[str]) -> Finding:
    expected, raised = case.question.expect.error, seen.first.raised
    if raised is None:
        found = seen.first.loss_type if seen.first.loss is None else f"a loss of {_show(seen.first.loss)}"
        what = "an error, since an option that is not claimed may not be dropped in silence" if expected is None else f"an error in the {expected.phase}"
        return Fault("accepted", f"expected {what}; found {found}"), None, {}
    if expected is None:
        return None, None, {}
    if expected.phase == "call" and raised.phase != "call":
        return Fault("accepted", f"expected an error in the call; found {raised}"), None, {}
    if expected.match and not re.search(expected.match, f"{raised.type}: {raised.text}", re.IGNORECASE):
        return Fault("accepted", f"expected an error that matches {expected.match!r}; found {raised}"), None, {}
    return None, None, {}


def _purity(case: Case, implementation: Implementation, batch: Batch, seen: Observation, truth_for: TruthFor, relevant: frozenset[str]) -> Finding:
    if seen.changed:
        return Fault("changed", f"expected a call that leaves everything as it was; found changed: {', '.join(seen.changed)}"), None, {}
    if seen.again is None or case.expects_error or case.question.expect.loss == "unspecified":
        return None, None, {}
    if seen.again.raised:
        return Fault("unstable", f"expected the same answer to the same call; found {seen.again.raised}"), None, {}
    truth = truth_for({name: implementation.conventions.get(name, "") for name in relevant})
    for name, one, two, unit in (
        ("loss", seen.first.loss, seen.again.loss, truth.loss_unit),
        ("gradient", seen.first.gradient, seen.again.gradient, truth.gradient_unit),
    ):
        if one is None or two is None or one.shape != two.shape:
            if one is not two and (one is None or two is None or one.shape != two.shape):
                return Fault("unstable", f"expected the same {name} from the same call; found another shape"), None, {}
            continue
        with np.errstate(all="ignore"):
            unit64 = np.broadcast_to(unit, one.shape).astype(np.float64) if unit.size in (1, one.size) else np.zeros(one.shape)
            differs = ~((one == two) | (np.isnan(one) & np.isnan(two)) | (abs(one - two) <= ALLOWED_UNITS[case.question.dtype] * unit64))
        if differs.any():
            where = _first(differs)
            return Fault("unstable", f"expected the same {name} from the same call; found {one[where]!r} and then {two[where]!r}{_at(where)}"), None, {}
    return None, None, {}


_FAULTS: dict[str, Callable[..., Finding]] = {"loss": _loss, "gradient": _gradient, "shape": _shape, "rejection": _rejection, "purity": _purity}


def _expected(word: Any, reference: Array, case: Case) -> Array | str:
    """The expected values: an array, or ``finite`` or ``unspecified``."""
    if word in ("reference", "empty-mean"):
        return reference
    if isinstance(word, str):
        words = {"nan": np.nan, "inf": np.inf, "zero": 0.0}
        return np.full(reference.shape, words[word]) if word in words else word
    literal = np.asarray(word, dtype=np.float64)
    return np.broadcast_to(literal, reference.shape) if literal.ndim == 0 else literal


def _compare(name: str, found: Array, expected: Array | str, unit: Any, case: Case, found_dtype: str, ignored: Array | None) -> tuple[Fault | None, float | None]:
    """Found against expected values in units. In a gradient, an expected NaN marks what the definition leaves open."""
    if isinstance(expected, str):
        if expected == "finite" and not np.isfinite(found).all():
            where = _first(~np.isfinite(found))
            return Fault("nan" if np.isnan(found[where]) else "inf", f"expected a finite {name}; found {found[where]}{_at(where)}"), None
        return None, None
    if found.shape != expected.shape:
        return Fault("shape", f"expected a {name} of shape {expected.shape}; found {found.shape}"), None
    with np.errstate(all="ignore"):
        judged = ~np.isnan(expected.astype(np.float64)) if ignored is not None else np.ones(expected.shape, dtype=bool)
        largest = torch.finfo(DTYPES[found_dtype]).max if found_dtype in DTYPES else np.inf
        # A value beyond the largest of the dtype that was returned is an infinity there.
        target = np.where(abs(expected) > largest, np.sign(expected) * np.inf, expected)
        same = (found == target) | (np.isnan(found) & np.isnan(target.astype(np.float64)))
        must_be_zero = ignored if ignored is not None else np.zeros(expected.shape, dtype=bool)
        error = np.where(same | ~judged, 0.0, (abs(found - target) / np.where(np.asarray(unit) > 0, unit, 1)).astype(np.float64))
        error = np.where(~same & judged & (~np.isfinite(error) | must_be_zero | (np.asarray(unit) <= 0)), np.inf, error)
    worst = float(error.max()) if error.size else 0.0
    allowed = ALLOWED_UNITS[case.question.dtype]
    if worst <= allowed:
        return None, worst
    where = _first(error > allowed)
    count = int((error > allowed).sum())
    value, right = float(found[where]), float(target[where])
    kind = "nan" if np.isnan(value) else "inf" if np.isinf(value) else "nonzero" if must_be_zero[where] else "value"
    at = _at(where) + (", an ignored position" if must_be_zero[where] else "")
    size = f", {_units(float(error[where]))} where {allowed:g} are allowed" if np.isfinite(error[where]) else ""
    more = f"; {count} of {error.size} values are wrong" + (f", the worst by {_units(worst)}" if np.isfinite(worst) and count > 1 else "") if error.size > 1 else ""
    return Fault(kind, f"expected a {name} of {right!r}; found {value!r}{at}{size}{more}", worst if np.isfinite(worst) else None), worst


def _units(error: float) -> str:
    return f"{error:.3g} units"


def _first(mask: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(mask)), mask.shape))


def _at(where: tuple[int, ...]) -> str:
    return f" at {list(where)}" if where else ""


def _show(values: Array) -> str:
    return f"{float(values):g}" if values.ndim == 0 else f"shape {values.shape}"


