"""``implementations/NAME.md``: all that is known of one loss of another library."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any

from xentcheck.publish.findings import Finding, by_clause, findings
from xentcheck.publish.page import Material
from xentcheck.publish.page_field import accuracy, file_name, is_measured, is_older, on_behalf, wrong
from xentcheck.results.markdown import cell, count, listed, table
from xentcheck.run import status
from xentcheck.run.verdict import counted
from xentcheck.spec.capabilities import CAPABILITIES, CONVENTIONS, LINEAR_CAPABILITIES, LOGITS_CAPABILITIES
from xentcheck.spec.case import RELATIONS

FOLDER = "implementations"


def pages(field: Material, current: Mapping[str, Any]) -> dict[str, str]:
    """A page for each implementation, by path. current: the run line of the record that the other pages show."""
    return {f"{FOLDER}/{file_name(name)}": _page(field, name, current) for name in field.claims}


def _page(field: Material, name: str, current: Mapping[str, Any]) -> str:
    claims, found = field.claims[name], findings(field, name)
    measured = claims["measured"]
    places = {key: value for key, value in measured["environment"].items() if value not in (None, {}, "")}
    older = (
        "> **Measured with an older edition or other cases than the rest.** `make field` measures it anew."
        if is_older(claims, current)
        else ""
    )
    selection = (
        "" if measured["selection"] == "all" else f" Asked were only the cases `--cases {measured['selection']}`."
    )
    return field.page(
        f"{name} {claims['version']}".strip(),
        cell(claims["description"].replace("``", "`")),
        older,
        *([_summary(field, name, found)] if is_measured(field, name) else [_why_not(field, name)]),
        f"## To see it yourself\n\n```\n{_commands(name, claims)}\n```",
        cell(
            f"Measured {measured['started'][:10]} with edition {measured['edition']}, cases `{measured['cases']}`; "
            f"{', '.join(f'{key} {value}' for key, value in places.items())}.{selection}"
        ),
        f"## What is wrong\n\n{_wrong(found)}" if is_measured(field, name) else "",
        f"## What it claims\n\n{_claims(claims)}",
        f"## By clause\n\n{_clauses(field, name)}" if is_measured(field, name) else "",
        "[The whole field](../field.md)",
    )


def _summary(field: Material, name: str, found: list[Finding]) -> str:
    score = field.scores[name]
    relations = (
        f"; {score.relations_held} of {score.relations_asked} relations between batches hold"
        if score.relations_asked
        else ""
    )
    own = sum(one.is_librarys for one in found)
    return cell(
        f"**{score.passed} of {score.asked} cases are right**, {wrong(field, name)} wrong, {score.groups[status.UNSUPPORTED]} need what it does not offer{relations}. "
        f"{count(own, 'cause')} of its own. Accuracy: {accuracy(field, name) or 'nothing was right'}."
    )


def _why_not(field: Material, name: str) -> str:
    reasons = [v.message for v in field.frame[field.frame["implementation"] == name]["verdict"]]
    return cell(f"**Nothing could be asked where this was measured**: {reasons[0] if reasons else 'no verdict'}.")


def _commands(name: str, claims: Mapping[str, Any]) -> str:
    requires = claims.get("requires", [])
    lines = [f"pip install {shlex.join(requires)}    # by itself"] if requires else []
    lines += [f"xentcheck peers install {name}    # beside this suite"] if requires else []
    return "\n".join([*lines, f"pytest suite/ --impl {name}"])


def _wrong(found: list[Finding]) -> str:
    groups = {
        "": [one for one in found if one.is_librarys],
        "**The adapter's doing**, and so no fault of the library:": [one for one in found if one.is_adapters],
        "**As torch does**, on which it is built:": [one for one in found if one.is_torchs and not one.is_adapters],
    }
    parts = [f"{title}\n\n{table(map(_row, group))}" for title, group in groups.items() if group]
    return "\n\n".join(parts) or "Nothing that was asked."


def _row(finding: Finding) -> dict[str, Any]:
    first = finding.example
    aspects = dict.fromkeys(f"{v.aspect}: {v.kind or v.status}" for v in finding.verdicts)
    return {
        "what": finding.text + (f" ([report]({finding.link}))" if finding.link else ""),
        "cases": finding.cases,
        "aspect": ", ".join(sorted(aspects)),
        "up to": "" if math.isnan(finding.units) else counted(finding.units, "unit"),
        "for instance": f"`{first.case}`: {first.message[:600]}",
        **({"why": finding.reason} if finding.reason else {}),
    }


def _claims(claims: Mapping[str, Any]) -> str:
    offered = set(claims["capabilities"])
    possible = LINEAR_CAPABILITIES if "linear" in offered else LOGITS_CAPABILITIES
    conventions = [f"{CONVENTIONS[n][0]}: {answer}" for n, answer in claims["conventions"].items() if n in CONVENTIONS]
    rows = {
        "offers": listed(f"`{one}`" for one in CAPABILITIES if one in offered),
        "does not offer": listed(f"`{one}`" for one in CAPABILITIES if one in possible - offered),
        "states": "; ".join([*conventions, *(f"{k}: {v}" for k, v in claims.get("precision", {}).items())]),
        "done by the adapter": on_behalf(claims),
    }
    return table({"": title, "what": text} for title, text in rows.items() if text)


def _clauses(field: Material, name: str) -> str:
    counts = by_clause(field, name)
    titles = {case.clause.clause: case.clause.title for case in field.cases}
    rows = [
        {
            "clause": f"[{clause}](../conformance.md#{clause})",
            **{title: int(number) for title, number in row.items()},
            "it says": titles.get(clause, ""),
        }
        for clause, row in counts.iterrows()
    ]
    frame = field.frame
    related = frame[(frame["implementation"] == name) & frame["relation"] & frame["asked"]]
    held = [
        {
            "relation": relation,
            "holds": int((group["status"] == "pass").sum()),
            "does not": int((group["status"] != "pass").sum()),
        }
        for relation in RELATIONS
        if not (group := related[related["aspect"] == relation]).empty
    ]
    return "\n\n".join([table(rows), *([table(held)] if held else [])])
