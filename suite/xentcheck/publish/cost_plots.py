"""The plots of what implementations cost: SVG on a white ground, so that they read the same on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from xentcheck.cost.measurement import Ratio

# Okabe and Ito's colours, which differ for colour-blind readers, too; each implementation also has a mark of its own.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#a6761d", "#cc79a7", "#56b4e9", "#4d4d4d", "#b8a400")
MARKS = "osD^vPX*"

Styles = Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Point:
    x: float
    ratio: Ratio
    control: Ratio | None = None


@dataclass(frozen=True)
class Cost:
    """What one implementation costs on one case: time as a ratio, and its error in units."""

    name: str
    ratio: float
    units: float
    on_front: bool


def curves(
    panels: Mapping[str, Mapping[str, Sequence[Point]]], label: str, names: Styles, path: Path, log: bool = True
) -> None:
    """Ratios to native with their intervals over a number, one panel beside the other; the grey band is the control's interval."""
    figure, grid = _figure(len(panels), height=3.6)
    for axes, (title, series) in zip(grid, panels.items(), strict=True):
        everything = sorted(
            {p.x: p for points in series.values() for p in points if p.control}.values(), key=lambda p: p.x
        )
        if everything:
            xs = [p.x for p in everything]
            lows, highs = ([getattr(p.control, side) for p in everything] for side in ("low", "high"))
            axes.fill_between(xs, lows, highs, color="#c8c8c8", linewidth=0, zorder=1)
        axes.axhline(1, color="#777777", linewidth=0.8, zorder=2)
        for name, points in series.items():
            points = sorted(points, key=lambda p: p.x)
            errors = [
                [p.ratio.estimate - p.ratio.low for p in points],
                [p.ratio.high - p.ratio.estimate for p in points],
            ]
            xs, ys = [p.x for p in points], [p.ratio.estimate for p in points]
            style: dict[str, Any] = {
                "color": names[name][0],
                "marker": names[name][1],
                "markersize": 5,
                "linewidth": 1.2,
            }
            axes.errorbar(xs, ys, yerr=errors, capsize=2.5, elinewidth=1, label=name, zorder=3, **style)
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(
                FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
            )
            axes.xaxis.set_minor_locator(NullLocator())
        _ratios_on(axes.yaxis, axes)
        axes.set_xlabel(label)
        axes.set_title(title, fontsize=10)
    grid[0].set_ylabel("time over native's")
    _legend(figure, {n: s for n, s in names.items() if any(n in panel for panel in panels.values())})
    _save(figure, path)


def limits(rows: Mapping[str, Mapping[str, float]], names: Styles, path: Path) -> None:
    """For each case and implementation: how many times as long as moving the bytes takes."""
    figure, (axes,) = _figure(1, height=1.4 + 0.32 * len(rows), width=9)
    for place, row in enumerate(rows.values()):
        axes.plot([min(row.values()), max(row.values())], [place, place], color="#bbbbbb", linewidth=1, zorder=1)
        for name, times in row.items():
            axes.scatter([times], [place], color=names[name][0], marker=names[name][1], s=34, zorder=3)
    axes.axvline(1, color="#777777", linewidth=0.8)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("time of the whole step over the time to move the bytes; below 1 zeros were left unwritten")
    _ratios_on(axes.xaxis, axes)
    _legend(figure, {n: s for n, s in names.items() if any(n in row for row in rows.values())})
    _save(figure, path)


