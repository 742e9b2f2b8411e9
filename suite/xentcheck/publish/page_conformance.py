"""``conformance.md``: which clauses hold for which implementation, and what is wrong where they do not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from xentcheck.publish.page import LEGEND, WIDEST, Material, tally
from xentcheck.results.markdown import table
from xentcheck.spec.case import RELATIONS, Case
from xentcheck.spec.loader import CASES


def page(material: Material) -> str:
    clauses = {case.clause.clause: case for case in material.cases}
    outcomes = material.outcomes.assign(of=material.outcomes["clause"].map(lambda c: f"[{c}](#{c})"))
    relations = material.frame[material.frame["relation"]].assign(of=lambda frame: frame["aspect"].astype(str))
    own = material.frame[~material.frame["relation"]]
    return material.page(
        "Conformance",
        "The outcome of each clause's cases, by implementation. Further down: each clause in one sentence, and what is wrong in its cases.",
        LEGEND,
        material.note_on_twins(),
        *_tables(material, outcomes, "clause"),
        *_relations(material, relations),
        *(
            _section(material, clause, own[own["clause"] == clause], clauses)
            for clause in sorted(set(material.frame["clause"]))
        ),
    )


def _tables(material: Material, outcomes: pd.DataFrame, title: str) -> Iterator[str]:
    """Separate tables for losses of logits and fused linear losses; rows in which nothing was tested are left out."""
    for text, linear in (("Losses of logits", False), ("Fused linear losses", True)):
        names = [name for name in material.names if material.is_linear[name] is linear]
        kind = outcomes[outcomes["implementation"].isin(names)]
        asked = kind[~kind["symbol"].isin(["–", "?"])]["of"].unique()
        for part in np.array_split(
            names, -(-len(names) // (WIDEST - 1)) or 1
        ):  # as few tables as possible, of like width
            here = kind[kind["implementation"].isin(part) & kind["of"].isin(asked)]
            cells = here.pivot_table(
                index="of", columns="implementation", values="symbol", aggfunc=tally, observed=True
            )
            order = [of for of in (RELATIONS if title == "relation" else sorted(cells.index)) if of in cells.index]
            rows = [{title: of, **{f"`{n}`": cells.get(n, {}).get(of, "") for n in part}} for of in order]
            if rows:
                yield f"**{text}**\n\n{table(rows)}"


def _relations(material: Material, verdicts: pd.DataFrame) -> list[str]:
    if verdicts.empty:
        return []
    return [
        "## relations\n\nWhat must hold between the answers to a case's batch and to batches made from it, whatever the right answer is "
        "([what each requires](../suite/test_relations.py)), counted in cases to which it applies.",
        *_tables(material, verdicts, "relation"),
        *_failures(material, verdicts),
    ]


def _section(material: Material, clause: str, verdicts: pd.DataFrame, clauses: dict[str, Case]) -> str:
    lines = [f"## {clause}"]
    if clause in clauses:
        about, path = clauses[clause].clause, clauses[clause].path.relative_to(CASES)
        sources = ", ".join(f"[{i}]({source})" for i, source in enumerate(about.sources, 1))
        lines.append(f"{about.requirement} ([cases](../cases/{path}); sources: {sources})")
    return "\n\n".join([*lines, *_failures(material, verdicts)])


def _failures(material: Material, verdicts: pd.DataFrame) -> list[str]:
    """One row for each outcome, aspect and kind of fault: how many cases of which implementations, and the first of them in full."""
    wrong = verdicts[
        verdicts["asked"] & (verdicts["status"] != "pass") & verdicts["implementation"].isin(material.names)
    ]
    rows = []
    for (status, aspect, kind), group in wrong.groupby(["status", "aspect", "kind"], observed=True):
        counts = group["implementation"].value_counts(sort=False)
        first = group.iloc[0]
        rows.append(
            {
                "outcome": f"{first['symbol']} {status}",
                "aspect": f"{aspect}: {kind}" if kind else aspect,
                "implementations, with cases": ", ".join(f"`{name}` {n}" for name, n in counts.items() if n),
                "for instance": f"`{first['implementation']}`, `{first['case']}`: {first['verdict'].message}",
            }
        )
    rows.sort(key=lambda row: row["outcome"].startswith("△"))  # what is new comes first
    return [table(rows)] if rows else []
