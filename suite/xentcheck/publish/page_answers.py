"""``answers.md``: questions and claims about ``ignore_index``, and what running them shows."""

from __future__ import annotations

from collections.abc import Sequence

from xentcheck.publish.page import LEGEND, Material
from xentcheck.results.markdown import table
from xentcheck.results.score import by_case, case_status
from xentcheck.run.verdict import Verdict
from xentcheck.spec.capabilities import GRADES
from xentcheck.spec.common_claims import Topic


def page(material: Material, topics: Sequence[Topic]) -> str:
    grouped = by_case(material.results.verdicts)
    sections = []
    for topic in topics:
        claims = [
            f"> Claim: {claim.claim}\n\n**{claim.verdict.capitalize()}.** {' '.join(claim.answer.split())}"
            for claim in topic.claims
        ]
        sections.append("\n\n".join([f"## {topic.question}", *claims, table(_evidence(material, topic, grouped))]))
    return material.page(
        "Answers",
        "Questions that people ask about `ignore_index`, and claims from widely read answers. Every claim is tested by cases; the tables show what each implementation did.",
        LEGEND,
        material.note_on_twins(),
        *sections,
    )


def unverified(topics: Sequence[Topic], material: Material) -> list[str]:
    """The evidence that these results do not confirm."""
    problems = []
    for topic in topics:
        for evidence in (e for claim in topic.claims for e in claim.evidence):
            if evidence.implementation not in material.claims:
                continue
            found = material.scores[evidence.implementation].statuses.get(evidence.case, "not run")
            if found != evidence.status:
                where = f"answers.yaml: seed {topic.seed}: {evidence.implementation} {evidence.case}"
                problems.append(f"{where}: expected {evidence.status}, found {found}")
    return problems


def _evidence(material: Material, topic: Topic, grouped: dict[tuple[str, str], list[Verdict]]) -> list[dict[str, str]]:
    """A row for each case that is evidence: the first two implementations in columns, the others grouped by outcome."""
    first, rest = material.names[:2], material.names[2:]
    rows = {}
    for evidence in (e for claim in topic.claims for e in claim.evidence):
        outcomes: dict[str, list[str]] = {}
        for name in rest:
            outcomes.setdefault(_outcome(grouped.get((name, evidence.case), [])), []).append(f"`{name}`")
        ordered = sorted(outcomes.items(), key=lambda item: item[0][0] != "✓")
        others = "; ".join(f"{outcome}: {', '.join(n) if len(n) < len(rest) else 'all'}" for outcome, n in ordered)
        rows[evidence.case] = {
            "case": f"`{evidence.case}`",
            "what it shows": evidence.shows,
            **{f"`{name}`": _outcome(grouped.get((name, evidence.case), [])) for name in first},
            **({"others": others} if rest else {}),
        }
    return list(rows.values())


def _outcome(verdicts: list[Verdict]) -> str:
    """``✓ zero``, ``△ (gradient nan)``."""
    if not verdicts:
        return "not run"
    status = case_status(verdicts)
    answers = sorted({a for v in verdicts for c, a in v.conventions.items() if c not in ("half_loss_dtype", *GRADES)})
    faults = [f"{v.aspect} {v.kind}" for v in verdicts if v.status == status and v.kind]
    return " ".join([status.symbol, *answers, *([f"({', '.join(dict.fromkeys(faults))})"] if faults else [])])
