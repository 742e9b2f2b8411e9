"""Which failures are known: by the features of the batches in which they occur.

A failure is known where a known situation has the same aspect and kind of fault, needs only features that the failing batch has as
well, and has an error at least as large. The known situations come from the shipped cases that deviate, each reduced to what it needs to
deviate. A new fault is therefore hidden only in batches that have all features of a known one; a smaller batch shows it alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from xentcheck.explore.minimise import Entry, reduced, without_keys
from xentcheck.implementation import Implementation
from xentcheck.reference.truth import has_no_softmax
from xentcheck.run.examiner import Examiner
from xentcheck.run.status import Status
from xentcheck.run.verdict import Fault, Verdict
from xentcheck.spec.batch import Batch, build
from xentcheck.spec.case import RELATIONS, Case

LARGE = 50_000  # cases with more logits are not reduced, which would take long


@dataclass(frozen=True)
class Situation:
    """max_units: infinite where the size of the error does not matter. name: the case it comes from."""

    aspect: str
    fault: str
    features: frozenset[str]
    max_units: float
    name: str


def explanation(known: Iterable[Situation], verdict: Verdict, seen: frozenset[str]) -> str | None:
    """The name of the known situation that explains a failure in a batch with these features, if one does."""
    aspect, fault = kind(verdict)
    here = [s for s in known if s.aspect == aspect and s.features <= seen]
    # Where two known faults meet, such as rounding and NaN, the size of the one is lost in the infinity of the other.
    two = verdict.error_units is None and len({s.fault for s in here}) > 1
    units = np.inf if verdict.error_units is None else verdict.error_units
    return next((s.name for s in here if s.fault == fault and (two or units <= s.max_units)), None)


def first_new(known: Iterable[Situation], wrong: Iterable[Verdict], seen: frozenset[str]) -> tuple[Verdict | None, str]:
    """The first failure in a batch with these features that nothing known explains, and the name of what explains those before it.

    Relations compare the answer with another one. Where the answer itself is wrong in a known way, that is why they do not hold.
    """
    known, explained = list(known), ""
    for verdict in wrong:
        if explained and verdict.aspect in RELATIONS and verdict.kind != "harness":
            continue
        by = explanation(known, verdict, seen)
        if by is None:
            return verdict, explained
        explained = explained or by
    return None, explained


def kind(verdict: Verdict) -> tuple[str, str]:
    """A failure's aspect and fault."""
    return verdict.aspect, verdict.kind or verdict.status


def failures(case: Case, implementation: Implementation, examiner: Examiner) -> list[Verdict]:
    """What is wrong with the answer, known deviations included, since their patterns are not meant for drawn cases.

    An exception in the suite itself is a failure as well, of the fault ``harness``. Raises CaseFileError where no batch can be made.
    """
    examiner.batch(case)
    bare = replace(implementation, deviations=())
    found = []
    for aspect in examiner.aspects(case, bare):
        try:
            verdict = examiner.examine(case, aspect, bare)
        except Exception as error:
            text = f"a failure of the suite itself: {type(error).__name__}: {error}"
            fault = Fault("harness", expected="a verdict", found=text)
            verdict = Verdict(bare.name, case.clause.clause, case.id, aspect, Status.ERROR, fault=fault)
        if not verdict.status.is_good:
            found.append(verdict)
    return found