def bytes_(rows: Mapping[str, Mapping[str, tuple[float, float]]], names: Styles, path: Path) -> None:
    """For each case and implementation the peak (bar) and what is kept between forward and backward (dark part), in logits."""
    bars = sum(len(row) for row in rows.values())
    figure, (axes,) = _figure(1, height=1.4 + 0.2 * bars + 0.16 * len(rows), width=9)
    place, ticks, labels = 0.0, [], []
    for case, row in rows.items():
        start = place
        for name, (peak, kept) in row.items():
            axes.barh(place, peak, height=0.8, color=names[name][0], alpha=0.45, zorder=2)
            axes.barh(place, kept, height=0.8, color=names[name][0], zorder=3)
            text: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 7, "color": "#333333"}
            axes.annotate(f"{peak:.2f}", (peak, place), xytext=(3, 0), **text)
            place += 1
        ticks.append((start + place - 1) / 2)
        labels.append(case)
        place += 0.8
    axes.set_yticks(ticks, labels)
    axes.set_ylim(place - 1.1, -0.7)
    axes.set_xlim(0, 1.1 * max(1.0, *(peak for row in rows.values() for peak, _ in row.values())))
    axes.set_xlabel("bytes as a multiple of the logits'; dark: kept for the backward pass, whole bar: peak")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6, zorder=0)
    _legend(figure, names, bars=True)
    _save(figure, path)


def front(panels: Mapping[str, Sequence[Cost]], names: Styles, path: Path) -> None:
    """Error against time; those that none beats in both are joined."""
    figure, grid = _figure(len(panels), height=3.4)
    for axes, (title, costs) in zip(grid, panels.items(), strict=True):
        best = sorted((c for c in costs if c.on_front), key=lambda c: c.ratio)
        axes.plot(
            [c.ratio for c in best], [c.units for c in best], color="#555555", linewidth=1, linestyle="--", zorder=1
        )
        for c in costs:
            colour, mark = names[c.name]
            face = colour if c.on_front else "none"
            axes.scatter(
                [c.ratio], [c.units], marker=mark, s=52, facecolors=face, edgecolors=colour, linewidths=1.4, zorder=3
            )
        _ratios_on(axes.xaxis, axes)
        axes.margins(x=0.15)
        axes.set_ylim(0, 1.15 * max(c.units for c in costs) or None)
        axes.set_xlabel("time over native's")
        axes.set_title(title, fontsize=10)
        axes.grid(color="#e2e2e2", linewidth=0.6, zorder=0)
    grid[0].set_ylabel("largest error in units")
    shown = {c.name for costs in panels.values() for c in costs}
    _legend(figure, {n: s for n, s in names.items() if n in shown})
    _save(figure, path)


def styles(found: Iterable[str]) -> Styles:
    """A colour and a mark for each implementation, the same in every plot of a page; native has the first."""
    ordered = sorted(dict.fromkeys(found), key=lambda name: (name != "native", name))
    return {name: (COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]) for i, name in enumerate(ordered)}


def _figure(panels: int, height: float, width: float | None = None) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(width or max(3.6 * panels, 6.0), height), facecolor="white", layout="constrained")
    grid = figure.subplots(1, panels, squeeze=False)[0]
    for axes in grid:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def _ratios_on(axis: Any, axes: Axes) -> None:
    """A logarithmic axis with plain numbers on it."""
    (axes.set_xscale if axis.axis_name == "x" else axes.set_yscale)("log", base=2)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}" if value < 100 else f"{value:.0f}"))
    axis.set_minor_locator(NullLocator())
    axes.grid(axis=axis.axis_name, color="#e2e2e2", linewidth=0.6, zorder=0)


def _legend(figure: Figure, names: Styles, bars: bool = False) -> None:
    handles = [
        mpl.patches.Patch(color=colour, label=name)
        if bars
        else mpl.lines.Line2D([], [], color=colour, marker=mark, linewidth=0, label=name)
        for name, (colour, mark) in names.items()
    ]
    widest = 0.5 + 0.08 * max(map(len, names), default=0)  # inches, with the mark and the space around it
    columns = max(1, min(len(handles), int(figure.get_figwidth() / widest)))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)


def _save(figure: Figure, path: Path) -> None:
    with mpl.rc_context({"svg.hashsalt": "xentcheck", "svg.fonttype": "path"}):
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": "xentcheck"})
