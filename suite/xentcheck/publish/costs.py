"""Records to the pages of what implementations cost: ``speed.md`` and ``memory.md``. Every number on them comes from the records."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from xentcheck.cost.figures import digits, figure, share
from xentcheck.cost.measurement import MEMORY, PHASES, SPEED, Logits, Measurement, Phase, Ratio, Timing, as_of_one
from xentcheck.cost.memory import size
from xentcheck.publish import cost_plots
from xentcheck.results.markdown import table
from xentcheck.results.record import RecordError, Results
from xentcheck.run.status import Status

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
    everything = list(as_of_one(results.costs).values())
    if not everything:
        raise RecordError("expected results that hold costs; found none")
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for measure, page in ((SPEED, _speed), (MEMORY, _memory)):
        measured = _ordered([found for found in everything if found.measure == measure])
        if measured:
            path = folder / f"{measure}.md"
            path.write_text(page(measured, results, folder, written), encoding="utf-8")
            written.insert(0, path)
    return written


# --- speed


def _speed(measured: list[Measurement], results: Results, folder: Path, written: list[Path]) -> str:
    parts = [
        "# How long it takes",
        _truncated(results),
        "Times over those of `native`, measured side by side in one process, with their 99 % intervals; less is faster. `~` means no difference that could be shown: it is smaller than the control's (`native` beside itself in the same rounds), or its interval holds 1.",
        "**of the limit**: the time of the whole step over the time that moving the necessary bytes takes, at the copy and fill bandwidth measured in the same run. It is below 1 where pages of zeros are left as the system gives them. **first call**: the first step on this shape in its process over a later one; compiling is part of it. **both**: forward and backward together, which is what training takes; a loss that computes its gradient in the forward pass is slow there and has hardly any backward pass.",
        "In a case named `compiled` everything runs under torch.compile, `native` included; one named `forward` asks for no gradient. Under `linear` a step is a linear layer and the loss, with the gradients of both; a loss that is not fused is measured behind that layer, and there is no limit, since matrix products take most of the time. An implementation that fails on a shape, or is known to be wrong there, shows that instead of a time.",
    ]
    profiles = _by_profile(measured)
    sweeps = profiles.pop("sweeps", [])
    for profile, own in profiles.items():
        parts += [f"## {profile}", _table(_speed_row, own), _controls(own)]
    parts += _speed_plots(measured, folder, written)
    if sweeps:
        parts += ["## sweeps in numbers", table(map(_speed_row, sweeps)), _controls(sweeps)]
    return _joined([*parts, _marked(measured), MADE, _environment(results, measured)])


def _speed_row(found: Measurement) -> dict[str, str]:
    row, timing = _names(found), found.timing
    if timing is None:
        return row | {"forward": _failure(found)}
    for phase in PHASES:
        if timing.is_of_native:
            row[phase] = "1" if timing.seconds(phase) else ""
        else:
            ratio = timing.ratio(phase)
            row[phase] = "" if ratio is None else figure(ratio, timing.control(phase))
    took, bound = timing.seconds(timing.whole), timing.limit(timing.whole)
    row["of the limit"] = digits(took / bound, took / bound / 5) if took and bound else ""
    row["first call"] = f"{timing.first[timing.whole] / took:.0f}" if took else ""
    return row


def _controls(measured: Iterable[Measurement]) -> str:
    timings = [found.timing for found in measured if found.timing]
    spreads = sorted(control.spread for timing in timings if (control := timing.control(timing.whole)))
    if not spreads:
        return ""
    usual, worst = (100 * (spread - 1) for spread in (spreads[len(spreads) // 2], spreads[-1]))
    return (
        f"The control beside these: `native` over `native` within {usual:.1f} % in the median, {worst:.1f} % at worst."
    )


def _speed_plots(measured: list[Measurement], folder: Path, written: list[Path]) -> list[str]:
    parts: list[str] = []
    names = cost_plots.styles(found.implementation for found in measured)

    def plot(name: str, title: str, text: str) -> Path:
        parts.extend((f"## {title}", text, f"![{title}]({name})"))
        written.append(folder / name)
        return folder / name

    for sweep, axis, title in (
        ("over-classes", "classes", "Over the number of classes"),
        ("over-positions", "positions", "Over the number of positions"),
    ):
        panels: dict[str, dict[str, list[cost_plots.Point]]] = {
            phase: _points(measured, f"{sweep}/", axis, phase) for phase in PHASES
        }
        if any(panels.values()):
            what = "four million logits at each" if sweep == "over-classes" else "1000 classes"
            path = plot(f"speed-{sweep}.svg", title, f"{what.capitalize()}; the grey band is the control's interval.")
            cost_plots.curves(panels, axis, names, path)
    ignored = {
        f"{which}: both": _points(measured, f"over-ignored/{which}", "ignored", "both")
        for which in ("scattered", "suffix")
    }
    if any(ignored.values()):
        text = "2048 positions of 8192 classes, some of them ignored: everywhere, or as padding at the end. Skipping them is what a good implementation does."
        path = plot("speed-over-ignored.svg", "Over the share of ignored positions", text)
        cost_plots.curves(ignored, "share of ignored positions", names, path, log=False)
    rows: dict[str, dict[str, float]] = {}
    for found in _plain(measured):
        timing = found.timing
        if timing and (took := timing.seconds(timing.whole)) and (bound := timing.limit(timing.whole)):
            rows.setdefault(found.case, {})[found.implementation] = took / bound
    if rows:
        text = "The whole step: forward and backward together, or forward alone. A case that fits into a cache has that cache's bandwidth for its limit."
        cost_plots.limits(rows, names, plot("speed-limit.svg", "Time against the limit", text))
    panels_ = {case: _front(found for found in measured if found.case == case) for case in FRONT}
    panels_ = {case: costs for case, costs in panels_.items() if costs}
    if panels_:
        text = "The largest error of the loss or of the gradient on the very batch, in units of what rounding alone can cause, against time. Filled and joined: none is both faster and more accurate."
        cost_plots.front(panels_, names, plot("speed-accuracy.svg", "Accuracy against time", text))
    return parts


def _points(measured: Iterable[Measurement], prefix: str, axis: str, phase: Phase) -> dict[str, list[cost_plots.Point]]:
    series: dict[str, list[cost_plots.Point]] = {}
    for found in measured:
        timing, logits = found.timing, found.logits
        if timing and logits and found.case.startswith(prefix) and (ratio := timing.ratio(phase)):
            point = cost_plots.Point(_place(logits, timing, axis), ratio, timing.control(phase))
            series.setdefault(found.implementation, []).append(point)
    return series


def _place(logits: Logits, timing: Timing, axis: str) -> float:
    """Where on an axis of a sweep: a number of classes or positions, or the share that is ignored."""
    shape = logits.shape
    if axis == "classes":
        return float(shape[1])
    if axis == "positions":
        return math.prod(shape) / shape[1]
    assert timing.must_move is not None  # as of all that have no linear layer
    moved = timing.must_move["both"]
    return moved.filled / (moved.copied / 2 + moved.filled)


def _front(measured: Iterable[Measurement]) -> list[cost_plots.Cost]:
    """Those with a ratio, and native as 1; on the front is what none beats in time and error."""
    found = []
    for one in measured:
        if one.timing:
            ratio = one.timing.ratio(one.timing.whole) or Ratio(1.0, 1.0, 1.0)
            found.append((one.implementation, ratio.estimate, max(one.error_units.values())))
    return [
        cost_plots.Cost(n, r, u, not any((r2 <= r and u2 <= u and (r2, u2) != (r, u)) for _, r2, u2 in found))
        for n, r, u in found
    ]


# --- memory


def _memory(measured: list[Measurement], results: Results, folder: Path, written: list[Path]) -> str:
    parts = [
        "# How much memory it takes",
        _truncated(results),
        "Bytes beside the logits themselves, as multiples of the logits' size: the peak during the forward pass, what is kept for the backward pass, the peak during the backward pass (what was kept and the gradient included), and what is still held once loss and gradient are gone.",
        "Bytes are counted exactly, from torch's own allocation events and anonymous maps of `mmap.mmap`. Other allocations leave no event; where the process was seen to hold more than 24 MiB beyond what was counted, **and ... more** is added. What an implementation holds between its calls, such as a workspace, counts in both peaks: **... of it held**.",
        "The least possible is 1 in the backward pass, for the gradient, and 0 where it overwrites the logits (\\*). Under `linear` it is the gradients of hidden states and matrix, and the logits are those that a fused loss does not hold.",
    ]
    for profile, own in _by_profile(measured).items():
        parts += [f"## {profile}", _table(_memory_row, own)]
    rows: dict[str, dict[str, tuple[float, float]]] = {}
    for found in _plain(measured):
        if found.memory and found.logits:
            whole, peak = max(found.logits.bytes, 1), max(found.memory.forward, found.memory.backward)
            rows.setdefault(found.case, {})[found.implementation] = (peak / whole, found.memory.kept / whole)
    if rows:
        names = cost_plots.styles(found.implementation for found in measured)
        cost_plots.bytes_(rows, names, folder / "memory.svg")
        written.append(folder / "memory.svg")
        parts.insert(5, "![peak and kept bytes by case and implementation](memory.svg)")
    return _joined([*parts, _marked(measured), MADE, _environment(results, measured)])


def _memory_row(found: Measurement) -> dict[str, str]:
    row, memory, logits = _names(found), found.memory, found.logits
    if memory is None or logits is None:
        return row | {"logits": _failure(found)}
    row["logits"] = size(logits.bytes)
    for part in ("forward", "kept", "backward", "retained"):
        more = f" and {size(memory.uncounted)} more" if memory.uncounted and part == "backward" else ""
        held = f", {share(memory.held, found)} of it held" if memory.held and part in ("forward", "backward") else ""
        row[part] = share(getattr(memory, part), found) + more + held
    return row


# --- both


def _names(found: Measurement) -> dict[str, str]:
    mark = " *" if found.overwrites else ""
    return {"case": f"`{found.case}`", "implementation": f"`{found.implementation}`{mark}"}


def _marked(measured: Iterable[Measurement]) -> str:
    if not any(found.overwrites for found in measured):
        return ""
    return "\\* is known to overwrite the logits; each step gets fresh ones, which are not part of what is measured."


def _table(row: Callable[[Measurement], dict[str, str]], measured: Sequence[Measurement]) -> str:
    """One row for each; or, where the device was not at hand for any of them, how to fill the table."""
    device_is_missing = all(
        found.status is Status.UNAVAILABLE and "cuda" in (found.profile, found.device) for found in measured
    )
    if not device_is_missing:
        return table(map(row, measured))
    cases = dict.fromkeys(f"`{found.case}`" for found in measured)
    names = dict.fromkeys(found.implementation for found in measured)
    reasons = sorted({found.message for found in measured})
    return (
        f"**Not measured**: {'; '.join(reasons)}. The cases: {', '.join(cases)}. To fill this table:\n\n"
        f"```\n{AGAIN.format(profile=measured[0].profile, names=','.join(names))}\n```"
    )


def _failure(found: Measurement) -> str:
    return f"{found.status}: {found.message}".replace("\n", " ")[:480]


def _ordered(measured: Sequence[Measurement]) -> list[Measurement]:
    """Profiles as people know them, cases as they were measured, native first."""
    cases = list(dict.fromkeys(found.case for found in measured))

    def place(found: Measurement) -> tuple[int, int, bool, str]:
        profile = PROFILES.index(found.profile) if found.profile in PROFILES else len(PROFILES)
        return profile, cases.index(found.case), found.implementation != "native", found.implementation

    return sorted(measured, key=place)


def _plain(measured: Iterable[Measurement]) -> list[Measurement]:
    """Without the sweeps, and without the quick shapes where there are others."""
    profiles = _by_profile(measured)
    quick = profiles.pop("quick", [])
    profiles.pop("sweeps", None)
    return [found for own in profiles.values() for found in own] or quick


def _by_profile(measured: Iterable[Measurement]) -> dict[str, list[Measurement]]:
    profiles: dict[str, list[Measurement]] = {}
    for found in measured:
        profiles.setdefault(found.profile, []).append(found)
    return profiles


def _truncated(results: Results) -> str:
    return (
        ""
        if results.complete
        else "> **This run did not end; what follows is not complete.** Go on with it by `--resume`."
    )


def _joined(parts: Iterable[str]) -> str:
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _environment(results: Results, measured: Iterable[Measurement]) -> str:
    places: dict[str, set[str]] = {}
    for run in results.runs or (results.run,):
        where = run["environment"]
        place = f"torch {where['torch']}, " + ", ".join(where[k] for k in ("cpu", "gpu", "os") if where.get(k))
        places.setdefault(place, set()).add(run["started"])
    versions = ", ".join(f"{n} {c['version']}".rstrip() for n, c in sorted(results.run["implementations"].items()))
    sentences = [f"Started {', '.join(sorted(starts))}; {place}." for place, starts in places.items()]
    settings = [found.timing.settings for found in measured if found.timing]
    if settings:
        threads, pages = ({str(getattr(s, name)) for s in settings} for name in ("threads", "huge_pages"))
        variables = sorted({f"`{k}={v}`" for s in settings for k, v in s.environment.items()})
        sentences += [
            f"Threads: {', '.join(sorted(threads))}; transparent huge pages: {', '.join(sorted(pages))}.",
            f"Set in the environment: {', '.join(variables) or 'nothing that matters'}.",
        ]
    return "\n".join((ENVIRONMENT[0], *sentences, f"Versions: {versions}.", ENVIRONMENT[1]))
