"""Common claims about ``ignore_index``, and the cases that confirm or refute them: ``cases/answers.yaml``.

No verdict on a claim is taken on trust: each names what a run must show, and ``unverified`` lists what it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from xentcheck.case import Model
from xentcheck.record import Results
from xentcheck.resources import cases_folder
from xentcheck.terminal import by_case, status_of
from xentcheck.validation import parsed

PATH = cases_folder() / "answers.yaml"


class Evidence(Model):
    """``case`` must end with ``status`` for ``implementation``; ``shows`` says what that means."""

    case: str
    implementation: str = "native"
    status: Literal["pass", "deviates", "unsupported"] = "pass"
    shows: str


class Claim(Model):
    """What people say, whether it is right, and the evidence for this."""

    claim: str
    verdict: Literal["confirmed", "refuted", "half true"]
    answer: str
    evidence: Annotated[tuple[Evidence, ...], Field(min_length=1)]


class Topic(Model):
    """A question that people ask, and what is claimed in widely read answers to it. seed: its number in the page."""

    seed: str
    question: str
    claims: tuple[Claim, ...]


class _File(Model):
    answers: tuple[Topic, ...]


def load(path: Path = PATH) -> tuple[Topic, ...]:
    """The questions with their claims. Raises CaseFileError that lists every mistake with its line."""
    return parsed(_File, path).answers


def unverified(topics: Sequence[Topic], results: Results) -> list[str]:
    """The evidence that these results contradict or lack, as messages."""
    grouped, problems = by_case(results.verdicts), []
    for topic in topics:
        for evidence in (e for claim in topic.claims for e in claim.evidence):
            if evidence.implementation not in results.run["implementations"]:
                continue
            verdicts = grouped.get((evidence.implementation, evidence.case))
            status = status_of(verdicts) if verdicts else "not run"
            if status != evidence.status:
                problems.append(
                    f"answers.yaml: seed {topic.seed}: {evidence.implementation} {evidence.case}: expected {evidence.status}, found {status}"
                )
    return problems


def evidence_table(
    topic: Topic, results: Results, names: Sequence[str], symbols: dict[str, str]
) -> list[dict[str, str]]:
    """A row for each case that is evidence, with the status of every implementation in it."""
    grouped, rows = by_case(results.verdicts), {}
    for evidence in (e for claim in topic.claims for e in claim.evidence):
        row = rows.setdefault(evidence.case, {"case": f"`{evidence.case}`", "what it shows": evidence.shows})
        for name in names:
            verdicts = grouped.get((name, evidence.case))
            if not verdicts:
                row[name] = "not run"
                continue
            status = status_of(verdicts)
            answers = sorted({a for v in verdicts for c, a in v.conventions.items() if c != "half_loss_dtype"})
            faults = sorted({f"{v.aspect} {v.kind}" for v in verdicts if v.status == status and v.kind})
            row[name] = " ".join([symbols[status], *answers, *faults])
    return list(rows.values())
