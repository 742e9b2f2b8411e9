"""Records to the pages of what implementations cost: ``speed.md`` and ``memory.md``. Every number on them comes from the records."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xentcheck.cost import measure as cost
from xentcheck.cost import timing
from xentcheck.cost.figures import digits, figure, share
from xentcheck.cost.memory import size
from xentcheck.cost.timing import Ratio
from xentcheck.publish import cost_plots as plot_cost
from xentcheck.results.markdown import table
from xentcheck.results.record import RecordError, Results, costs_by_key

Line = Mapping[str, Any]
ENVIRONMENT = ("<!-- environment -->", "<!-- /environment -->")
MADE = "Made by `make speed`; `xentcheck report DIR --to reports` makes the pages from any results that hold costs."
PROFILES = ("quick", "lm", "linear", "segmentation", "tagging", "classification", "sweeps", "cuda")
AGAIN = (
    "pytest suite/test_speed.py suite/test_memory.py --impl {names} --profile {profile} --device cuda --results reports/results/{profile}\n"
    "xentcheck report reports/results/speed reports/results/speed-linear reports/results/{profile} --to reports    # after make speed"
)
FRONT = ("lm/vocabulary-32k", "lm/vocabulary-128k", "classification/imagenet")


def write(results: Results, folder: Path) -> list[Path]:
    """Writes the pages of what was measured and their plots into the folder; returns their paths."""
    lines = list(costs_by_key(results.costs).values())
    if not lines:
        raise RecordError("expected results that hold costs; found none")
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for measure, page in ((cost.SPEED, _speed), (cost.MEMORY, _memory)):
        mine = _ordered([line for line in lines if line["measure"] == measure])
        if mine:
            path = folder / f"{measure}.md"
            path.write_text(page(mine, results, folder, written), encoding="utf-8")
            written.insert(0, path)
    return written


# --- speed


def _speed(lines: list[Line], results: Results, folder: Path, written: list[Path]) -> str:
    parts = [
        "# How long it takes",
        _truncated(results),
        "Times over those of `native`, measured side by side in one process, with their 99 % intervals; less is faster. `~` means no difference that could be shown: it is smaller than the control's (`native` beside itself in the same rounds), or its interval holds 1.",
        "**of the limit**: the time of the whole step over the time that moving the necessary bytes takes, at the copy and fill bandwidth measured in the same run. It is below 1 where pages of zeros are left as the system gives them. **first call**: the first step on this shape in its process over a later one; compiling is part of it. **both**: forward and backward together, which is what training takes; a loss that computes its gradient in the forward pass is slow there and has hardly any backward pass.",
        "In a case named `compiled` everything runs under torch.compile, `native` included; one named `forward` asks for no gradient. Under `linear` a step is a linear layer and the loss, with the gradients of both; a loss that is not fused is measured behind that layer, and there is no limit, since matrix products take most of the time. An implementation that fails on a shape, or is known to be wrong there, shows that instead of a time.",
    ]
    for profile in _profiles(lines):
        if profile != "sweeps":
            mine = [line for line in lines if line["profile"] == profile]
            parts += [f"## {profile}", _table(_speed_row, mine), _controls(mine)]
    parts += _speed_plots(lines, folder, written)
    sweeps = [line for line in lines if line["profile"] == "sweeps"]
    if sweeps:
        parts += ["## sweeps in numbers", table(map(_speed_row, sweeps)), _controls(sweeps)]
    return _joined([*parts, _marked(lines), MADE, _environment(results, lines)])


def _speed_row(line: Line) -> dict[str, str]:
    row = _names(line)
    if line["status"] != "pass":
        return row | {"forward": _failure(line)}
    for phase in timing.PHASES:
        found = cost.ratio(line, phase)
        is_native = timing.CANDIDATE not in line["rounds"]
        is_timed = phase in line["rounds"][timing.BASE]
        row[phase] = (
            ("1" if is_timed else "")
            if is_native
            else ""
            if found is None
            else figure(found, cost.control(line, phase))
        )
    whole = cost.whole(line)
    took, bound = cost.seconds(line, whole), cost.limit(line, whole)
    row["of the limit"] = f"{digits(took / bound, took / bound / 5)}" if took and bound else ""
    row["first call"] = f"{line['first'][whole] / took:.0f}" if took else ""
    return row


def _controls(lines: Iterable[Line]) -> str:
    found = [r for line in lines for r in [cost.control(line, cost.whole(line))] if r is not None]
    if not found:
        return ""
    worst, usual = max(r.spread for r in found), sorted(r.spread for r in found)[len(found) // 2]
    return f"The control beside these: `native` over `native` within {100 * (usual - 1):.1f} % in the median, {100 * (worst - 1):.1f} % at worst."


def _speed_plots(lines: list[Line], folder: Path, written: list[Path]) -> list[str]:
    parts: list[str] = []
    names = plot_cost.styles(line["implementation"] for line in lines)

    def plot(name: str, title: str, text: str) -> Path:
        parts.extend((f"## {title}", text, f"![{title}]({name})"))
        written.append(folder / name)
        return folder / name

    for sweep, axis, title in (
        ("over-classes", "classes", "Over the number of classes"),
        ("over-positions", "positions", "Over the number of positions"),
    ):
        panels = {phase: _points(lines, f"{sweep}/", axis, phase) for phase in timing.PHASES}
        if any(panels.values()):
            what = "four million logits at each" if sweep == "over-classes" else "1000 classes"
            path = plot(f"speed-{sweep}.svg", title, f"{what.capitalize()}; the grey band is the control's interval.")
            plot_cost.curves(panels, axis, names, path)
    ignored = {
        f"{which}: {phase}": _points(lines, f"over-ignored/{which}", "ignored", phase)
        for which in ("scattered", "suffix")
        for phase in ("both",)
    }
    if any(ignored.values()):
        text = "2048 positions of 8192 classes, some of them ignored: everywhere, or as padding at the end. Skipping them is what a good implementation does."
        path = plot("speed-over-ignored.svg", "Over the share of ignored positions", text)
        plot_cost.curves(ignored, "share of ignored positions", names, path, log=False)
    rows: dict[str, dict[str, float]] = {}
    for line in _plain(lines):
        took, bound = (f(line, cost.whole(line)) for f in (cost.seconds, cost.limit))
        if took and bound and math.isfinite(took / bound):
            rows.setdefault(line["case"], {})[line["implementation"]] = took / bound
    if rows:
        text = "The whole step: forward and backward together, or forward alone. A case that fits into a cache has that cache's bandwidth for its limit."
        plot_cost.limits(rows, names, plot("speed-limit.svg", "Time against the limit", text))
    panels_ = {case: _front([line for line in lines if line["case"] == case]) for case in FRONT}
    panels_ = {case: costs for case, costs in panels_.items() if costs}
    if panels_:
        text = "The largest error of the loss or of the gradient on the very batch, in units of what rounding alone can cause, against time. Filled and joined: none is both faster and more accurate."
        plot_cost.front(panels_, names, plot("speed-accuracy.svg", "Accuracy against time", text))
    return parts


def _points(lines: Iterable[Line], prefix: str, axis: str, phase: str) -> dict[str, list[plot_cost.Point]]:
    series: dict[str, list[plot_cost.Point]] = {}
    for line in lines:
        found = cost.ratio(line, phase) if line["case"].startswith(prefix) else None
        if found is not None:
            point = plot_cost.Point(_axis(line, axis), found, cost.control(line, phase))
            series.setdefault(line["implementation"], []).append(point)
    return series


def _axis(line: Line, axis: str) -> float:
    shape = line["logits"]["shape"]
    if axis == "classes":
        return float(shape[1])
    if axis == "positions":
        return math.prod(shape) / shape[1]
    moved = line["must_move"]["both"]
    return moved["filled"] / (moved["copied"] / 2 + moved["filled"])


def _front(lines: Iterable[Line]) -> list[plot_cost.Cost]:
    """Those with a ratio, and native as 1; on the front is what none beats in time and error."""
    found = []
    for line in lines:
        if line["status"] == "pass":
            ratio = cost.ratio(line, cost.whole(line)) or Ratio(1.0, 1.0, 1.0)
            found.append((line["implementation"], ratio.estimate, max(line["error_units"].values())))
    return [
        plot_cost.Cost(n, r, u, not any((r2 <= r and u2 <= u and (r2, u2) != (r, u)) for _, r2, u2 in found))
        for n, r, u in found
    ]


# --- memory


def _memory(lines: list[Line], results: Results, folder: Path, written: list[Path]) -> str:
    parts = [
        "# How much memory it takes",
        _truncated(results),
        "Bytes beside the logits themselves, as multiples of the logits' size: the peak during the forward pass, what is kept for the backward pass, the peak during the backward pass (what was kept and the gradient included), and what is still held once loss and gradient are gone.",
        "Bytes are counted exactly, from torch's own allocation events and anonymous maps of `mmap.mmap`. Other allocations leave no event; where the process was seen to hold more than 24 MiB beyond what was counted, **and ... more** is added.",
        "The least possible is 1 in the backward pass, for the gradient, and 0 where it overwrites the logits (\\*). Under `linear` it is the gradients of hidden states and matrix, and the logits are those that a fused loss does not hold.",
    ]
    for profile in _profiles(lines):
        parts += [f"## {profile}", _table(_memory_row, [line for line in lines if line["profile"] == profile])]
    rows: dict[str, dict[str, tuple[float, float]]] = {}
    for line in _plain(lines):
        if line["status"] == "pass":
            whole, counted = max(line["logits"]["bytes"], 1), line["bytes"]
            peak = max(counted["forward"], counted["backward"])
            rows.setdefault(line["case"], {})[line["implementation"]] = (peak / whole, counted["kept"] / whole)
    if rows:
        plot_cost.bytes_(rows, plot_cost.styles(line["implementation"] for line in lines), folder / "memory.svg")
        written.append(folder / "memory.svg")
        parts.insert(5, "![peak and kept bytes by case and implementation](memory.svg)")
    return _joined([*parts, _marked(lines), MADE, _environment(results, lines)])


def _memory_row(line: Line) -> dict[str, str]:
    row = _names(line)
    if line["status"] != "pass":
        return row | {"logits": _failure(line)}
    counted = line["bytes"]
    row["logits"] = size(line["logits"]["bytes"])
    for part in ("forward", "kept", "backward", "retained"):
        row[part] = share(counted[part], line) + (
            f" and {size(counted['uncounted'])} more" if counted["uncounted"] and part == "backward" else ""
        )
    return row


# --- both


def _names(line: Line) -> dict[str, str]:
    mark = " *" if line.get("overwrites") else ""
    return {"case": f"`{line['case']}`", "implementation": f"`{line['implementation']}`{mark}"}


def _marked(lines: Iterable[Line]) -> str:
    if not any(line.get("overwrites") for line in lines):
        return ""
    return "\\* is known to overwrite the logits; each step gets fresh ones, which are not part of what is measured."


def _table(row: Callable[[Line], dict[str, str]], lines: Sequence[Line]) -> str:
    """One row a line; or, where the device was not at hand for any of them, how to fill the table."""
    device_is_missing = all(
        line["status"] == "unavailable" and "cuda" in (line["profile"], line["device"]) for line in lines
    )
    if not device_is_missing:
        return table(map(row, lines))
    cases, names = (list(dict.fromkeys(line[key] for line in lines)) for key in ("case", "implementation"))
    reasons = sorted({line["message"] for line in lines})
    return (
        f"**Not measured**: {'; '.join(reasons)}. The cases: {', '.join(f'`{c}`' for c in cases)}. To fill this table:\n\n"
        f"```\n{AGAIN.format(profile=lines[0]['profile'], names=','.join(names))}\n```"
    )


def _failure(line: Line) -> str:
    return f"{line['status']}: {line['message']}".replace("|", "\\|").replace("\n", " ")[:480]


def _ordered(lines: Sequence[Line]) -> list[Line]:
    """Profiles as people know them, cases as they were measured, native first."""
    cases = list(dict.fromkeys(line["case"] for line in lines))

    def place(line: Line) -> tuple[int, int, bool, str]:
        profile = PROFILES.index(line["profile"]) if line["profile"] in PROFILES else len(PROFILES)
        return profile, cases.index(line["case"]), line["implementation"] != "native", line["implementation"]

    return sorted(lines, key=place)


def _plain(lines: Iterable[Line]) -> list[Line]:
    """Without the sweeps, and without the quick shapes where there are others."""
    lines = list(lines)
    real = [line for line in lines if line["profile"] not in ("quick", "sweeps")]
    return real or [line for line in lines if line["profile"] == "quick"]


def _profiles(lines: Iterable[Line]) -> list[str]:
    return list(dict.fromkeys(line["profile"] for line in lines))


def _truncated(results: Results) -> str:
    return (
        ""
        if results.complete
        else "> **This run did not end; what follows is not complete.** Go on with it by `--resume`."
    )


def _joined(parts: Iterable[str]) -> str:
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _environment(results: Results, lines: Iterable[Line]) -> str:
    places: dict[str, set[str]] = {}
    for run in results.runs or (results.run,):
        where = run["environment"]
        place = f"torch {where['torch']}, " + ", ".join(where[k] for k in ("cpu", "gpu", "os") if where.get(k))
        places.setdefault(place, set()).add(run["started"])
    versions = ", ".join(f"{n} {c['version']}".rstrip() for n, c in sorted(results.run["implementations"].items()))
    settings = [line["settings"] for line in lines if "settings" in line]
    threads = ", ".join(sorted({str(s["threads"]) for s in settings}))
    pages = ", ".join(sorted({s["huge_pages"] for s in settings}))
    variables = sorted({f"{k}={v}" for s in settings for k, v in s["environment"].items()})
    said = [
        *(f"Started {', '.join(sorted(starts))}; {place}." for place, starts in places.items()),
        f"Threads: {threads}; transparent huge pages: {pages}." if settings else "",
        f"Set in the environment: {', '.join(f'`{v}`' for v in variables) or 'nothing that matters'}."
        if settings
        else "",
        f"Versions: {versions}.",
    ]
    return "\n".join((ENVIRONMENT[0], *(s for s in said if s), ENVIRONMENT[1]))
