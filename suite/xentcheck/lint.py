"""What makes a valid case file a poor specification: cases that cannot fail, or that say something else than they mean.

Validation (``loader``) says whether a file can be read; ``lint`` says whether its cases are worth running.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np

from xentcheck.batch import Batch
from xentcheck.case import Case, Clause
from xentcheck.compare import ALLOWED_UNITS
from xentcheck.examine import Examiner
from xentcheck.loader import CaseFileError
from xentcheck.patterns import nearest
from xentcheck.reference import Array

MAX_TITLE, MAX_REQUIREMENT = 70, 240
# Words for an answer that is meant to be weak, or to be zero.
_MEANT = frozenset({"zero", "empty-mean", "unspecified"})
_WORDS = {"zero": 0.0, "nan": np.nan, "inf": np.inf}


def lint(cases: Iterable[Case], mutants: Collection[str] | None = None) -> list[str]:
    """What is wrong with the cases, as ``file:line: case id: found and expected``; an empty list if nothing is.

    mutants: the names of the known wrong implementations; with them, each ``kills`` must be one of these.
    """
    examiner = Examiner()
    found: dict[tuple[str, str], str] = {}
    for case in cases:
        for text in _about_the_clause(case.clause, case):
            found.setdefault((f"{case.path}", text), f"{case.path}:1: clause {case.clause.clause}: {text}")
        for text in _about_the_case(case, examiner, mutants):
            # All of a matrix stands on one line: the first of its cases speaks for the rest.
            found.setdefault((f"{case.path}:{case.line}", text), f"{case.path}:{case.line}: case {case.id}: {text}")
    return list(found.values())


def _about_the_clause(clause: Clause, case: Case) -> Iterator[str]:
    if case.path.stem != clause.clause:
        yield f"expected a file of the clause's name, {clause.clause}.yaml; found {case.path.name}"
    if len(clause.title) > MAX_TITLE:
        yield f"title: expected at most {MAX_TITLE} characters; found {len(clause.title)}"
    wrong = re.search(r"\bshould\b|\btests? that\b", clause.title, re.IGNORECASE)
    if wrong:
        yield f"title: expected a statement of how things are; found {wrong.group()!r}"
    if len(clause.requirement) > MAX_REQUIREMENT:
        yield f"requirement: expected at most {MAX_REQUIREMENT} characters; found {len(clause.requirement)}"
    if not clause.requirement.endswith(".") or re.search(r"[.!?]\s+[A-Z]", clause.requirement):
        yield "requirement: expected one sentence that ends with a full stop"
    if not any(re.match(r"https?://\S+$", source) for source in clause.sources):
        yield "sources: expected at least one URL"


def _about_the_case(case: Case, examiner: Examiner, mutants: Collection[str] | None) -> Iterator[str]:
    for name in case.kills if mutants is not None else ():
        if name.replace("-", "_") not in mutants and name not in mutants:
            yield f"kills: there is no wrong implementation {name!r}{nearest(name, mutants or ())}"
    try:
        batch = examiner.batch(case)
    except CaseFileError as error:
        yield str(error).rpartition(f"case {case.id}: ")[2]
        return
    if case.expects_error:
        return
    valid = batch.valid
    yield from _about_the_target(case, batch, valid)
    yield from _about_the_answer(case, examiner, valid)


def _about_the_target(case: Case, batch: Batch, valid: Array) -> Iterator[str]:
    question, spec = case.question, case.question.target
    if spec.values is not None or spec.file is not None or batch.has_probabilities or not valid.size:
        return  # literal targets show what they hold
    target = batch.target.numpy().reshape(-1)
    said = spec.ignore.rows if spec.ignore else None
    if said not in ("all", "none") and (spec.ignore or question.ignore_index is not None):
        if valid.all():
            yield "target: expected an ignored position; found none. If that is the point, say `ignore: none`"
        elif not valid.any():
            yield "target: expected a position that counts; found none. If that is the point, say `ignore: all`"
        absent = sorted(set(batch.ignore_values) - set(target.tolist()))
        if absent and len(batch.ignore_values) > 1 and spec.ignore and spec.ignore.value is None:
            yield f"target: expected each ignore value to occur; missing {absent}. If meant, say so with `value`"
    if valid.any() and spec.layout != "expanded":
        usable = np.isfinite(batch.logits[valid]).all(axis=0) & ~np.isin(np.arange(batch.classes), batch.ignore_values)
        last = int(np.flatnonzero(usable)[-1]) if usable.any() else -1
        if target[valid].max() < last:
            yield f"target: expected some target in the last class, {last}, where mistakes by one show"


def _about_the_answer(case: Case, examiner: Examiner, valid: Array) -> Iterator[str]:
    truth, expect = examiner.truth(case, {}), case.question.expect
    answers = [("loss", expect.loss, truth.loss, truth.loss_unit)]
    if case.has_gradient:
        answers.append(("gradient", expect.gradient, truth.gradient, truth.gradient_unit))
    for name, said, reference, unit in answers:
        exact = reference.astype(np.float64)
        allowed = ALLOWED_UNITS[case.question.dtype] * unit.astype(np.float64)
        if said == "empty-mean" and valid.any():
            yield f"expect.{name}: empty-mean is the mean over no position; found {int(valid.sum())} that count"
        expected = _expected(said, exact)
        if expected.shape != exact.shape:
            yield f"expect.{name}: expected the shape {exact.shape}; found {expected.shape}"
            continue
        if said != "finite":
            yield from _disagreement(name, expected, exact, allowed)
        if valid.any() and not (isinstance(said, str) and said in _MEANT) and _zero_would_do(name, expected, allowed):
            yield f"expect.{name}: expected an answer that zero does not satisfy; say `zero` if zero is right"


def _expected(said: Any, exact: Array) -> Array:
    """The expected values: what is right, unless the case says something else; zeros where any finite value will do."""
    if isinstance(said, str):
        words = _WORDS | {"finite": 0.0}
        return np.full(exact.shape, words[said]) if said in words else exact
    literal = np.asarray(said, dtype=np.float64)
    return literal if literal.ndim else np.broadcast_to(literal, exact.shape)


def _disagreement(name: str, expected: Array, exact: Array, allowed: Array) -> Iterator[str]:
    # What is not finite may be a convention's answer; the others follow from the definition.
    with np.errstate(invalid="ignore"):
        wrong = np.isfinite(exact) & ~(abs(expected - exact) <= allowed)
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        at = f" at {list(where)}" if where else ""
        yield f"expect.{name}: expected {float(exact[where])!r} by the definition{at}; found {float(expected[where])!r}"


def _zero_would_do(name: str, expected: Array, allowed: Array) -> bool:
    judged = ~np.isnan(expected) if name == "gradient" else np.ones(expected.shape, dtype=bool)
    return bool((np.isfinite(expected) & (abs(expected) <= allowed))[judged].all())