def features(case: Case, batch: Batch) -> frozenset[str]:
    """What is special about a batch, in words. A float32 mean over finite logits with nothing ignored has no feature."""
    question, options = case.question, batch.options
    weight, smoothing = options.get("weight"), options.get("label_smoothing")
    found = {
        question.dtype: question.dtype != "float32",
        f"mode {question.mode}": question.mode != "eager",
        f"reduction {question.reduction}": question.reduction in ("sum", "none"),
        "an unknown reduction": question.reduction not in (None, "mean", "sum", "none"),
        f"{question.target.dtype} targets": question.target.dtype != "int64",
        "upstream": batch.upstream is not None and not bool((batch.upstream == 1).all()),
        "layout of upstream": question.upstream.layout != "contiguous",
        "layout of logits": question.logits.layout != "contiguous",
        "layout of targets": question.target.layout != "contiguous",
        "unbatched": batch.input.dim() == 1,
        "more than two dimensions": batch.input.dim() > 2,
        "many classes": batch.classes > 256,
        "many positions": batch.target.numel() > 1000,
        "no position": batch.target.numel() == 0,
        "a refusal is asked for": case.expects_error or question.expect.refused_unless_claimed,
        "weights": weight is not None,
        "a weight of 0": weight is not None and bool((weight == 0).any()),
        "a negative weight": weight is not None and bool((weight < 0).any()),
        "smoothing": bool(smoothing),
        "smoothing 1": smoothing == 1,
        "smoothing outside [0, 1]": smoothing is not None and not 0 <= smoothing <= 1,
        "several ignore values": isinstance(options.get("ignore_index"), list),
        "an ignored class": any(0 <= v < batch.classes for v in batch.ignore_values),
        "class probabilities": batch.has_probabilities,
        "a normalizer": "normalizer" in options,
    }
    fits = tuple(batch.target.shape) == batch.positions
    found["shapes that do not fit"] = (not fits and not batch.has_probabilities) or (
        weight is not None and weight.shape != (batch.classes,)
    )
    if fits:
        found |= _features_of_rows(batch)
    return frozenset(name for name, holds in found.items() if holds)


def _features_of_rows(batch: Batch) -> dict[str, bool]:
    target = batch.target.numpy().reshape(-1)
    rows, ignored, undefined = batch.logits, np.isin(target, batch.ignore_values), has_no_softmax(batch.logits)
    minus, of_target = np.isneginf(rows), np.arange(batch.classes) == target[:, None]
    return {
        "an ignored position": bool(ignored.any()),
        "a target out of range": bool((~ignored & ((target < 0) | (target >= batch.classes))).any()),
        "every position ignored": bool(ignored.all()) and bool(target.size),
        "an ignored row without a softmax": bool((ignored & undefined).any()),
        "a valid row without a softmax": bool((~ignored & undefined).any()),
        "a target at -inf": bool((minus & of_target)[~ignored].any()),
        "another class at -inf": bool((minus & ~of_target)[~ignored].any()),
        "logits beyond 1e9": bool((np.isfinite(rows) & (abs(rows) > 1e9)).any()),
    }


def of_deviations(implementation: Implementation, specification: Iterable[Case]) -> list[Situation]:
    """The situations in which an implementation is known to fail, from the shipped cases that do deviate here."""
    known, examiner = [], Examiner()
    for case in specification:
        aspects = () if case.question.mode == "compile" or case.is_huge else examiner.aspects(case, implementation)
        for aspect in aspects:
            deviation = implementation.deviation_for(case.id, aspect)
            if deviation is not None and examiner.examine(case, aspect, implementation).status == "deviates":
                core = _core(case, (aspect, deviation.fault), implementation)
                limit = np.inf if deviation.max_units is None else deviation.max_units
                known.append(Situation(aspect, deviation.fault, features(core, build(core)), limit, case.id))
    return _widest(known)


def _widest(known: list[Situation]) -> list[Situation]:
    """Without those that another one covers."""
    kept: list[Situation] = []
    for one in sorted(known, key=lambda s: (len(s.features), -s.max_units)):
        same = [s for s in kept if (s.aspect, s.fault) == (one.aspect, one.fault)]
        if not any(s.features <= one.features and s.max_units >= one.max_units for s in same):
            kept.append(one)
    return kept


def _core(case: Case, wanted: tuple[str, str], implementation: Implementation) -> Case:
    """A shipped case with nothing in it that it does not need to fail like this. Its id stays, and with it the values drawn from it."""
    if case.expects_error or build(case).input.numel() > LARGE:
        return case  # a question that must be refused has to stay what it is

    def still_fails(entry: Entry) -> Case | None:
        try:
            smaller = case.model_copy(update={"question": type(case.question).model_validate(entry)})
            found = failures(smaller, implementation, Examiner())
        except ValueError:  # what is left is not a question, or no batch can be made of it
            return None
        return smaller if any(kind(v) == wanted for v in found) else None

    entry = case.question.model_dump(exclude_unset=True)
    return still_fails(reduced(entry, [_with_fewer_positions, *without_keys()], still_fails)) or case


def _with_fewer_positions(entry: Entry) -> Entry | None:
    shape = list(entry["logits"].get("shape") or ())
    if len(shape) < 2 or shape[0] < 1000:
        return None
    return {**entry, "logits": {**entry["logits"], "shape": [500, *shape[1:]]}}
