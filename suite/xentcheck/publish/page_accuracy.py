"""``accuracy.md``: the errors of losses and gradients in units, by implementation and dtype, and the grades that they reach."""

from __future__ import annotations

import math

import pandas as pd

from xentcheck.publish.page import Material
from xentcheck.reference.definition import ALLOWED_UNITS
from xentcheck.results.markdown import count, listed, table
from xentcheck.spec.capabilities import CONVENTIONS, GRADES


def page(material: Material) -> str:
    measured = material.frame[
        material.frame["aspect"].isin(["loss", "gradient"]) & material.frame["units"].map(math.isfinite)
    ]
    measured = measured.astype({"dtype": pd.CategoricalDtype(list(ALLOWED_UNITS), ordered=True)})
    rows = []
    for (name, dtype), group in measured.groupby(["implementation", "dtype"], observed=True):
        if name in material.names:
            row = {"implementation": material.label(str(name)), "dtype": dtype}
            for aspect in ("loss", "gradient"):
                row |= _columns(aspect, group[group["aspect"] == aspect])
            rows.append(row)
    allowed = listed(f"{units:g} for {dtype}" for dtype, units in ALLOWED_UNITS.items())
    return material.page(
        "Accuracy",
        "Errors in units: one unit is what rounding alone can cause in a good implementation that computes in float32 (float64 for float64) and rounds its "
        f"result once. Allowed are {allowed}, and more at the lower grades, see below. **right**: the largest error of the cases that pass at the better "
        "grades. **lower**: of those that pass at a lower one. **beyond**: the largest finite error of the others.",
        material.note_on_twins(),
        "![the error of each case, by implementation and dtype](accuracy.svg)",
        table(rows),
        "## Grades",
        "Good implementations differ in how they add up many terms, and in how often they round to a half type. An implementation is held to the grade that it "
        "states (**bold**), and to the lower one if it states none. Its row tells which it reaches, and at the lower one in how many cases and with what error.",
        table(
            {"grade": f"`{name}`", "question": CONVENTIONS[name][0], "answers": listed(CONVENTIONS[name][1], "or")}
            for name in GRADES
        ),
        table(
            {
                "implementation": material.label(name),
                **{grade: _reached(material, measured, name, grade) for grade in GRADES},
            }
            for name in material.names
        ),
    )


def _columns(aspect: str, verdicts: pd.DataFrame) -> dict[str, str]:
    passes, is_lower = verdicts["status"] == "pass", verdicts["grades"] != ""
    some = {"right": passes & ~is_lower, "lower": passes & is_lower, "beyond": ~passes}
    return {f"{aspect}: {word}": _worst(verdicts[chosen]) for word, chosen in some.items()}


def _worst(verdicts: pd.DataFrame) -> str:
    """``1.68 (484 cases)``: the largest error, and of how many cases."""
    return f"{verdicts['units'].max():.3g} ({count(verdicts['case'].nunique(), 'case')})" if len(verdicts) else ""


def _reached(material: Material, measured: pd.DataFrame, name: str, grade: str) -> str:
    """``careful``, or ``plain: 530 (12 cases)``; empty where no case asks for it."""
    best, lower = CONVENTIONS[grade][1]
    mine = measured[(measured["implementation"] == name) & (measured["status"] == "pass")]
    reached = mine[mine["verdict"].map(lambda verdict: grade in verdict.conventions)]
    if not len(reached):
        return ""
    below = reached[reached["verdict"].map(lambda verdict: grade in verdict.lower_grades)]
    answer = f"{lower}: {_worst(below)}" if len(below) else best
    stated = material.claims[name]["conventions"].get(grade)
    return answer.replace(stated, f"**{stated}**", 1) if stated else answer
