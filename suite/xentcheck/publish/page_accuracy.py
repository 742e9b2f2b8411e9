"""``accuracy.md``: the errors of losses and gradients in units, by implementation and dtype."""

from __future__ import annotations

import math

import pandas as pd

from xentcheck.publish.page import Material
from xentcheck.reference.definition import ALLOWED_UNITS
from xentcheck.results.markdown import count, listed, table


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
        f"result once. Allowed are {allowed}. **right**: the largest error of the cases that pass. **beyond**: the largest finite error of the others.",
        material.note_on_twins(),
        "![the error of each case, by implementation and dtype](accuracy.svg)",
        table(rows),
    )


def _columns(aspect: str, verdicts: pd.DataFrame) -> dict[str, str]:
    passing = verdicts[verdicts["status"] == "pass"]["units"]
    wrong = verdicts[verdicts["status"] != "pass"]["units"]
    return {
        f"{aspect}: right": f"{passing.max():.2f} ({count(len(passing), 'case')})" if len(passing) else "",
        f"{aspect}: beyond": f"{wrong.max():.3g} ({count(len(wrong), 'case')})" if len(wrong) else "",
    }
