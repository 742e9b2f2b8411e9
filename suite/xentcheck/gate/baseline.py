"""What later runs are held to: verdicts, capabilities, bytes and ratios. Seconds mean nothing on another day."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from xentcheck.cost import figures as terminal_cost
from xentcheck.cost import measure as cost
from xentcheck.results.record import Results
from xentcheck.run.verdict import Verdict
from xentcheck.spec.mistakes import UsageError

FORMAT = 1
# The control has come out as 1 if its interval holds 1, or misses it by no more than this, and reaches no further than that.
MISSED, WIDE = 1.01, 1.10
BYTES = ("forward", "kept", "backward", "retained")

Line = Mapping[str, Any]


class GateError(UsageError):
    """A baseline that cannot be read, or that nothing can be compared with. The text says what to do."""


def make_baseline(results: Results) -> tuple[dict[str, Any], list[str]]:
    """What later runs are held to, and what had to be left out. The ratios of several runs on one case are taken together."""
    left_out: list[str] = []
    found: dict[str, Any] = {}
    for name, claims in sorted(results.run["implementations"].items()):
        mine = [line for line in results.costs if line["implementation"] == name]
        found[name] = {
            "version": claims["version"],
            "capabilities": claims["capabilities"],
            "verdicts": _packed(v for v in results.verdicts if v.implementation == name),
            "memory": {
                line["case"]: {"question": line["question"], "device": line["device"]}
                | {part: line["bytes"][part] for part in (*BYTES, "uncounted")}
                for line in mine
                if line["measure"] == cost.MEMORY and line["status"] == "pass"
            },
            "speed": dict(_ratios([line for line in mine if line["measure"] == cost.SPEED], left_out)),
        }
    environment = results.run["environment"]
    return {
        "format": FORMAT,
        "cases": results.run["cases"],
        "environment": {k: environment.get(k) for k in ("torch", "cpu")},
        "implementations": found,
    }, left_out


def _ratios(lines: list[Line], left_out: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for case in dict.fromkeys(line["case"] for line in lines):
        measured = [(line, cost.ratio(line, cost.whole(line))) for line in lines if line["case"] == case]
        told = [(line, r) for line, r in measured if r is not None and not why_unsure(line)]
        if told:
            middle = sorted(r.estimate for _, r in told)[len(told) // 2]
            low, high = min(r.low for _, r in told), max(r.high for _, r in told)
            last = told[-1][0]
            yield (
                case,
                {
                    "question": last["question"],
                    "device": last["device"],
                    "threads": last["settings"]["threads"],
                    "ratio": [round(v, 4) for v in (middle, low, high)],
                },
            )
        elif any(r is not None for _, r in measured):
            left_out.append(
                f"{lines[0]['implementation']} {case}: {why_unsure(measured[-1][0])}; measure again on a quieter machine"
            )


def read_baseline(path: Path) -> dict[str, Any]:
    """A baseline file. Raises GateError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GateError(
            f"{path}: no baseline can be read: {error.strerror}; write one by `xentcheck baseline RESULTS --to {path}`"
        ) from error
    except ValueError as error:
        raise GateError(f"{path}: expected a baseline in JSON; {error}") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT or "implementations" not in value:
        raise GateError(f"{path}: expected a baseline of format {FORMAT}; write it anew by `xentcheck baseline`")
    return value


def as_text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def _packed(verdicts: Iterable[Verdict]) -> dict[str, Any]:
    """A case's status, or its statuses by aspect where they differ."""
    cases: dict[str, dict[str, str]] = {}
    for v in verdicts:
        cases.setdefault(v.case, {})[v.aspect] = v.status
    return {c: next(iter(s.values())) if len(set(s.values())) == 1 else s for c, s in sorted(cases.items())}


def why_unsure(line: Line) -> str:
    control = cost.control(line, cost.whole(line))
    if control is None:
        return "there is no control"
    if control.low > MISSED or control.high < 1 / MISSED:
        return f"the control came out as {terminal_cost.figure(control, None)}, not as 1"
    if control.spread > WIDE:
        return f"the control is wide: {terminal_cost.figure(control, None)}"
    return ""
