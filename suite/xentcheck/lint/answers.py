"""Cases that cannot fail, or that ask for another answer than they mean: found by their batches and by the definition, with torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from xentcheck.reference.definition import ALLOWED_UNITS
from xentcheck.run.examiner import Examiner
from xentcheck.spec.batch import Batch
from xentcheck.spec.capabilities import CONVENTIONS, GRADES
from xentcheck.spec.case import FIXED_ANSWERS, Case
from xentcheck.spec.mistakes import CaseFileError

# Words for an answer that is meant to be weak, or to be zero.
_MEANT = frozenset({"zero", "empty-mean", "unspecified"})

Array = np.ndarray
Found = Iterator[tuple[str, str]]  # key and text


def about_the_case(case: Case, examiner: Examiner) -> Found:
    """What the batch and the definition show of one case."""
    try:
        batch = examiner.batch(case)
    except CaseFileError as error:
        yield from ((mistake.key, mistake.text) for mistake in error.mistakes)
        return
    if not case.expects_error:
        yield from _about_the_target(case, batch, batch.valid)
        yield from _about_the_answer(case, examiner, batch.valid)


def _about_the_target(case: Case, batch: Batch, valid: Array) -> Found:
    question, spec = case.question, case.question.target
    if spec.values is not None or spec.file is not None or batch.has_probabilities or not valid.size:
        return  # literal targets show what they hold
    target = batch.target.numpy().reshape(-1)
    chosen = spec.ignore.rows if spec.ignore else None
    if chosen not in ("all", "none") and (spec.ignore or question.ignore_index is not None):
        if valid.all():
            yield "target", "expected an ignored position; found none. If that is intended, write `ignore: none`"
        elif not valid.any():
            yield "target", "expected a position that counts; found none. If that is intended, write `ignore: all`"
        absent = sorted(set(batch.ignore_values) - set(target.tolist()))
        if absent and len(batch.ignore_values) > 1 and spec.ignore and spec.ignore.value is None:
            yield "target", f"expected each ignore value to occur; missing {absent}. If that is intended, give `value`"
    if valid.any() and spec.layout != "expanded":
        usable = np.isfinite(batch.logits[valid]).all(axis=0) & ~np.isin(np.arange(batch.classes), batch.ignore_values)
        last = int(np.flatnonzero(usable)[-1]) if usable.any() else -1
        if target[valid].max() < last:
            yield "target", f"expected some target in the last class, {last}, where mistakes by one show"


def _about_the_answer(case: Case, examiner: Examiner, valid: Array) -> Found:
    best = {name: CONVENTIONS[name][1][0] for name in GRADES}
    truth, expect = examiner.truth(case, best), case.question.expect
    answers = [("loss", expect.loss, truth.loss, truth.loss_unit)]
    if case.has_gradient:
        answers.append(("gradient", expect.gradient, truth.gradient, truth.gradient_unit))
    for name, answer, reference, unit in answers:
        key, exact = f"expect.{name}", reference.astype(np.float64)
        allowed = ALLOWED_UNITS[case.question.dtype] * unit.astype(np.float64)
        if answer == "empty-mean" and valid.any():
            yield key, f"empty-mean is the mean over no position; found {int(valid.sum())} that count"
        expected = _expected(answer, exact)
        if expected.shape != exact.shape:
            yield key, f"expected the shape {exact.shape}; found {expected.shape}"
            continue
        if answer != "finite":
            yield from _disagreement(key, expected, exact, allowed)
        is_meant = (isinstance(answer, str) and answer in _MEANT) or (name, expect.loss) == ("gradient", "zero")
        must_show = valid.any() and not is_meant
        if must_show and _zero_would_do(name, expected, allowed):
            yield key, "expected an answer that zero does not satisfy; write `zero` if zero is right"


def _expected(answer: Any, exact: Array) -> Array:
    """The expected values: those of the definition, unless the case gives others; zeros where any finite value will do."""
    if isinstance(answer, str):
        values = FIXED_ANSWERS | {"finite": 0.0}
        return np.full(exact.shape, values[answer]) if answer in values else exact
    literal = np.asarray(answer, dtype=np.float64)
    return literal if literal.ndim else np.broadcast_to(literal, exact.shape)


def _disagreement(key: str, expected: Array, exact: Array, allowed: Array) -> Found:
    # What is not finite may be a convention's answer; the others follow from the definition.
    with np.errstate(invalid="ignore"):
        wrong = np.isfinite(exact) & ~(abs(expected - exact) <= allowed)
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        at = f" at {list(where)}" if where else ""
        yield key, f"expected {float(exact[where])!r} by the definition{at}; found {float(expected[where])!r}"


def _zero_would_do(name: str, expected: Array, allowed: Array) -> bool:
    judged = ~np.isnan(expected) if name == "gradient" else np.ones(expected.shape, dtype=bool)
    return bool((np.isfinite(expected) & (abs(expected) <= allowed))[judged].all())
