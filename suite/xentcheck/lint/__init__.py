"""What makes a valid case file a poor specification: a clause that does not read well, cases that cannot fail or mean something else.

Validation (``loader``) finds out whether a file can be read; ``lint`` finds out whether its cases are worth running.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from xentcheck.spec.case import Case, Clause
from xentcheck.spec.mistakes import Mistake
from xentcheck.spec.patterns import nearest

MAX_TITLE, MAX_REQUIREMENT = 70, 240


def lint(cases: Iterable[Case], mutants: Collection[str] | None = None, answers: bool = True) -> list[Mistake]:
    """What should be improved in the cases; an empty list if nothing should.

    Args:
        cases: as loaded. Those of one matrix have one line; only the first that has a mistake is named.
        mutants: the names of the known wrong losses; with them, each ``kills`` must be one of these.
        answers: whether to build the batches and to compare what is expected with the definition. This imports torch and takes seconds.
    """
    found: dict[tuple[Any, ...], Mistake] = {}
    if answers:
        from xentcheck.lint.answers import about_the_case
        from xentcheck.run.examiner import Examiner

        examiner = Examiner()
    for case in cases:
        for key, text in _about_the_clause(case.clause, case):
            found.setdefault((case.path, key, text), Mistake(text, case.path, 1, key=key))
        about_case = [*_about_kills(case, mutants), *(about_the_case(case, examiner) if answers else ())]
        for key, text in about_case:
            found.setdefault((case.path, case.line, key, text), Mistake(text, case.path, case.line, case.id, key))
    return list(found.values())


def _about_the_clause(clause: Clause, case: Case) -> Iterator[tuple[str, str]]:
    if case.path.stem != clause.clause:
        yield "clause", f"expected a file of the clause's name, {clause.clause}.yaml; found {case.path.name}"
    if len(clause.title) > MAX_TITLE:
        yield "title", f"expected at most {MAX_TITLE} characters; found {len(clause.title)}"
    wrong = re.search(r"\bshould\b|\btests? that\b", clause.title, re.IGNORECASE)
    if wrong:
        yield "title", f"expected a statement of how things are; found {wrong.group()!r}"
    if len(clause.requirement) > MAX_REQUIREMENT:
        yield "requirement", f"expected at most {MAX_REQUIREMENT} characters; found {len(clause.requirement)}"
    if not clause.requirement.endswith(".") or re.search(r"[.!?]\s+[A-Z]", clause.requirement):
        yield "requirement", "expected one sentence that ends with a full stop"
    if not any(re.match(r"https?://\S+$", source) for source in clause.sources):
        yield "sources", "expected at least one URL"


def _about_kills(case: Case, mutants: Collection[str] | None) -> Iterator[tuple[str, str]]:
    if mutants is None:
        return
    for name in case.kills:
        if name.replace("-", "_") not in mutants and name not in mutants:
            yield "kills", f"there is no wrong loss {name!r}{nearest(name, mutants)}"
