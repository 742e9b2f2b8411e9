"""``conventions.md``: the answers given where several are defensible."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from xentcheck.publish.behaviour import EXTREMES, OPTIONS, answers
from xentcheck.publish.page import Material
from xentcheck.publish.page_field import is_measured, link
from xentcheck.results.markdown import count, listed, table
from xentcheck.run.status import Status
from xentcheck.spec.capabilities import CONVENTIONS, GRADES

OPEN = [name for name in CONVENTIONS if name not in GRADES]  # the grades are on the page of accuracy


def page(material: Material, field: Material | None = None) -> str:
    """material: the record of the shipped implementations. field: that of other libraries."""
    questions = [
        {"convention": f"`{name}`", "question": question, "answers": listed(answers, "or")}
        for name, (question, answers) in CONVENTIONS.items()
        if name in OPEN
    ]
    return material.page(
        "Conventions",
        "Questions with several defensible answers. An implementation that states its answer is held to it; one that states none may give any of them.",
        table(questions),
        "The answers given, each with the number of cases. **bold**: stated by the implementation.",
        material.note_on_twins(),
        table(
            {"implementation": material.label(name), **{c: _seen(material, name, c) for c in OPEN}}
            for name in material.names
        ),
        *_behaviour(material, field),
    )


def _behaviour(material: Material, field: Material | None) -> Iterator[str]:
    """What all of them do, other libraries included, in words."""
    if field is None:
        return
    yield (
        "## Who does what\n\nWhere losses differ, by what they were seen to do; numbers of answers where one loss gives several. Empty: not offered, or not asked. "
        "*an error* is what a bad call must give; elsewhere it means that the loss does not answer."
    )
    for questions in (EXTREMES, OPTIONS):
        yield table(
            {"implementation": label, **{q.title: answers(record, name, q) for q in questions}}
            for record, name, label in (
                *((material, name, material.label(name)) for name in material.names),
                *((field, name, link(name)) for name in field.claims if is_measured(field, name)),
            )
        )


def _seen(material: Material, name: str, convention: str) -> str:
    stated = material.claims[name]["conventions"].get(convention)
    cases = {
        (v.conventions[convention], v.case)
        for v in material.results.verdicts
        if v.implementation == name and v.status is Status.PASS and convention in v.conventions
    }
    seen = Counter(answer for answer, _ in cases)
    if not seen:
        return f"**{stated}** (not seen)" if stated else ""
    return listed(
        f"{f'**{answer}**' if answer == stated else answer} ({count(n, 'case')})" for answer, n in sorted(seen.items())
    )
