"""Records to Markdown pages and a plot. Every number on them comes from the records; tables are sorted, so that diffs are small."""

from __future__ import annotations

import math
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from xentcheck import bug_reports, plot
from xentcheck.bug_reports import Theme
from xentcheck.capabilities import CAPABILITIES, CONVENTIONS
from xentcheck.case import RELATIONS, Case
from xentcheck.common_claims import Topic, evidence_table
from xentcheck.loader import CASES
from xentcheck.markdown import table as _table
from xentcheck.patterns import matches
from xentcheck.record import RecordError, Results
from xentcheck.status import Status
from xentcheck.terminal import by_case, counts, left_out, status_of, worst_units
from xentcheck.units import ALLOWED_UNITS
from xentcheck.verdict import Verdict

Script = Callable[
    [str, str], str
]  # implementation and case to a script that reproduces it, or nothing where it is too long for a page
# In the order in which a cell shows them: what was asked first, a pass before all.
SYMBOLS = {s: s.symbol for s in sorted(Status, key=lambda s: (not s.was_asked, s.rank))}
LEGEND = (
    "✓ cases that pass, △ that deviate in a known way ([deviations](deviations.md)), ✗ that fail, error, crash or time out (new, not known), "
    "! that pass although a deviation is declared, – unsupported (the implementation does not claim what they need), ? unavailable here."
)
EXCERPT = ("<!-- excerpt of reports/README.md -->", "<!-- end of the excerpt -->")
ENVIRONMENT = ("<!-- environment -->", "<!-- /environment -->")
# Pages that other commands make; named where they are.
FURTHER = {
    "mutants.md": "[mutants](mutants.md): which case catches which wrong loss (`make mutants`)",
    "older-torch.md": "[older torch](older-torch.md): what is different there (`make older-torch`)",
    "speed.md": "[speed](speed.md): time beside native (`make speed`)",
    "memory.md": "[memory](memory.md): bytes beside native (`make speed`)",
    "gate.md": "[gate](gate.md): how often the gate on costs is right (`make gate-trials`)",
}


