"""The plot of ``accuracy.md``: an SVG on white, which is readable on a light and on a dark page."""

from __future__ import annotations

import io
import math
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from xentcheck.reference.definition import ALLOWED_UNITS

COLOURS = {"float64": "#3b6ea8", "float32": "#2a8c6f", "bfloat16": "#c4761b", "float16": "#a8425a"}
FLOOR = 1e-3  # exact answers are drawn here


def accuracy(frame: pd.DataFrame) -> bytes:
    """One dot for each loss and gradient: its error in units, by implementation and dtype. Hollow dots are cases that do not pass.

    frame: one row for each verdict, as ``page.Material`` has it. Returns an SVG.
    """
    measured = frame[frame["aspect"].isin(["loss", "gradient"]) & frame["units"].map(math.isfinite)]
    names = sorted(measured["implementation"].unique())
    figure = Figure(figsize=(9, 1.2 + 0.72 * len(names)), facecolor="white", layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(names):
        for lane, dtype in enumerate(ALLOWED_UNITS):
            height = row + (lane - 1.5) * 0.19
            here = measured[(measured["implementation"] == name) & (measured["dtype"] == dtype)]
            for passes, face in ((True, COLOURS[dtype]), (False, "none")):
                units = here[(here["status"] == "pass") == passes]["units"].clip(lower=FLOOR)
                # Dots that would cover each other are drawn once.
                errors = [10 ** (steps / 20) for steps in sorted({round(20 * math.log10(u)) for u in units})]
                style: dict[str, Any] = {"facecolors": face, "edgecolors": COLOURS[dtype]}
                axes.scatter(errors, [height] * len(errors), s=14, linewidths=0.9, zorder=3, **style)
            bar = [height - 0.09, height + 0.09]
            axes.plot([ALLOWED_UNITS[dtype]] * 2, bar, color=COLOURS[dtype], linewidth=2, zorder=2)
    for dtype, colour in COLOURS.items():
        axes.scatter([], [], s=24, color=colour, label=dtype)
    if len(measured):  # an empty axis has no logarithm
        axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    axes.set_xlabel("error in units; bar: allowed at the better grades; filled: pass, hollow: not a pass")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6, zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(ncols=4, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    content = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "xentcheck", "svg.fonttype": "path"}):
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": "xentcheck"})
    return content.getvalue()
