"""What implementations do where answers differ, in a few words each: a question, the cases that ask it, and how the answers are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from xentcheck.publish.page import Material
from xentcheck.run.status import Status
from xentcheck.run.verdict import Verdict
from xentcheck.spec.case import Aspect, Case
from xentcheck.spec.patterns import matches

_KINDS = {
    "nan": "NaN",
    "inf": "an infinite one",
    "value": "another number",
    "nonzero": "not zero",
    "raised": "an error",
    "accepted": "some number",
    "missing": "nothing",
    "shape": "another shape",
    "dtype": "another dtype",
    "changed": "changes its arguments",
    "unstable": "now this, now that",
    "crash": "the process dies",
    "timeout": "no answer in time",
}
_REFUSALS = {"nan": "NaN", "nothing": "some number"}


@dataclass(frozen=True)
class Question:
    """title: of its column. asks: which cases ask it. aspects: in which aspects they are looked at. right: what a pass is called;
    convention: or the convention whose answer is shown."""

    title: str
    asks: Callable[[Case], bool]
    aspects: tuple[Aspect, ...] = ("loss",)
    right: str = ""
    convention: str = ""


def _of(pattern: str, reduction: str = "") -> Callable[[Case], bool]:
    return lambda case: (
        matches(pattern, case.id) and (not reduction or (case.question.reduction or "mean") == reduction)
    )


def _everything(case: Case) -> bool:
    return True


BAD_INPUT, IGNORED_NAN, ALL_IGNORED = "target out of range", "NaN, inf at ignored", "all ignored: the mean is"
EXTREMES = (
    Question(ALL_IGNORED, _of("all-ignored", "mean"), convention="empty_mean"),
    Question("empty batch: the mean is", _of("empty-batch", "mean"), convention="empty_mean"),
    Question(IGNORED_NAN, _of("ignored-nonfinite"), ("loss", "gradient"), right="no trace"),
    Question("-inf at some classes", _of("minus-infinity"), ("loss", "gradient"), right="right"),
    Question("+inf: the loss is", _everything, convention="infinite_row"),
    Question(BAD_INPUT, _of("bad-input/*target*"), ("rejection",), right="an error"),
)
OPTIONS = (
    Question("the mean divides by", _of("ignored-positions", "mean"), right="positions that count"),
    Question("weighted, by", _of("class-weights", "mean"), right="their weights"),
    Question(
        "smoothing",
        lambda case: bool(case.question.label_smoothing) and _of("label-smoothing")(case),
        right="s / C for every class",
    ),
    Question("option not offered", _of("unclaimed-options"), ("rejection",), right="an error"),
    Question("int32 targets", _everything, convention="int32_target"),
    Question("dtype of a half loss", _everything, ("loss", "shape"), convention="half_loss_dtype"),
)


def answers(material: Material, name: str, question: Question) -> str:
    """The answers of an implementation, the most frequent first: ``NaN (6), right``; empty where none was given."""
    cases = _cases(material, question)
    frame = material.frame
    given = frame[
        (frame["implementation"] == name) & frame["case"].isin(cases) & frame["aspect"].isin(question.aspects)
    ]
    refusal = _REFUSALS.get(material.claims[name].get("refuses", ""), "")
    words = Counter(word for v in given["verdict"] if (word := _word(v, question, refusal)))
    few = len(words) < 2
    return ", ".join(word if few else f"{word} ({n})" for word, n in words.most_common(3))


def _cases(material: Material, question: Question) -> set[str]:
    return {case.id for case in material.cases if question.asks(case)}


def _word(verdict: Verdict, question: Question, refusal: str) -> str:
    by_adapter = " by the adapter" if verdict.by_adapter and question.convention else ""
    if verdict.status is Status.PASS:
        answer = verdict.conventions.get(question.convention, "") if question.convention else question.right
        return answer + by_adapter if answer else ""
    if not verdict.status.was_asked:
        return refusal if verdict.aspect == "rejection" and verdict.status is Status.UNSUPPORTED else ""
    if question.convention in ("half_loss_dtype", "int32_target", "infinite_row"):
        return ""  # what fails there does so for other reasons
    return _KINDS.get(verdict.kind or str(verdict.status), str(verdict.status)) + by_adapter
