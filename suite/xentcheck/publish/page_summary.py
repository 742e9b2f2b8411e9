"""The first page, ``reports/README.md``, and the excerpt of it on the front page of the project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xentcheck.publish.page import Material
from xentcheck.results.markdown import count, table
from xentcheck.results.record import RecordError
from xentcheck.results.score import left_out
from xentcheck.run import status
from xentcheck.run.units import ALLOWED_UNITS
from xentcheck.run.verdict import counted
from xentcheck.spec.capabilities import CAPABILITIES

EXCERPT = ("<!-- excerpt of reports/README.md -->", "<!-- end of the excerpt -->")
FRONT = (
    "native",
    "maskedce",
    "masked_mean",
    "linear_cross_entropy",
)  # on the front page: a library's own, ours, two that are wrong
# Pages that other commands make; named where they are.
FURTHER = {
    "mutants.md": "[mutants](mutants.md): which case catches which wrong loss (`make mutants`)",
    "older-torch.md": "[older torch](older-torch.md): what is different there (`make older-torch`)",
    "speed.md": "[speed](speed.md): time in comparison with native (`make speed`)",
    "memory.md": "[memory](memory.md): bytes in comparison with native (`make speed`)",
    "gate.md": "[gate](gate.md): how often the gate on costs is right (`make gate-trials`)",
}


def page(material: Material, further: frozenset[str]) -> str:
    """further: the files of pages that other commands made."""
    missing = ", ".join(
        f"{aspect} of {count(n, 'case')}" for aspect, n in left_out(material.results.verdicts, material.cases).items()
    )
    others = "".join(f"\n- {line}" for name, line in FURTHER.items() if name in further)
    number = material.frame["case"].nunique()
    return material.page(
        "Is this cross entropy right?",
        f"{count(number, 'case')}, each judged for loss, gradient, shape and dtype, rejection of bad input, and purity (nothing but the result changes). "
        "A case is right if all of these are.",
        f"> **Not everything was judged:** {missing} left out." if missing else "",
        table(_row(material, name) for name in material.names),
        "**right**: cases that pass, of those that the implementation claims to answer. **wrong, known**: in a way that is documented in "
        "[deviations](deviations.md). **wrong, new**: in any other way. **not offered**: the case needs what the implementation does not claim; "
        "it was not asked, and counts as neither right nor wrong. **capabilities**: how many of those that the suite knows it claims. "
        "**largest error**: of a right loss or gradient, in units of what rounding alone can cause "
        f"(allowed: {ALLOWED_UNITS['float32']:g} for float64 and float32, {ALLOWED_UNITS['bfloat16']:g} for bfloat16 and float16). {material.note_on_twins()}",
        table(
            {"implementation": f"`{name}`", "what it is": _about(material, name)} for name in sorted(material.claims)
        ),
        "## Pages\n\n"
        "- [conformance](conformance.md): which clause holds for which implementation\n"
        "- [deviations](deviations.md): what is known to be wrong, by cause, with evidence and scripts\n"
        "- [accuracy](accuracy.md): the error in units, by dtype\n"
        "- [conventions](conventions.md): which answer each gives where several are defensible\n"
        "- [answers](answers.md): common questions and claims about `ignore_index`, answered by running them\n"
        "- [wild bugs](wild-bugs.md): bugs reported of real losses, and the cases that catch them" + others,
        "Made by `make conform` from [record.jsonl.gz](record.jsonl.gz), which holds every verdict; `xentcheck report DIR --to reports` makes the pages from any results.",
        _environment(material),
    )


def with_excerpt(material: Material, path: Path) -> str:
    """The text of the file with the table between its excerpt marks made anew. Raises RecordError where it has none."""
    text = path.read_text(encoding="utf-8")
    before, mark, rest = text.partition(EXCERPT[0])
    _, end, after = rest.partition(EXCERPT[1])
    if not mark or not end:
        raise RecordError(f"{path}: expected the marks {EXCERPT[0]} and {EXCERPT[1]} around the excerpt; found none")
    return f"{before}{mark}\n\n{_front(material)}\n\n{end}{after}"


def _front(material: Material) -> str:
    chosen = [name for name in FRONT if name in material.claims] or list(material.claims)[: len(FRONT)]
    rows = []
    for name in chosen:
        groups = material.scores[name].groups
        new = {"wrong in a new way": _cases(groups[status.FAILED])} if groups[status.FAILED] else {}
        away = {"not available": _cases(groups[status.UNAVAILABLE])} if groups[status.UNAVAILABLE] else {}
        rows.append(
            {
                "implementation": f"`{name}`",
                "what it is": _about(material, name),
                "right": f"{_right(material, name)} cases",
                "wrong in a known way": _cases(groups[status.DEVIATING]),
                "not offered": _cases(groups[status.UNSUPPORTED]),
                **new,
                **away,
            }
        )
    return table(rows)


def _row(material: Material, name: str) -> dict[str, Any]:
    score = material.scores[name]
    groups = score.groups
    away = (
        {"not available here": groups[status.UNAVAILABLE]}
        if any(s.groups[status.UNAVAILABLE] for s in material.scores.values())
        else {}
    )
    return {
        "implementation": material.label(name),
        "right": _right(material, name),
        "wrong, known": groups[status.DEVIATING],
        "wrong, new": groups[status.FAILED],
        "not offered": groups[status.UNSUPPORTED],
        **away,
        "capabilities": f"{len(material.claims[name]['capabilities'])} of {len(CAPABILITIES)}",
        "largest error": "" if score.worst_units is None else counted(round(score.worst_units, 1), "unit"),
    }


def _right(material: Material, name: str) -> str:
    return f"{material.scores[name].passed} of {material.scores[name].asked}"


def _cases(number: int) -> str:
    return count(number, "case") if number else "none"


def _about(material: Material, name: str) -> str:
    return material.claims[name]["description"].replace("``", "`")


def _environment(material: Material) -> str:
    run = material.results.run
    facts = [f"{name} {value}" for name, value in run["environment"].items() if value not in (None, {}, "")]
    versions = [f"{name} {claims['version']}".rstrip() for name, claims in sorted(material.claims.items())]
    return "\n".join(
        (
            f"Started {run['started']}; edition {run['edition']}; cases `{run['cases']}`.",
            f"{', '.join(facts)}.",
            f"Versions: {', '.join(versions)}.",
        )
    )