def write(
    results: Results,
    cases: Sequence[Case],
    answers: Sequence[Topic],
    bugs: Sequence[Theme],
    script: Script,
    folder: Path,
    beside: Path | None = None,
) -> list[Path]:
    """Writes every page into the folder; returns their paths. beside: where further pages are looked for, if not there."""
    clauses = {case.clause.clause: case for case in cases}
    pages = {
        "README.md": _summary(results, cases, beside or folder),
        "conformance.md": _conformance(results, clauses),
        "deviations.md": _deviations(results, script),
        "accuracy.md": _accuracy(results),
        "conventions.md": _conventions(results),
        "answers.md": _answers(results, answers),
        "wild-bugs.md": _wild_bugs(results, bugs),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        (folder / name).write_text(text.rstrip() + "\n", encoding="utf-8")
    plot.accuracy(results.verdicts, folder / "accuracy.svg")
    return [folder / name for name in (*pages, "accuracy.svg")]


def differences(made: Path, published: Path) -> list[str]:
    """What the published pages say otherwise than the pages just made, apart from times, environment and measured digits."""
    return [
        text
        for page in sorted(made.glob("*.md"))
        for text in difference(page.read_text(encoding="utf-8"), published / page.name)
    ]


def difference(made: str, page: Path) -> list[str]:
    """The same for one page; nothing where they agree."""
    if not page.is_file():
        return [f"{page}: expected, but not there"]
    old, new = _comparable(page.read_text(encoding="utf-8")), _comparable(made)
    if old == new:
        return []
    line = next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    was, now = (lines[line] if line < len(lines) else "(nothing)" for lines in (old, new))
    return [f"{page}: is not what the code produces; published {was[:160]!r}, produced {now[:160]!r}"]


def with_excerpt(results: Results, page: Path) -> str:
    """A page's text with the summary table between its excerpt marks made anew. Raises RecordError where it has none."""
    text = page.read_text(encoding="utf-8")
    before, mark, rest = text.partition(EXCERPT[0])
    _, end, after = rest.partition(EXCERPT[1])
    if not mark or not end:
        raise RecordError(f"{page}: expected the marks {EXCERPT[0]} and {EXCERPT[1]} around the excerpt; found none")
    return f"{before}{mark}\n\n{_summary_table(results)}\n\n{end}{after}"


def _comparable(text: str) -> list[str]:
    text = re.sub(rf"{ENVIRONMENT[0]}.*?{ENVIRONMENT[1]}", "", text, flags=re.DOTALL)
    text = re.sub(
        r"-?\d+\.\d+(e[-+]?\d+)?", "#", text
    )  # digits of measured values, which depend on the CPU's vector width
    text = re.sub(r"\d+ units", "# units", text)
    text = re.sub(r" +|-{3,}", " ", text)  # columns are as wide as their widest number
    return [line.strip() for line in text.splitlines() if line.strip()]


def _page(title: str, results: Results, *parts: str) -> str:
    truncated = (
        "> **This run did not end; what follows is not complete.** Go on with it by `--resume`.\n"
        if not results.complete
        else ""
    )
    return "\n\n".join(part.strip() for part in (f"# {title}", truncated, *parts) if part.strip()) + "\n"


def _implementations(results: Results) -> list[str]:
    return list(results.run["implementations"])


def _summary_table(results: Results) -> str:
    rows, table = [], counts(results.verdicts)
    for name in _implementations(results):
        claims, row = results.run["implementations"][name], table.get(name, {})
        worst = worst_units(v for v in results.verdicts if v.implementation == name)
        asked = sum(row.get(k, 0) for k in ("passed", "failed", "deviating"))
        rows.append(
            {
                "implementation": f"`{name}`",
                **{group: row.get(group, 0) for group in row},
                "holds": f"{row.get('passed', 0)} of {asked}",
                "claims": f"{len(claims['capabilities'])} of {len(CAPABILITIES)}",
                "worst error": "" if worst is None else f"{worst:.1f} units",
            }
        )
    return _table(rows)


def _summary(results: Results, cases: Sequence[Case], beside: Path) -> str:
    descriptions = [
        {"implementation": f"`{n}`", "what it is": c["description"]}
        for n, c in sorted(results.run["implementations"].items())
    ]
    total = len({v.case for v in results.verdicts})
    missing = left_out(results.verdicts, cases)
    further = "".join(f"\n- {line}" for name, line in FURTHER.items() if (beside / name).is_file())
    return _page(
        "Is this cross entropy right?",
        results,
        f"{total} cases, each judged for loss, gradient, shape and dtype, rejection of bad input, and purity. A case passes if all of these do.",
        f"> **Not all was asked for:** without {missing}." if missing else "",
        _summary_table(results),
        "**holds**: cases that pass, of those that the implementation claims to answer. **claims**: capabilities offered, of all that the suite knows. "
        "**deviating**: wrong in a way that is known and documented. **failed**: wrong, and not known. **unsupported**: not claimed, therefore not asked; "
        "no pass. **worst error**: of a passing loss or gradient, in units of what rounding alone can cause "
        f"(allowed: {ALLOWED_UNITS['float32']:g} for float64 and float32, {ALLOWED_UNITS['bfloat16']:g} for bfloat16 and float16).",
        _table(descriptions),
        "## Pages\n\n"
        "- [conformance](conformance.md): which clause holds for which implementation\n"
        "- [deviations](deviations.md): what is known to be wrong, with evidence and a script for each\n"
        "- [accuracy](accuracy.md): the error in units, by dtype\n"
        "- [conventions](conventions.md): which answer each gives where several are defensible\n"
        "- [answers](answers.md): common questions and claims about `ignore_index`, answered by running them\n"
        "- [wild bugs](wild-bugs.md): bugs reported of real losses, and the cases that catch them" + further,
        "Made by `make conform`; `xentcheck report DIR --to reports` makes the pages from any results.",
        _environment(results),
    )


def _environment(results: Results) -> str:
    environment = results.run["environment"]
    versions = ", ".join(f"{n} {c['version']}".rstrip() for n, c in sorted(results.run["implementations"].items()))
    facts = [f"{k} {v}" for k, v in environment.items() if v not in (None, {}, "")]
    lines = [
        f"Started {results.run['started']}; edition {results.run['edition']}; cases `{results.run['cases']}`.",
        f"{', '.join(facts)}.",
        f"Versions: {versions}.",
    ]
    return "\n".join((ENVIRONMENT[0], *lines, ENVIRONMENT[1]))


def _cell(statuses: Iterable[str]) -> str:
    """How many cases ended how, and nothing else: known and new failures have different symbols."""
    tally = Counter(SYMBOLS[s] for s in statuses)
    return " ".join(f"{tally[symbol]} {symbol}" for symbol in dict.fromkeys(SYMBOLS.values()) if tally[symbol])


def _conformance(results: Results, clauses: dict[str, Case]) -> str:
    names, grouped = _implementations(results), by_case(results.verdicts)
    statuses: dict[tuple[str, str], list[str]] = {}
    for (name, _), verdicts in grouped.items():
        statuses.setdefault((verdicts[0].clause, name), []).append(status_of(verdicts))
    seen = sorted({clause for clause, _ in statuses})
    rows = [{"clause": f"[{c}](#{c})", **{n: _cell(statuses.get((c, n), ())) for n in names}} for c in seen]
    sections = []
    for clause in seen:
        lines = [f"## {clause}"]
        if clause in clauses:
            about, path = clauses[clause].clause, clauses[clause].path.relative_to(CASES)
            lines += [
                f"{about.requirement} ([cases](../cases/{path}); sources: {', '.join(f'[{i}]({s})' for i, s in enumerate(about.sources, 1))})"
            ]
        troubles = [v for v in _troubles(results) if v.clause == clause and v.aspect not in RELATIONS]
        if troubles:
            lines.append(_table(_trouble_rows(troubles, names)))
        sections.append("\n\n".join(lines))
    return _page(
        "Conformance",
        results,
        "Clauses by implementations, counted in cases.",
        _table(rows),
        LEGEND,
        *_relations(results, names),
        *sections,
    )


def _relations(results: Results, names: list[str]) -> list[str]:
    statuses: dict[tuple[str, str], list[str]] = {}
    for v in results.verdicts:
        if v.aspect in RELATIONS:
            statuses.setdefault((v.aspect, v.implementation), []).append(v.status)
    if not statuses:
        return []
    seen = [name for name in RELATIONS if any(name == relation for relation, _ in statuses)]
    troubles = [v for v in _troubles(results) if v.aspect in RELATIONS]
    return [
        "## relations\n\nWhat must hold between the answers to a case's batch and to others made of it, whatever the right answer is "
        "([what each says](../suite/test_relations.py)); counted in cases that it applies to.",
        _table([{"relation": r, **{n: _cell(statuses.get((r, n), ())) for n in names}} for r in seen]),
        *([_table(_trouble_rows(troubles, names))] if troubles else []),
    ]


def _troubles(results: Results) -> list[Verdict]:
    return [v for v in results.verdicts if v.status not in ("pass", "unsupported", "unavailable")]


def _trouble_rows(troubles: list[Verdict], names: list[str]) -> list[dict[str, str]]:
    """One row for each implementation, aspect, status and kind of fault: how many cases, and the first of them in full."""
    groups: dict[tuple[str, str, str, str], list[Verdict]] = {}
    for v in troubles:
        groups.setdefault((v.implementation, v.aspect, v.status, v.kind), []).append(v)
    ordered = sorted(groups.items(), key=lambda item: (names.index(item[0][0]), item[0][1:]))
    return [
        {
            "implementation": f"`{name}`",
            "aspect": aspect,
            "outcome": f"{SYMBOLS[status]} {status}",
            "cases": str(len(vs)),
            "for instance": f"`{first.case}`: {_escape(first.message)}",
        }
        for (name, aspect, status, _), vs in ordered
        for first in [min(vs, key=lambda v: v.case)]
    ]


def _deviations(results: Results, script: Script) -> str:
    sections = []
    for name, claims in sorted(results.run["implementations"].items()):
        mine = [
            v
            for v in results.verdicts
            if v.implementation == name and v.status in ("deviates", "unexpected-pass", "fail")
        ]
        if not claims["deviations"]:
            continue
        sections.append(f"## {name}\n\n{claims['description']}")
        for deviation in claims["deviations"]:
            hits = sorted(
                (
                    v
                    for v in mine
                    if v.aspect == deviation["aspect"]
                    and v.status == "deviates"
                    and any(matches(p, v.case) for p in deviation["cases"])
                ),
                key=lambda v: v.case,
            )
            lines = [f"### {name}: {deviation['observed']}", deviation["reason"]]
            worst = max((v.error_units for v in hits if v.error_units is not None), default=None)
            facts = [
                f"- aspect: {deviation['aspect']}; {len(hits)} cases"
                + (f", up to {worst:.3g} units" if worst is not None else "")
                + (f"; torch {deviation['torch']}" if deviation["torch"] else "")
            ]
            facts.append("- cases: " + ", ".join(f"`{p}`" for p in deviation["cases"]))
            facts.append(f"- link: {deviation['link']}")
            if hits:
                shown = min(hits, key=lambda v: (len(script(name, v.case)) or math.inf, v.case))
                facts.append(f"- evidence: `{shown.case}`: {_escape(shown.message)}")
                facts.append(f"- again: `xentcheck repro '{shown.case}' --impl {name}`")
                text = script(name, shown.case).strip()
                lines += [
                    "\n".join(facts),
                    *([f"<details><summary>script</summary>\n\n```python\n{text}\n```\n\n</details>"] if text else []),
                ]
            else:
                lines += ["\n".join([*facts, "- not part of this run"])]
            sections.append("\n\n".join(line for line in lines if line))
    return _page(
        "Known deviations",
        results,
        "What an implementation is known to do otherwise than its clause says. Each is strict: once it no longer holds, or matches no case, the run fails.",
        *(sections or ["None of these implementations declares one."]),
    )


def _accuracy(results: Results) -> str:
    rows = []
    for name in _implementations(results):
        for dtype in ALLOWED_UNITS:
            row: dict[str, str] = {
                "implementation": f"`{name}`",
                "dtype": dtype,
                "allowed": f"{ALLOWED_UNITS[dtype]:g}",
            }
            for aspect in ("loss", "gradient"):
                mine = [
                    v
                    for v in results.verdicts
                    if (v.implementation, v.dtype, v.aspect) == (name, dtype, aspect) and v.error_units is not None
                ]
                passing = [v.error_units for v in mine if v.status == "pass"]
                wrong = [v.error_units for v in mine if v.status != "pass"]
                row[f"{aspect}: passing"] = str(len(passing))
                row[f"{aspect}: worst"] = f"{max(passing):.2f}" if passing else ""
                row[f"{aspect}: beyond"] = f"{len(wrong)}, up to {max(wrong):.1f}" if wrong else ""
            if row["loss: passing"] != "0" or row["loss: beyond"]:
                rows.append(row)
    return _page(
        "Accuracy",
        results,
        "Errors in units: one unit is what rounding alone can cause in a good implementation that computes in float32 (float64 for float64) and rounds its "
        "result once. **worst**: the largest error of the cases that pass. **beyond**: cases whose error is of a size, and larger than allowed.",
        "![the error of each case, by implementation and dtype](accuracy.svg)",
        _table(rows),
    )


def _conventions(results: Results) -> str:
    rows = []
    for name in _implementations(results):
        stated, row = results.run["implementations"][name]["conventions"], {"implementation": f"`{name}`"}
        for convention in CONVENTIONS:
            seen = Counter(
                v.conventions[convention]
                for v in results.verdicts
                if v.implementation == name and v.status == "pass" and convention in v.conventions
            )
            shown = " and ".join(f"{answer} ({n} cases)" for answer, n in sorted(seen.items())) or "not seen"
            row[convention] = f"{shown}; states {stated[convention]}" if convention in stated else shown
        rows.append(row)
    questions = [
        {"convention": f"`{n}`", "question": question, "answers": ", ".join(answers)}
        for n, (question, answers) in CONVENTIONS.items()
    ]
    return _page(
        "Conventions",
        results,
        "Questions with several defensible answers. An implementation that states its answer is held to it; one that states none may give any of them. "
        "The table shows the answers given.",
        _table(questions),
        _table(rows),
    )


def _answers(results: Results, answers: Sequence[Topic]) -> str:
    sections = []
    for answer in answers:
        lines = [f"## {answer.question}"]
        for claim in answer.claims:
            lines.append(
                f"> Claim: {claim.claim}\n\n**{claim.verdict.capitalize()}.** {' '.join(claim.answer.split())}"
            )
        lines.append(_table(evidence_table(answer, results, _implementations(results), SYMBOLS)))
        sections.append("\n\n".join(lines))
    return _page(
        "Answers",
        results,
        textwrap.dedent(
            """\
            Questions that people ask about `ignore_index`, with the claims made in widely read answers. Every claim is put as cases and run; the tables show
            what each implementation did."""
        ),
        LEGEND,
        *sections,
    )


def _wild_bugs(results: Results, themes: Sequence[Theme]) -> str:
    reports = [report for theme in themes for report in theme.reports]
    anchors = [re.sub(r"[^a-z0-9 -]", "", theme.title.lower()).replace(" ", "-") for theme in themes]
    overview = [
        {"theme": f"[{theme.title}](#{anchor})"} | bug_reports.counts(theme.reports)
        for theme, anchor in zip(themes, anchors, strict=True)
    ]
    missed = bug_reports.missed(reports)
    return _page(
        "Reported bugs",
        results,
        "Bugs that were reported of real implementations of the cross entropy, each with the cases that catch it: a wrong loss that reproduces the bug "
        "([tests/mutants](../tests/mutants)) is run against these cases and must fail in one of them (`pytest tests/test_wild_bugs.py`). "
        "**where**: where the bug was reported. What happened on a GPU or between ranks is reproduced here as the same wrong scheme on a CPU, "
        "and the same cases ask the original where it runs. A case `clause/name` stands in `cases/clause.yaml`. The data is "
        "[cases/wild-bugs.yaml](../cases/wild-bugs.yaml).",
        _table([*overview, {"theme": "**all**"} | bug_reports.counts(reports)]),
        f"What it would take to reach those that no case catches: {missed}." if missed else "",
        *(
            f"## {theme.title}\n\n{_table({k: _escape(v) for k, v in bug_reports.row(r).items()} for r in theme.reports)}"
            for theme in themes
        ),
    )


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
