"""``implementations/NAME.md``: all that is known of one loss of another library."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any

from xentcheck.publish.findings import Finding, by_clause, findings
from xentcheck.publish.page import Material
from xentcheck.publish.page_field import accuracy, file_name, is_measured, is_older, on_behalf
from xentcheck.results.markdown import cell, count, listed, table
from xentcheck.run import status
from xentcheck.run.units import ALLOWED_UNITS
from xentcheck.run.verdict import counted
from xentcheck.spec.capabilities import CAPABILITIES, CONVENTIONS, LINEAR_CAPABILITIES, LOGITS_CAPABILITIES
from xentcheck.spec.case import RELATIONS

FOLDER = "implementations"


def pages(field: Material, material: Material) -> dict[str, str]:
    """A page for each implementation, by path. material: the record of the shipped implementations, which the other pages show."""
    return {f"{FOLDER}/{file_name(name)}": _page(field, name, material) for name in field.claims}


def _page(field: Material, name: str, material: Material) -> str:
    claims, found = field.claims[name], findings(field, name)
    measured = claims["measured"]
    places = {key: value for key, value in measured["environment"].items() if value not in (None, {}, "")}
    older = (
        "> **Measured with an older edition or other cases than the rest.** `make field` measures it anew."
        if is_older(claims, material.results.run)
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
        f"## Accuracy\n\n{errors}" if (errors := _accuracy(field, name, material)) else "",
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
    torchs = f" ({score.as_native} of them exactly as torch's own loss)" if score.as_native else ""
    own = sum(one.is_librarys for one in found)
    return cell(
        f"**{score.passed} of {score.asked} cases are right**, {score.asked - score.passed} are wrong{torchs}, {score.groups[status.UNSUPPORTED]} need what it does not offer{relations}. "
        f"{count(own, 'thing')} of its own {'is' if own == 1 else 'are'} wrong. Accuracy: {accuracy(field, name) or 'nothing was right'}."
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
    parts = [f"{title}\n\n{table(map(_row, group))}".strip() for title, group in groups.items() if group]
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
    return table({"claim": title, "what": text} for title, text in rows.items() if text)


def _clauses(field: Material, name: str) -> str:
    counts = by_clause(field, name)
    titles = {case.clause.clause: case.clause.title for case in field.cases}
    asked = counts[(counts["right"] + counts["wrong"]) > 0]
    rows = [
        {
            "clause": f"[{clause}](../conformance.md#{clause})",
            "right": int(row["right"]),
            "wrong": int(row["wrong"]),
            "cannot": int(row["cannot"]),
            "it says": titles.get(str(clause), ""),
        }
        for clause, row in asked.iterrows()
    ]
    left = [f"`{clause}`" for clause in counts.index if clause not in asked.index]
    frame = field.frame
    related = frame[(frame["implementation"] == name) & frame["relation"] & frame["asked"]]
    held = [
        {"relation": relation, "holds": int(passed.sum()), "does not": int((~passed).sum())}
        for relation in RELATIONS
        if len(passed := related[related["aspect"] == relation]["status"] == "pass")
    ]
    return "\n\n".join(
        [
            table(rows),
            *([f"Nothing of these could be asked: {listed(left)}."] if left else []),
            *([table(held)] if held else []),
        ]
    )


def _accuracy(field: Material, name: str, native: Material) -> str:
    """The largest finite errors, right or wrong, beside those of torch's own loss."""
    own, torchs = _errors(field, name), _errors(native, "native")
    rows = [
        {
            "dtype": dtype,
            "loss": _shown(own, dtype, "loss"),
            "gradient": _shown(own, dtype, "gradient"),
            "loss: torch's": _shown(torchs, dtype, "loss"),
            "gradient: torch's": _shown(torchs, dtype, "gradient"),
        }
        for dtype in ALLOWED_UNITS
        if any(key[0] == dtype for key in own)
    ]
    allowed = listed(f"{units:g} for {dtype}" for dtype, units in ALLOWED_UNITS.items())
    return (
        f"The largest error, in units of what rounding alone can cause; allowed are {allowed}.\n\n{table(rows)}"
        if rows
        else ""
    )


def _errors(record: Material, name: str) -> dict[tuple[str, str], float]:
    frame = record.frame
    measured = frame[(frame["implementation"] == name) & frame["asked"] & frame["units"].map(math.isfinite)]
    largest = measured.groupby(["dtype", "aspect"], observed=True)["units"].max()
    return {(str(dtype), str(aspect)): float(units) for (dtype, aspect), units in largest.items()}


def _shown(errors: Mapping[tuple[str, str], float], dtype: str, aspect: str) -> str:
    return f"{errors[dtype, aspect]:.3g}" if (dtype, aspect) in errors else ""
