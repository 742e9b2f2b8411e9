"""The verdict on an aspect: what was found, in the light of what the implementation claims and its known deviations. Runs nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from xentcheck.implementation import Deviation, Implementation
from xentcheck.run import relations
from xentcheck.run.findings import FINDINGS, Exam, Finding, any_truth, wrong
from xentcheck.run.observe import Answer, Failure, Observation
from xentcheck.run.status import Status
from xentcheck.run.verdict import Fault, Verdict
from xentcheck.spec.batch import Batch
from xentcheck.spec.capabilities import OPTIONS
from xentcheck.spec.case import RELATIONS, Aspect, Relation
from xentcheck.spec.needs import capabilities_of

Relate = Callable[[Relation], tuple[Sequence[Batch], relations.Check, Sequence[Answer | Failure]]]


def judge(
    exam: Exam,
    aspect: Aspect,
    implementation: Implementation,
    seen: Observation | Failure | None,
    relate: Relate | None = None,
    refuses_anything: Callable[[], str] = str,
) -> Verdict:
    """The verdict on one aspect. seen: None where the implementation was not called. relate: gives the batches of a relation, their
    check, and the answers to them. refuses_anything: what the implementation gives instead of a loss for good input; empty if it gives
    one."""
    case = exam.case
    blank = Verdict(
        implementation.name, case.clause.clause, case.id, aspect, Status.UNSUPPORTED, dtype=case.question.dtype
    )
    if implementation.unavailable:
        return replace(blank, status=Status.UNAVAILABLE, reason=implementation.unavailable)
    if implementation.broken:
        return replace(blank, status=Status.ERROR, reason=implementation.broken)
    if reason := _why_not_asked(exam, aspect, implementation):
        return replace(blank, reason=reason)
    assert seen is not None
    if isinstance(seen, Failure):
        return replace(blank, status=Status(seen.status), reason=seen.message)
    if _is_refusal(exam, aspect, implementation, seen):
        return replace(blank, reason=f"refused: {seen.first.raised}")
    if aspect in RELATIONS:
        if seen.first.loss is None or seen.first.gradient is None:
            return replace(blank, reason="there is no answer to compare other answers with")
        assert relate is not None
        known, stated = any_truth(exam, implementation), implementation.conventions | implementation.precision
        asked = relations.Asked(exam.batch, seen.first, known, case.question.dtype, stated)
        batches, check, answers = relate(aspect)
        if reason := _why_not_related(implementation, batches, answers):
            return replace(blank, reason=reason)
        broken = relations.broken(aspect, asked, batches, check, answers)
        finding = Finding([broken] if broken else [])
    else:
        finding = FINDINGS[aspect](exam, implementation, seen)
        if aspect == "rejection" and not finding.faults and (instead := refuses_anything()):
            finding = wrong("raised", "a refusal of this call alone", f"good input is refused as well: {instead}")
    return _verdict(blank, finding, implementation.deviation_for(case.id, aspect))


def _why_not_asked(exam: Exam, aspect: Aspect, implementation: Implementation) -> str:
    """Why the aspect is unsupported; empty if it is not."""
    missing = (exam.needed | relations.NEEDS.get(aspect, frozenset())) - implementation.capabilities
    if aspect == "rejection" and exam.asks_for_refusal:
        return "" if missing & OPTIONS else "the option is claimed, so there is nothing to refuse"
    return f"not claimed: {', '.join(sorted(missing))}" if missing else ""


def _why_not_related(
    implementation: Implementation, batches: Sequence[Batch], answers: Sequence[Answer | Failure]
) -> str:
    """Why a relation is unsupported: as a case of its own, one of its batches would be, which needs what nobody claimed. What is not
    offered at all is known before (``relations.NEEDS``)."""
    for batch, answer in zip(batches, answers, strict=True):
        raised = None if isinstance(answer, Failure) else answer.raised
        if raised and raised.phase == "call" and capabilities_of(batch) & implementation.tentative:
            return f"another batch is refused: {raised}"
    return ""


def _is_refusal(exam: Exam, aspect: Aspect, implementation: Implementation, seen: Observation) -> bool:
    """Whether a bare callable refuses what nobody claimed for it, which is not a failure."""
    raised = seen.first.raised
    if raised is None or raised.phase != "call" or seen.changed or exam.case.expects_error:
        return False
    asks_for_refusal = aspect == "rejection" and exam.asks_for_refusal
    return not asks_for_refusal and bool(exam.needed & implementation.tentative)


def _verdict(blank: Verdict, finding: Finding, deviation: Deviation | None) -> Verdict:
    """The verdict on a finding, given the known deviation of this aspect."""
    if not finding.faults:
        if deviation is not None and deviation.certain:
            reason = f"it passes, although a deviation is declared ({deviation.observed}); delete {deviation.where}"
            return replace(blank, status=Status.UNEXPECTED_PASS, reason=reason, error_units=finding.units)
        conventions = finding.conventions or {}
        return replace(blank, status=Status.PASS, error_units=finding.units, conventions=conventions)
    # A deviation does not excuse another fault in the same answer.
    fault = min(finding.faults, key=lambda fault: _ORDER.index(held_to(deviation, fault)))
    status, known_units = held_to(deviation, fault), exceeded(deviation, fault)
    return replace(blank, status=status, error_units=fault.worst_units, fault=fault, known_units=known_units)


_ORDER = list(Status)
_STATUS_OF = {"raised": Status.ERROR, "crash": Status.CRASH, "timeout": Status.TIMEOUT}


def held_to(deviation: Deviation | None, fault: Fault) -> Status:
    """The status of a fault: ``deviates`` if the known deviation covers its kind and its size."""
    if deviation is None or deviation.fault != fault.kind:
        return _STATUS_OF.get(fault.kind, Status.FAIL)
    return Status.DEVIATES if exceeded(deviation, fault) is None else Status.FAIL


def exceeded(deviation: Deviation | None, fault: Fault) -> float | None:
    """The largest error that the known deviation covers, where the fault is larger; None where it is not."""
    if deviation is None or deviation.fault != fault.kind or deviation.max_units is None:
        return None
    units = np.inf if fault.worst_units is None else fault.worst_units
    return deviation.max_units if units > deviation.max_units else None
