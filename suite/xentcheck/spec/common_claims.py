"""Common claims about ``ignore_index``, and the cases that confirm or refute them: ``cases/answers.yaml``.

Each verdict on a claim names what a run must show.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from xentcheck.spec.case import Model
from xentcheck.spec.fields import Text
from xentcheck.spec.resources import cases_folder
from xentcheck.spec.validation import parsed

PATH = cases_folder() / "answers.yaml"


class Evidence(Model):
    """``case`` must end with ``status`` for ``implementation``; ``shows`` says what that means."""

    case: Text
    implementation: Text = "native"
    status: Literal["pass", "deviates", "unsupported"] = "pass"
    shows: Text


class Claim(Model):
    """What people say, whether it is right, and the evidence for this."""

    claim: Text
    verdict: Literal["confirmed", "refuted", "half true"]
    answer: Text
    evidence: Annotated[tuple[Evidence, ...], Field(min_length=1)]


class Topic(Model):
    """A question that people ask, and what is claimed in widely read answers to it. seed: its number in the page."""

    seed: Text
    question: Text
    claims: tuple[Claim, ...]


class _File(Model):
    answers: tuple[Topic, ...]


def load(path: Path = PATH) -> tuple[Topic, ...]:
    """The questions with their claims. Raises CaseFileError that lists every mistake with its line."""
    return parsed(_File, path).answers
