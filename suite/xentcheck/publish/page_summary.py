"""The first page, ``reports/README.md``, and the excerpt of it on the front page of the project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xentcheck.publish.page import Material
from xentcheck.reference.definition import ALLOWED_UNITS
from xentcheck.results.markdown import cell, count, table
from xentcheck.results.record import RecordError
from xentcheck.results.score import left_out
from xentcheck.run import status
from xentcheck.run.verdict import counted
from xentcheck.spec.capabilities import CAPABILITIES

EXCERPT = ("<!-- excerpt of reports/README.md -->", "<!-- end of the excerpt -->")
FRONT = ("native", "maskedce", "masked_mean", "linear_cross_entropy")  # of the excerpt on the front page
# Pages that other commands make; linked where they exist.
FURTHER = {
    "field.jsonl.gz": "[the field](field.md): the losses of other libraries, what is right and what is wrong (`make field`); [choose](choose.md): which of them to use with padding",
    "mutants.md": "[mutants](mutants.md): which case catches which wrong loss (`make mutants`)",
    "older-torch.md": "[older torch](older-torch.md): what is different in an older version (`make older-torch`)",
    "speed.md": "[speed](speed.md): time compared with native (`make speed`)",
    "memory.md": "[memory](memory.md): memory compared with native (`make speed`)",
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
        f"{count(number, 'case')}, each judged in several aspects: loss, gradient, shape and dtype, rejection of bad input, and purity (the call changes "
        "nothing else). A case is right if all of them are.",
        f"> **Not everything was judged:** {missing} left out." if missing else "",
        table(_row(material, name) for name in material.names),
        "**right**: cases that pass, of those that the implementation claims to support. **wrong, known**: wrong in a way that is documented in "
        "[deviations](deviations.md). **wrong, new**: wrong in any other way. **not offered**: cases that need a capability which the implementation does "
        "not claim; they were not tested and count as neither right nor wrong. **capabilities**: how many of the suite's capabilities it claims. "
        "**largest error**: of a right loss or gradient at the better grades of [accuracy](accuracy.md), in units of what rounding alone can cause "
        f"(allowed: {ALLOWED_UNITS['float32']:g} for float64 and float32, {ALLOWED_UNITS['bfloat16']:g} for bfloat16 and float16). {material.note_on_twins()}",
        table(
            {"implementation": f"`{name}`", "what it is": _about(material, name)} for name in sorted(material.claims)
        ),
        "## Pages\n\n"
        "- [conformance](conformance.md): which clauses hold for which implementation\n"
        "- [deviations](deviations.md): what is known to be wrong, by cause, with evidence and scripts\n"
        "- [accuracy](accuracy.md): errors in units, by dtype\n"
        "- [conventions](conventions.md): the answers given where several are defensible\n"
        "- [answers](answers.md): common questions and claims about `ignore_index`, tested by cases\n"
        "- [reported bugs](wild-bugs.md): bugs of real losses, and the cases that catch them" + others,
        "Made by `make conform` from [record.jsonl.gz](record.jsonl.gz), which holds every verdict; `xentcheck report DIR --to reports` makes the pages from any results.",
        _environment(material),
    )


def with_excerpt(material: Material, path: Path) -> str:
    """The text of the file with a new table between its excerpt marks. Raises RecordError where it has no marks."""
    text = path.read_text(encoding="utf-8")
    before, mark, rest = text.partition(EXCERPT[0])
    _, end, after = rest.partition(EXCERPT[1])
    if not mark or not end:
        raise RecordError(f"{path}: expected the marks {EXCERPT[0]} and {EXCERPT[1]} around the excerpt; found none")
    return f"{before}{mark}\n\n{_front(material)}\n\n{end}{after}"


def _front(material: Material) -> str:
    chosen = [name for name in FRONT if name in material.claims] or list(material.claims)[: len(FRONT)]
    others = {"wrong in a new way": status.FAILED, "not available": status.UNAVAILABLE}
    rows = []
    for name in chosen:
        score = material.scores[name]
        groups = {group: count(n, "case") if n else "none" for group, n in score.groups.items()}
        row = {
            "implementation": f"`{name}`",
            "what it is": _about(material, name),
            "right": f"{score.passed} of {score.asked} cases",
            "wrong in a known way": groups[status.DEVIATING],
            "not offered": groups[status.UNSUPPORTED],
        }
        rows.append(row | {title: groups[group] for title, group in others.items() if score.groups[group]})
    return table(rows)


def _row(material: Material, name: str) -> dict[str, Any]:
    score = material.scores[name]
    groups = score.groups
    some_unavailable = any(s.groups[status.UNAVAILABLE] for s in material.scores.values())
    return {
        "implementation": material.label(name),
        "right": f"{score.passed} of {score.asked}",
        "wrong, known": groups[status.DEVIATING],
        "wrong, new": groups[status.FAILED],
        "not offered": groups[status.UNSUPPORTED],
        **({"not available here": groups[status.UNAVAILABLE]} if some_unavailable else {}),
        "capabilities": f"{len(material.claims[name]['capabilities'])} of {len(CAPABILITIES)}",
        "largest error": "" if score.worst_units is None else counted(round(score.worst_units, 1), "unit"),
    }


def _about(material: Material, name: str) -> str:
    return material.claims[name]["description"].replace("``", "`")


def _environment(material: Material) -> str:
    run = material.results.run
    facts = [f"{name} {value}" for name, value in run["environment"].items() if value not in (None, {}, "")]
    versions = [f"{name} {claims['version']}".rstrip() for name, claims in sorted(material.claims.items())]
    started = f"Started {run['started']}; edition {run['edition']}; cases `{run['cases']}`."
    return "\n".join(map(cell, (started, f"{', '.join(facts)}.", f"Versions: {', '.join(versions)}.")))
