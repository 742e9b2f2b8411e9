"""``field.md``: the losses of other libraries, in one table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from xentcheck.publish.findings import Finding, findings
from xentcheck.publish.page import Material
from xentcheck.results.markdown import count, listed, table
from xentcheck.run import status
from xentcheck.spec.capabilities import CONVENTIONS

_MOST = 3  # findings that are shown of each
_GRADES = ("sums", "half_rounding")  # conventions that are grades of accuracy, the better answer first
_REFUSALS = {"nan": "cannot raise: NaN instead", "nothing": "cannot raise: some number instead"}
_KINDS = {
    "Fused linear losses": lambda claims: "linear" in claims["capabilities"],
    "Losses of logits": lambda claims: "backward" in claims["capabilities"],
    "Without a gradient": lambda claims: True,
}


def page(field: Material, current: Mapping[str, Any]) -> str:
    """field: the record of other libraries. current: the run line of the record that the other pages show."""
    here, elsewhere = dict[str, list[str]](), list[str]()
    for name, claims in field.claims.items():
        if is_measured(field, name):
            here.setdefault(next(kind for kind, fits in _KINDS.items() if fits(claims)), []).append(name)
        else:
            elsewhere.append(name)
    older = [name for name in field.claims if is_older(field.claims[name], current)]
    return field.page(
        "The field: other libraries' losses",
        f"{count(len(field.claims) - len(elsewhere), 'loss', 'losses')} that people train with, measured here, each called through "
        "[an adapter](../docs/implementers.md#a-library-in-an-environment-of-its-own) that translates the call and mends nothing. A name leads to all that is known of the loss. "
        "Which of them to use with padding: [choose](choose.md). What they do where several answers are defensible: [conventions](conventions.md).",
        f"> **Of an older edition or of other cases:** {listed(f'`{name}`' for name in older)}. `make field` measures these anew."
        if older
        else "",
        *(
            f"## {kind}\n\n{table(_row(field, name, current) for name in here[kind])}"
            for kind in _KINDS
            if kind in here
        ),
        f"## Not available where this was measured\n\n{table(_missing(field, name) for name in elsewhere)}"
        if elsewhere
        else "",
        "**right**: cases that pass, of those that could be asked; *of the telling cases*: only about a hundred were, which hold everything that is asked at least once. **wrong**: all others of these; *as torch*: those in which torch's own loss gives exactly the same wrong answer, "
        "which the library hands on. **cannot**: cases that need what the loss does not offer. **accuracy**: "
        + "".join(f"its grade of `{name}` ({CONVENTIONS[name][0]}), " for name in _GRADES if name in CONVENTIONS)
        + "the largest error of a right answer, in units of what rounding alone can cause. **by the adapter**: what is done in the library's place, so that such answers "
        "say nothing about the library; and what a library does with bad values that cannot raise an error. **worst**: up to three things that are wrong, without those that are torch's or the adapter's.",
        "Made by `make field` from [field.jsonl.gz](field.jsonl.gz), which holds every verdict.",
    )


def is_measured(field: Material, name: str) -> bool:
    """Whether anything could be asked."""
    return field.scores[name].asked > 0


def is_older(claims: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    measured = claims["measured"]
    return any(measured[what] != current[what] for what in ("edition", "cases"))


def link(name: str, folder: str = "implementations/") -> str:
    return f"[`{name}`]({folder}{file_name(name)})"


def file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") + ".md"


def wrong(field: Material, name: str) -> str:
    """``12, 8 as torch``."""
    score = field.scores[name]
    groups = score.groups
    number = groups[status.FAILED] + groups[status.DEVIATING]
    return f"{number}" + (f", {score.as_native} as torch" if score.as_native else "")


def accuracy(field: Material, name: str) -> str:
    """The worse answer that was seen to each grade, and the largest error."""
    grades = []
    for grade in (g for g in _GRADES if g in CONVENTIONS):
        seen = {v.conventions.get(grade) for v in _passing(field, name)}
        grades += [answer for answer in reversed(CONVENTIONS[grade][1]) if answer in seen][:1]
    worst = field.scores[name].worst_units
    return ", ".join([*grades, *([] if worst is None else [f"{worst:.1f} units"])])


def _passing(field: Material, name: str) -> list[Any]:
    frame = field.frame
    return list(frame[(frame["implementation"] == name) & (frame["status"] == "pass")]["verdict"])


def on_behalf(claims: Mapping[str, Any]) -> str:
    """What the adapter does, and what becomes of bad values."""
    does = listed(claims.get("adapter_does", []))
    return "; ".join(filter(None, (does, _REFUSALS.get(claims.get("refuses", ""), ""))))


def worst(field: Material, name: str) -> list[Finding]:
    return [one for one in findings(field, name) if one.is_librarys][:_MOST]


def _row(field: Material, name: str, current: Mapping[str, Any]) -> dict[str, Any]:
    score, claims = field.scores[name], field.claims[name]
    mark = " (older)" if is_older(claims, current) else ""
    short = ", of the telling cases" if claims["measured"]["selection"] != "all" else ""
    return {
        "loss": f"{link(name)} {claims['version']}".strip(),
        "right": f"{score.passed} of {score.asked}{short}",
        "wrong": wrong(field, name),
        "cannot": score.groups[status.UNSUPPORTED],
        "accuracy": accuracy(field, name),
        "by the adapter": on_behalf(claims),
        "worst": "; ".join(str(one) for one in worst(field, name)) or "nothing of its own",
        "measured": f"{claims['measured']['started'][:10]}{mark}",
    }


def _missing(field: Material, name: str) -> dict[str, Any]:
    frame = field.frame[field.frame["implementation"] == name]
    reason = next((v.message for v in frame["verdict"] if v.message), "nothing was asked")
    return {"loss": link(name), "what it is": field.claims[name]["description"].replace("``", "`"), "why": reason}
