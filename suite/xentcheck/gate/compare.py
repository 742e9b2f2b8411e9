"""Results against a baseline: what got worse, what got better, and what cannot be said. Never red because a machine was noisy.

Verdicts, capabilities and bytes are exact, so any step back is one. A ratio to ``native`` is worse where its whole interval lies past
the threshold in two processes of their own, in each of which the control, ``native`` beside itself, came out as 1. Everything else
about speed is no change or inconclusive. A baseline holds verdicts, bytes and ratios; seconds mean nothing on another day.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xentcheck.cost import figures as terminal_cost
from xentcheck.cost import measure as cost
from xentcheck.cost.memory import SLACK, size
from xentcheck.cost.timing import Ratio
from xentcheck.gate.baseline import BYTES, GateError, Line, why_unsure
from xentcheck.results.markdown import table
from xentcheck.results.record import Results
from xentcheck.run.status import Status
from xentcheck.run.verdict import Verdict

# A ratio may grow by so much. On another CPU or torch than the baseline's the ratio itself is another; only the crudest is then said.
THRESHOLD, ELSEWHERE = 1.05, 2.0
PROCESSES = 3  # in which a ratio is measured at most, the run itself included
WORSE, BETTER, INCONCLUSIVE, SAME = "worse", "better", "inconclusive", "same"
_SHOWN = 40

Again = Callable[[Sequence[Line]], Sequence[Line]]


@dataclass(frozen=True)
class Finding:
    """One difference from the baseline: worse, better or inconclusive, with its numbers and the command to see it again."""

    outcome: str
    kind: str  # verdict, capability, memory or speed
    implementation: str
    case: str
    was: str
    now: str
    again: str = ""


@dataclass(frozen=True)
class Report:
    """All findings, and of each kind how much was compared. ``problems``: why the gate could not do its work."""

    findings: tuple[Finding, ...]
    compared: Mapping[str, int]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def of(self, outcome: str) -> list[Finding]:
        return [f for f in self.findings if f.outcome == outcome]

    def is_red(self, strict: bool = False) -> bool:
        """strict: an inconclusive finding is red, too."""
        return bool(self.problems or self.of(WORSE) or (strict and self.of(INCONCLUSIVE)))


def compare(
    results: Results,
    base: Mapping[str, Any],
    again: Again | None = None,
    sources: Mapping[str, str] | None = None,
) -> Report:
    """again: measures the lines' implementations on their cases in one new process; without it no slow-down is confirmed.
    sources: what ``--impl`` takes, for each implementation whose name alone does not find it."""
    findings: list[Finding] = []
    problems: list[str] = [] if results.complete else ["the run did not end; go on with it by --resume"]
    notes: list[str] = []
    compared = {"verdicts": 0, "capabilities": 0, "memory": 0, "speed": 0}
    names = {**{line["implementation"]: line["source"] for line in results.costs}, **(sources or {})}
    same_place = all(results.run["environment"].get(k) == v for k, v in base["environment"].items())
    if not same_place:
        notes.append(
            f"The baseline is of {_place(base['environment'])}, this run of {_place(results.run['environment'])}: "
            f"a ratio is called worse only beyond {ELSEWHERE:g} times the baseline's."
        )
    known = {n: c for n, c in results.run["implementations"].items() if n in base["implementations"]}
    absent = [n for n in results.run["implementations"] if n not in known]
    if absent:
        notes.append(f"Not in the baseline, so only held to what holds for all: {', '.join(absent)}.")
    if not known:
        problems.append(
            f"nothing to compare: the baseline knows {', '.join(base['implementations']) or 'no implementation'}, the run {', '.join(absent) or 'none'}"
        )
    findings += _new_failures(results, base, names)
    suspects: list[tuple[Line, Mapping[str, Any]]] = []
    for name, claims in known.items():
        was = base["implementations"][name]
        compared["capabilities"] += 1
        findings += _capabilities(name, was["capabilities"], claims["capabilities"])
        verdicts = {(v.case, v.aspect): v for v in results.verdicts if v.implementation == name}
        counted = len(verdicts)
        compared["verdicts"] += counted
        findings += _verdicts(name, was["verdicts"], verdicts, names.get(name, name))
        lines = {(c["measure"], c["case"]): c for c in results.costs if c["implementation"] == name}
        for measure, judge in ((cost.MEMORY, _memory), (cost.SPEED, None)):
            mine = {case: lines[measure, case] for case in was[measure] if (measure, case) in lines}
            compared[measure] += len(mine)
            for case, line in mine.items():
                lost = _not_comparable(line, was[measure][case])
                if lost:
                    findings.append(lost)
                elif judge:
                    findings += judge(line, was[measure][case])
                else:
                    suspects.append((line, was[measure][case]))
            if was[measure] and not mine:
                problems.append(
                    f"the baseline holds the {measure} of {name}; this run measured none of it (--benchmark-skip, --cases and -n leave it out)"
                )
        if was["verdicts"] and not verdicts:
            problems.append(f"the baseline holds the verdicts on {name}; this run reached none")
    findings += _speeds(suspects, again, THRESHOLD if same_place else ELSEWHERE)
    if not any(compared[k] for k in ("verdicts", "memory", "speed")) and not problems:
        problems.append("nothing was compared")
    return Report(tuple(findings), compared, tuple(problems), tuple(notes))


def _capabilities(name: str, was: Sequence[str], now: Sequence[str]) -> Iterator[Finding]:
    again = shlex.join(["pytest", "suite/", "--impl", name])
    for capability in sorted(set(was) - set(now)):
        yield Finding(WORSE, "capability", name, capability, "claimed", "not claimed", again)
    for capability in sorted(set(now) - set(was)):
        yield Finding(BETTER, "capability", name, capability, "not claimed", "claimed", again)


def _verdicts(
    name: str, was: Mapping[str, Any], now: Mapping[tuple[str, str], Verdict], source: str
) -> Iterator[Finding]:
    for (case, aspect), verdict in now.items():
        before = was.get(case)
        status = before.get(aspect) if isinstance(before, dict) else before
        if status is None:
            continue
        step = verdict.status.rank - Status(status).rank
        if step:
            said = f"{verdict.status}: {verdict.message}" if verdict.message else verdict.status
            again = shlex.join(["pytest", "suite/", "--impl", source, "--cases", case])
            yield Finding(WORSE if step > 0 else BETTER, "verdict", name, f"{case} {aspect}", status, said, again)


def _new_failures(results: Results, base: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[Finding]:
    """Failures of what the baseline has no word on: new cases, new implementations."""
    for v in results.verdicts:
        before = base["implementations"].get(v.implementation, {}).get("verdicts", {}).get(v.case)
        unknown = before is None or (isinstance(before, dict) and v.aspect not in before)
        if unknown and not v.status.is_good:
            again = shlex.join(
                ["pytest", "suite/", "--impl", names.get(v.implementation, v.implementation), "--cases", v.case]
            )
            yield Finding(
                WORSE,
                "verdict",
                v.implementation,
                f"{v.case} {v.aspect}",
                "not in the baseline",
                f"{v.status}: {v.message}",
                again,
            )
    for line in results.costs:
        before = base["implementations"].get(line["implementation"], {}).get(line["measure"], {}).get(line["case"])
        if before is None and not Status(line["status"]).is_good:
            now = f"{line['status']}: {line['message']}"
            yield _about(WORSE, line, "not in the baseline", now)


def _not_comparable(line: Line, was: Mapping[str, Any]) -> Finding | None:
    if line["status"] != "pass":
        return _about(WORSE, line, "measured", f"{line['status']}: {line['message']}")
    if line["question"] != was["question"] or line["device"] != was["device"]:
        return _about(INCONCLUSIVE, line, "another case or device", "write a new baseline")
    return None


def _memory(line: Line, was: Mapping[str, Any]) -> Iterator[Finding]:
    for part in (*BYTES, "uncounted"):
        before, now = was.get(part), line["bytes"][part]
        if part == "uncounted":  # no exact figure, and 0 stands for whatever is within the slack
            is_same = before is None or abs(max(now, SLACK) - max(before, SLACK)) <= SLACK
        else:
            is_same = before == now
        if not is_same:
            outcome = WORSE if now > before else BETTER
            of_logits = f"{(now - before) / max(line['logits']['bytes'], 1):+.3g} logits"
            yield _about(
                outcome,
                line,
                f"{part} {size(before or 0)} ({before:,})",
                f"{size(now)} ({now - before:+,} bytes, {of_logits})",
            )


# --- speed


def _speeds(
    suspects: Sequence[tuple[Line, Mapping[str, Any]]], again: Again | None, threshold: float
) -> Iterator[Finding]:
    """Each ratio is put to as many processes as it takes: two that agree that it is worse, or one that is sure that it is not."""
    history = {id(line): [_one_speed(line, was, threshold)] for line, was in suspects}
    lines = {id(line): [line] for line, _ in suspects}
    error = "it was not measured a second time"
    for _ in range(PROCESSES - 1):
        open_ = [(line, was) for line, was in suspects if _undecided(history[id(line)])]
        if not open_ or again is None:
            break
        try:
            measured = {(m["implementation"], m["case"]): m for m in again([line for line, _ in open_])}
        except GateError as problem:
            error = str(problem)
            break
        for line, was in open_:
            more = measured.get((line["implementation"], line["case"]))
            if more is None or more["status"] != "pass":
                history[id(line)].append((INCONCLUSIVE, "it could not be measured a second time"))
                continue
            lines[id(line)].append(more)
            history[id(line)].append(_one_speed(more, was, threshold))
    for line, was in suspects:
        outcomes = [outcome for outcome, _ in history[id(line)]]
        now = "; then ".join(_shown(one) for one in lines[id(line)])
        before = terminal_cost.figure(Ratio(*was["ratio"]), None)
        if outcomes.count(WORSE) >= 2:
            yield _about(WORSE, line, before, now)
        elif SAME in outcomes or outcomes[-1] == BETTER:
            if WORSE in outcomes:
                yield _about(INCONCLUSIVE, line, before, f"{now}: not confirmed")
            elif BETTER in outcomes and SAME not in outcomes:
                yield _about(BETTER, line, before, now)
        elif WORSE in outcomes:
            yield _about(INCONCLUSIVE, line, before, f"{now}: {history[id(line)][-1][1] or error}")
        else:
            yield _about(INCONCLUSIVE, line, before, f"{now}: {history[id(line)][-1][1]}")


def _undecided(history: Sequence[tuple[str, str]]) -> bool:
    outcomes = [outcome for outcome, _ in history]
    return SAME not in outcomes and BETTER not in outcomes and outcomes.count(WORSE) < 2


def _one_speed(line: Line, was: Mapping[str, Any], threshold: float) -> tuple[str, str]:
    """What one process says by itself, and why where it says nothing."""
    before, now = Ratio(*was["ratio"]), cost.ratio(line, cost.whole(line))
    if now is None:
        return INCONCLUSIVE, "there is no ratio"
    if line["settings"]["threads"] != was["threads"]:
        return INCONCLUSIVE, f"measured with {line['settings']['threads']} threads, the baseline with {was['threads']}"
    unsure = why_unsure(line)
    if unsure:
        return INCONCLUSIVE, unsure
    if now.low > max(before.high, threshold * before.estimate):
        return WORSE, ""
    if now.high < min(before.low, before.estimate / threshold):
        return BETTER, ""
    return SAME, ""


def _shown(line: Line) -> str:
    found, control = cost.ratio(line, cost.whole(line)), cost.control(line, cost.whole(line))
    if found is None or control is None:
        return "no ratio"
    return f"{terminal_cost.figure(found, None)}, control within {100 * (control.spread - 1):.1f} %"


def _about(outcome: str, line: Line, was: str, now: str) -> Finding:
    return Finding(outcome, line["measure"], line["implementation"], line["case"], was, now, terminal_cost.again(line))


def _place(environment: Mapping[str, Any]) -> str:
    return f"torch {environment.get('torch')} on {environment.get('cpu')}"


# --- Markdown


def markdown(report: Report, strict: bool = False) -> str:
    """The summary: the colour, the counts, and a table for each outcome."""
    worse, better, unsure = (report.of(outcome) for outcome in (WORSE, BETTER, INCONCLUSIVE))
    compared = ", ".join(f"{n} {kind}" for kind, n in report.compared.items() if kind != "capabilities")
    parts = [
        f"## Gate: {'red' if report.is_red(strict) else 'green'}",
        f"{len(worse)} worse, {len(better)} better, {len(unsure)} inconclusive{' (red by --strict-perf)' if strict and unsure else ''}. Compared: {compared}.",
        *report.notes,
        *(f"**The gate could not do its work: {problem}.**" for problem in report.problems),
    ]
    for title, found in (("Worse", worse), ("Inconclusive", unsure), ("Better", better)):
        if found:
            parts.append(f"### {title}\n\n{table([_row(f) for f in found[:_SHOWN]])}")
            if len(found) > _SHOWN:
                parts.append(f"and {len(found) - _SHOWN} more")
    return "\n\n".join(parts) + "\n"


def publish(text: str) -> None:
    """Appends to the summary of a GitHub job, where there is one."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if path:
        with Path(path).open("a", encoding="utf-8") as summary:
            summary.write(text + "\n")


def _row(found: Finding) -> dict[str, str]:
    return {
        "what": found.kind,
        "implementation": f"`{found.implementation}`",
        "case": f"`{found.case}`",
        "baseline": found.was,
        "now": found.now.replace("|", "\\|").replace("\n", " ")[:300],
        "see it again": f"`{found.again}`",
    }
