"""What an implementation achieved, computed once from verdicts for the terminal, the pages and the gate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from xentcheck.run import status
from xentcheck.run.status import GROUPS, Status
from xentcheck.run.verdict import Verdict
from xentcheck.spec.case import RELATIONS, Case


@dataclass(frozen=True)
class Score:
    """statuses: of each case. relations_held, relations_asked: pairs of a case and a relation. worst_units: the largest error of a loss or
    gradient that passed in the best grades of accuracy; None where none has one. as_native: how many cases deviate exactly as native does."""

    implementation: str
    statuses: Mapping[str, Status]
    relations_held: int
    relations_asked: int
    worst_units: float | None
    as_native: int = 0

    @property
    def groups(self) -> dict[str, int]:
        """How many cases ended in each group of statuses."""
        found = Counter(one.group for one in self.statuses.values())
        return {group: found[group] for group in GROUPS}

    @property
    def passed(self) -> int:
        return self.groups[status.PASSED]

    @property
    def asked(self) -> int:
        """How many cases the implementation claims to answer, and could be asked here."""
        return sum(one.was_asked for one in self.statuses.values())


def scores(verdicts: Iterable[Verdict]) -> dict[str, Score]:
    """By implementation, in the order in which they appear."""
    grouped: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        grouped.setdefault(verdict.implementation, []).append(verdict)
    return {name: _score(name, found) for name, found in grouped.items()}


def by_case(verdicts: Iterable[Verdict]) -> dict[tuple[str, str], list[Verdict]]:
    """The verdicts of each implementation and case."""
    grouped: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        grouped.setdefault((verdict.implementation, verdict.case), []).append(verdict)
    return grouped


def case_status(verdicts: Iterable[Verdict]) -> Status:
    """A case's status, from its own aspects.

    Relations to other batches are counted beside it, whether they fail or are known not to hold: one that does not hold does so in every
    case that it applies to.
    """
    verdicts = list(verdicts)
    own = [v.status for v in verdicts if v.aspect not in RELATIONS]
    return status.of_case(own or [v.status for v in verdicts])


def left_out(verdicts: Iterable[Verdict], cases: Iterable[Case]) -> dict[str, int]:
    """For each aspect how many answers were not judged in it, as with ``-k`` or a single test file; empty if none.

    A case that passes does so only in what it was asked.
    """
    own = {case.id: case.aspects for case in cases}
    missing = Counter(
        aspect
        for (_, case), found in by_case(verdicts).items()
        for aspect in {*own.get(case, ())} - {v.aspect for v in found}
    )
    return dict(sorted(missing.items()))


def _score(name: str, verdicts: list[Verdict]) -> Score:
    relations = [v for v in verdicts if v.aspect in RELATIONS and v.status.was_asked]
    right = [v for v in verdicts if v.status is Status.PASS and not v.lower_grades]
    return Score(
        name,
        {case: case_status(found) for (_, case), found in by_case(verdicts).items()},
        sum(v.status is Status.PASS for v in relations),
        len(relations),
        max((v.error_units for v in right if v.error_units is not None), default=None),
        len({v.case for v in verdicts if v.same_as and v.aspect not in RELATIONS}),
    )
