"""``choose.md``: which loss to use with padding, and what to know about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xentcheck.publish.behaviour import ALL_IGNORED, BAD_INPUT, EXTREMES, answers
from xentcheck.publish.findings import Finding, findings
from xentcheck.publish.page import Material
from xentcheck.publish.page_field import is_measured, link, on_behalf
from xentcheck.results.markdown import count, listed, table
from xentcheck.spec.capabilities import CAPABILITIES

_One = tuple[Material, str]  # a record, and the name of an implementation in it
# The clauses that a batch with padding depends on.
PADDING = ("ignored-positions", "ignored-nonfinite", "all-ignored", "linear-ignored", "linear-chunks", "micro-batches")
_OPTIONS = ("ignore_index", "weight", "label_smoothing", "normalizer", "reduction_none", "bfloat16", "float16")


def page(material: Material, field: Material | None) -> str:
    """material: the record of the shipped implementations. field: that of other libraries."""
    fused, logits, masked = list[_One](), list[_One](), list[str]()
    for record in (material, *([field] if field else [])):
        for name in record.names if record is material else record.claims:
            offered = record.claims[name]["capabilities"]
            if not is_measured(record, name) or "backward" not in offered:
                continue
            if padding(record, name)[1]:
                (fused if "linear" in offered else logits).append((record, name))
            elif record.claims[name].get("adapter_does"):
                masked.append(_link((record, name), field))
    return material.page(
        "Which loss may I use with padding?",
        "A position is padding if its target is the ignore value. It must count for nothing: as if it had been deleted. What the losses below do is measured, not read from their "
        "documentation.",
        *(
            f"## {title}\n\n{_verdict(chosen, field)}\n\n{table(_rows(chosen, field))}"
            for title, chosen in (("Fused linear losses", fused), ("Losses of logits", logits))
            if chosen
        ),
        f"These ignore nothing by themselves, so that a mask and a division of your own are needed: {listed(masked)}."
        if masked
        else "",
        "**padding**: cases with ignored positions whose loss and gradients are right, of those asked. **all ignored**: the mean of a batch in which every position is padding; NaN there ends a training run. "
        "**bad target**: what a target gives that is neither a class nor ignored, such as -1 where -100 is ignored. **lacks**: of "
        f"{listed(f'`{one}`' for one in _OPTIONS)}. **know**: the gravest thing that is wrong with padding, then the gravest of all.",
        "## In doubt\n\n"
        "- A whole batch of padding happens with small batches, packed sequences and masked fine-tuning. Where the mean is NaN there, skip such batches or divide a sum yourself.\n"
        "- With gradient accumulation the means of micro-batches do not add up to the mean of the batch. Divide their sums by the number of positions that count in all of them: `normalizer`, by whatever name the library has for it.\n"
        "- Mask logits with a large negative number rather than -inf where a loss is not clean with NaN at ignored positions.",
        "Made from [record.jsonl.gz](record.jsonl.gz)"
        + (" and [field.jsonl.gz](field.jsonl.gz)" if field else "")
        + ".",
    )


def padding(record: Material, name: str) -> tuple[int, int]:
    """Cases with padding whose loss and gradients are right, and that the library itself answered. What it does to its arguments is another matter."""
    frame = record.frame
    asked = frame[
        (frame["implementation"] == name)
        & frame["asked"]
        & ~frame["by_adapter"]
        & frame["clause"].isin(PADDING)
        & frame["aspect"].isin(["loss", "gradient", "shape"])
    ]
    right = (asked["status"] == "pass").groupby(asked["case"]).all()
    return int(right.sum()), len(right)


def _place(one: _One) -> tuple[float, int, str]:
    right, asked = padding(*one)
    return -right / max(asked, 1), -asked, one[1]


def _verdict(chosen: Sequence[_One], field: Material | None) -> str:
    """Which are right throughout, in one sentence, with how many cases that is known from."""
    asked = [(one, padding(*one)) for one in sorted(chosen, key=_place)]
    clean = [f"{_link(one, field)} ({count(of, 'case')})" for one, (right, of) in asked if right == of]
    if not clean:
        return "**None of these is right in every case with padding.** The table begins with those that come nearest."
    return f"**Right in every case with padding that could be asked: {listed(clean)}.**" + (
        " The others can be used with what the last column says in mind." if len(clean) < len(chosen) else ""
    )


def _rows(chosen: Sequence[_One], field: Material | None) -> list[dict[str, Any]]:
    return [_row(*one, field) for one in sorted(chosen, key=_place)]


def _row(record: Material, name: str, field: Material | None) -> dict[str, Any]:
    right, asked = padding(record, name)
    questions = {question.title: question for question in EXTREMES}
    offered = set(record.claims[name]["capabilities"])
    lacks = [f"`{one}`" for one in _OPTIONS if one in CAPABILITIES and one not in offered]
    return {
        "loss": f"{_link((record, name), field)} {record.claims[name]['version']}".strip(),
        "padding": f"{right} of {asked}",
        "all ignored": answers(record, name, questions[ALL_IGNORED]),
        "bad target": answers(record, name, questions[BAD_INPUT]),
        "lacks": ", ".join(lacks),
        "by the adapter": on_behalf(record.claims[name]),
        "know": "; ".join(str(one) for one in _to_know(findings(record, name))) or "nothing is wrong in what was asked",
    }


def _to_know(found: Sequence[Finding]) -> list[Finding]:
    """The gravest with padding, and the gravest of all; torch's own faults count here, since users meet them as well."""
    own = sorted((one for one in found if not one.is_adapters), key=lambda one: (one.gravity, -one.cases))
    of_padding = [one for one in own if any(v.clause in PADDING for v in one.verdicts)]
    return list(dict.fromkeys([*of_padding[:1], *own[:1]]))


def _link(one: _One, field: Material | None) -> str:
    record, name = one
    return link(name) if record is field else f"[`{name}`](conformance.md)"
