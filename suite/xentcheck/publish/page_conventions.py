"""``conventions.md``: the answers given where several are defensible."""

from __future__ import annotations

from collections import Counter

from xentcheck.publish.page import Material
from xentcheck.results.markdown import count, listed, table
from xentcheck.run.status import Status
from xentcheck.spec.capabilities import CONVENTIONS, GRADES

OPEN = [name for name in CONVENTIONS if name not in GRADES]  # the grades are on the page of accuracy


def page(material: Material) -> str:
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
