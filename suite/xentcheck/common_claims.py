"""Questions and claims about ``ignore_index``, and the cases that answer them: ``cases/answers.yaml``.

A verdict on a claim is not taken on trust: each names what the run must show, and ``unverified`` lists where it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from xentcheck.case import Model
from xentcheck.loader import CASES
from xentcheck.record import Results
from xentcheck.terminal import by_case, status_of
from xentcheck.yaml_document import CaseFileError, read


class Evidence(Model):
    """``case`` must end with ``status`` for ``implementation``; ``shows`` says what that means."""

    case: str
    implementation: str = "native"
    status: Literal["pass", "deviates", "unsupported"] = "pass"
    shows: str


class Claim(Model):
    claim: str
    verdict: Literal["confirmed", "refuted", "half true"]
    answer: str
    evidence: Annotated[tuple[Evidence, ...], Field(min_length=1)]


class Answer(Model):
    seed: str
    question: str
    claims: tuple[Claim, ...]


class _File(Model):
    answers: tuple[Answer, ...]


def load(path: Path = CASES / "answers.yaml") -> tuple[Answer, ...]:
    try:
        return _File.model_validate(read(path).value).answers
    except ValidationError as error:
        first = error.errors()[0]
        raise CaseFileError(
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; found {first['input']!r:.80}"
        ) from error


def unverified(answers: Sequence[Answer], results: Results) -> list[str]:
    """The evidence that these results do not bear out, or do not hold."""
    grouped, problems = by_case(results.verdicts), []
    for answer in answers:
        for evidence in (e for claim in answer.claims for e in claim.evidence):
            if evidence.implementation not in results.run["implementations"]:
                continue
            verdicts = grouped.get((evidence.implementation, evidence.case))
            status = status_of(verdicts) if verdicts else "not run"
            if status != evidence.status:
                problems.append(
                    f"answers.yaml: seed {answer.seed}: {evidence.implementation} {evidence.case}: expected {evidence.status}, found {status}"
                )
    return problems


def evidence_table(
    answer: Answer, results: Results, names: Sequence[str], symbols: dict[str, str]
) -> list[dict[str, str]]:
    """A row for each case that is evidence, and how every implementation fared in it."""
    grouped, rows = by_case(results.verdicts), {}
    for evidence in (e for claim in answer.claims for e in claim.evidence):
        row = rows.setdefault(evidence.case, {"case": f"`{evidence.case}`", "what it shows": evidence.shows})
        for name in names:
            verdicts = grouped.get((name, evidence.case))
            if not verdicts:
                row[name] = "not run"
                continue
            status = status_of(verdicts)
            answers = sorted({a for v in verdicts for c, a in v.conventions.items() if c != "half_loss_dtype"})
            faults = sorted({f"{v.aspect} {v.fault}" for v in verdicts if v.status == status and v.fault})
            row[name] = " ".join([symbols[status], *answers, *faults])
    return list(rows.values())
