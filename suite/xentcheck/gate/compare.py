"""Results against a baseline: what got worse, what got better, what is missing, and what cannot be said. Never red because a machine was noisy.

A run is held to every key of the baseline (implementation, case, aspect or measure): what it lacks is missing, and red. Verdicts,
capabilities and bytes are exact, so any step back is one. A ratio to ``native`` is worse where its whole interval lies past the
threshold of the baseline's ratio or of its anchor, in two processes of their own, in each of which the control, ``native`` beside
itself, came out as 1. Everything else about speed is no change or inconclusive.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xentcheck.cost.figures import again as command
from xentcheck.cost.figures import figure
from xentcheck.cost.measurement import MEASURES, MEMORY, SPEED, Measurement, Memory, Ratio, Timing, as_of_one
from xentcheck.cost.memory import SLACK, size
from xentcheck.gate.baseline import THRESHOLD, Baseline, GateError, HeldMemory, HeldSpeed, Place, why_unsure
from xentcheck.gate.selection import EVERYTHING, Selection
from xentcheck.results.record import Results
from xentcheck.run.status import Status
from xentcheck.run.verdict import Key, Verdict

ELSEWHERE = 2.0  # what takes THRESHOLD's place on another CPU or torch, where the ratio itself is another
PROCESSES = 3  # in which a ratio is measured at most, the run itself included
WORSE, BETTER, INCONCLUSIVE, MISSING, SAME = "worse", "better", "inconclusive", "missing", "same"

Again = Callable[[Sequence[Measurement]], Sequence[Measurement]]


@dataclass(frozen=True)
class Finding:
    """One difference from the baseline, with its numbers and the command to see it again.

    outcome: worse, better, inconclusive or missing. kind: verdict, capability, case, memory or speed.
    """

    outcome: str
    kind: str
    implementation: str
    case: str
    was: str
    now: str
    again: str = ""
    aspect: str = ""


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
        return bool(self.problems or self.of(WORSE) or self.of(MISSING) or (strict and self.of(INCONCLUSIVE)))


def compare(
    results: Results,
    baseline: Baseline,
    again: Again | None = None,
    sources: Mapping[str, str] | None = None,
    selection: Selection = EVERYTHING,
) -> Report:
    """Holds a run to a baseline.

    Args:
        again: measures the implementations of these on their cases in one new process; without it no slow-down is confirmed.
        sources: what ``--impl`` takes, for each implementation whose name alone does not find it.
        selection: of the baseline's keys; by default all.
    """
    run = _Run(results, baseline, selection, dict(sources or {}))
    keys = baseline.keys(selection)
    problems = [] if results.complete else ["the run did not end; go on with it by --resume"]
    if not keys:
        problems.append(f"nothing to compare: no key of the baseline matches {selection.text}")
    findings = [*run.missing(keys), *run.edited(keys), *run.new_failures()]
    for name in dict.fromkeys(key.implementation for key in keys):
        findings += run.capabilities(name)
    findings += [finding for key in keys for finding in run.step(key)]
    findings += run.speeds([key for key in keys if key.aspect == SPEED], again)
    both = [key for key in keys if run.has(key)]
    compared = {
        "verdicts": sum(key.aspect not in MEASURES for key in both),
        MEMORY: sum(key.aspect == MEMORY for key in both),
        SPEED: sum(key.aspect == SPEED for key in both),
    }
    return Report(tuple(findings), compared, tuple(problems), tuple(run.notes(keys)))


class _Run:
    """A run beside the baseline."""

    def __init__(self, results: Results, baseline: Baseline, selection: Selection, sources: dict[str, str]) -> None:
        self.baseline, self.selection = baseline, selection
        self.claims: Mapping[str, Any] = results.run["implementations"]
        self.questions: Mapping[str, str] = results.run["questions"]
        environment = results.run["environment"]
        self.place = Place(torch=str(environment.get("torch")), cpu=str(environment.get("cpu")))
        self.verdicts = {v.key: v for v in results.verdicts}
        self.measured = as_of_one(results.costs)
        self.sources = {**{m.implementation: m.source for m in results.costs}, **sources}

    def has(self, key: Key) -> bool:
        return key in self.verdicts or key in self.measured

    def command(self, name: str, *more: str) -> str:
        return shlex.join(["pytest", "suite/", "--impl", self.sources.get(name, name), *more])

    def missing(self, keys: Sequence[Key]) -> Iterator[Finding]:
        for key in keys:
            if not self.has(key):
                kind = key.aspect if key.aspect in MEASURES else "verdict"
                again = self.command(key.implementation, "--profile" if kind in MEASURES else "--cases", key.case)
                yield Finding(MISSING, kind, key.implementation, key.case, "", "not in this run", again, key.aspect)

    def edited(self, keys: Sequence[Key]) -> Iterator[Finding]:
        """A case that asks something else than it did is a new case under an old name."""
        for case in dict.fromkeys(key.case for key in keys if key.aspect not in MEASURES):
            was, now = self.baseline.questions.get(case), self.questions.get(case)
            if now is not None and was != now:
                yield Finding(WORSE, "case", "", case, "another question", "edited; write a new baseline")

    def notes(self, keys: Sequence[Key]) -> Iterator[str]:
        if self.selection.text:
            yield f"Only keys that match `{self.selection.text}` were compared: {len(keys)} of {len(self.baseline.keys(EVERYTHING))}."
        was = self.baseline.environment
        if was != self.place:
            yield (
                f"The baseline is of torch {was.torch} on {was.cpu}, this run of torch {self.place.torch} on {self.place.cpu}: "
                f"a ratio is called worse only beyond {ELSEWHERE:g} times the baseline's."
            )
        unknown = [name for name in self.claims if name not in self.baseline.implementations]
        if unknown:
            yield f"Not in the baseline, so only held to what holds for all: {', '.join(unknown)}."

    def capabilities(self, name: str) -> Iterator[Finding]:
        if name not in self.claims:
            return
        was, now = self.baseline.implementations[name].capabilities, self.claims[name]["capabilities"]
        for capability in sorted(set(was) - set(now)):
            yield Finding(WORSE, "capability", name, capability, "claimed", "not claimed", self.command(name))
        for capability in sorted(set(now) - set(was)):
            yield Finding(BETTER, "capability", name, capability, "not claimed", "claimed", self.command(name))

    def step(self, key: Key) -> Iterator[Finding]:
        """What became of one key, but for speed."""
        held = self.baseline.implementations[key.implementation]
        if key in self.verdicts:
            verdict, was = self.verdicts[key], held.verdicts[key.case][key.aspect]
            change = verdict.status.rank - was.rank
            if change:
                yield self._verdict(WORSE if change > 0 else BETTER, verdict, was)
        elif key in self.measured and key.aspect == MEMORY:
            found, before = self.measured[key], held.memory[key.case]
            lost = _not_comparable(found, before)
            if lost:
                yield lost
            elif found.memory and found.logits:  # as of all that passed
                yield from _memory(found, found.memory, found.logits.bytes, before)

    def new_failures(self) -> Iterator[Finding]:
        """Failures of what the baseline does not hold: new cases, new implementations."""
        held = set(self.baseline.keys(EVERYTHING))
        for key, verdict in self.verdicts.items():
            if key not in held and not verdict.status.is_good and self.selection.has(key):
                yield self._verdict(WORSE, verdict, "not in the baseline")
        for key, found in self.measured.items():
            if key not in held and not found.status.is_good and self.selection.has(key):
                yield _about(WORSE, found, "not in the baseline", f"{found.status}: {found.message}")

    def speeds(self, keys: Sequence[Key], again: Again | None) -> Iterator[Finding]:
        suspects: list[_Suspect] = []
        for key in keys:
            if key not in self.measured:
                continue
            found, before = self.measured[key], self.baseline.implementations[key.implementation].speed[key.case]
            lost = _not_comparable(found, before)
            if lost:
                yield lost
            else:
                suspects.append(_Suspect(found, before, self.bounds(before)))
        yield from _speeds(suspects, again)

    def bounds(self, before: HeldSpeed) -> list[tuple[Ratio, float, str]]:
        """The ratios that a new one is held to, by how much it may be beyond, and what they are called."""
        here = THRESHOLD if self.baseline.environment == self.place else ELSEWHERE
        then = THRESHOLD if before.anchor.place == self.place else ELSEWHERE
        anchor = f"the anchor of {before.anchor.since[:10]}"
        return [(before.ratio.ratio, here, ""), (before.anchor.ratio.ratio, then, anchor)]

    def _verdict(self, outcome: str, verdict: Verdict, was: str) -> Finding:
        now = f"{verdict.status}: {verdict.message}" if verdict.message else str(verdict.status)
        again = self.command(verdict.implementation, "--cases", verdict.case)
        name, case, aspect = verdict.key
        return Finding(outcome, "verdict", name, f"{case} {aspect}", str(was), now, again, aspect)


def _not_comparable(found: Measurement, was: HeldMemory | HeldSpeed) -> Finding | None:
    if found.status is not Status.PASS:
        return _about(WORSE, found, "measured", f"{found.status}: {found.message}")
    if (found.question, found.device) != (was.question, was.device):
        return _about(WORSE, found, "another case or device", "edited; write a new baseline")
    return None


def _memory(found: Measurement, memory: Memory, of_logits: int, was: HeldMemory) -> Iterator[Finding]:
    for part in ("forward", "kept", "backward", "retained", "uncounted"):
        before, now = getattr(was, part), getattr(memory, part)
        # ``uncounted`` is not exact, and 0 stands for whatever is within the slack.
        if before == now or (part == "uncounted" and abs(max(now, SLACK) - max(before, SLACK)) <= SLACK):
            continue
        change = f"{(now - before) / max(of_logits, 1):+.3g} logits"
        yield _about(
            WORSE if now > before else BETTER,
            found,
            f"{part} {size(before)} ({before:,})",
            f"{size(now)} ({now - before:+,} bytes, {change})",
        )


# --- speed


@dataclass
class _Suspect:
    """A ratio and what it is held to. outcomes: what each process says by itself, and why where it says nothing."""

    found: Measurement
    was: HeldSpeed
    bounds: Sequence[tuple[Ratio, float, str]]
    measured: list[Timing] = field(default_factory=list)
    outcomes: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.add(self.found)

    def add(self, more: Measurement | None) -> None:
        timing = None if more is None else more.timing
        if timing is None:
            self.outcomes.append((INCONCLUSIVE, "it could not be measured a second time"))
        else:
            self.measured.append(timing)
            self.outcomes.append(self._outcome(timing))

    def _outcome(self, timing: Timing) -> tuple[str, str]:
        now = timing.ratio(timing.whole)
        if now is None:
            return INCONCLUSIVE, "there is no ratio"
        if timing.settings.threads != self.was.threads:
            return (
                INCONCLUSIVE,
                f"measured with {timing.settings.threads} threads, the baseline with {self.was.threads}",
            )
        unsure = why_unsure(timing)
        if unsure:
            return INCONCLUSIVE, unsure
        for before, threshold, name in self.bounds:
            if now.low > max(before.high, threshold * before.estimate):
                return WORSE, f"beyond {name}, {figure(before, None)}" if name else ""
        before, threshold, _ = self.bounds[0]
        return (BETTER if now.high < min(before.low, before.estimate / threshold) else SAME), ""

    @property
    def names(self) -> list[str]:
        return [outcome for outcome, _ in self.outcomes]

    @property
    def is_undecided(self) -> bool:
        return SAME not in self.names and BETTER not in self.names and self.names.count(WORSE) < 2

    def finding(self, error: str) -> Finding | None:
        now = "; then ".join(map(_shown, self.measured))
        before, reason = figure(self.was.ratio.ratio, None), self.outcomes[-1][1]
        if self.names.count(WORSE) >= 2:
            return _about(WORSE, self.found, before, f"{now}; {reason}" if reason else now)
        if SAME in self.names or self.names[-1] == BETTER:
            if WORSE in self.names:
                return _about(INCONCLUSIVE, self.found, before, f"{now}: not confirmed")
            return _about(BETTER, self.found, before, now) if SAME not in self.names else None
        if self.names[-1] == WORSE:
            reason = error
        return _about(INCONCLUSIVE, self.found, before, f"{now}: {reason or error}")


def _speeds(suspects: Sequence[_Suspect], again: Again | None) -> Iterator[Finding]:
    """Each ratio is measured in as many processes as it takes: two that agree that it is worse, or one that is sure that it is not."""
    error = "it was not measured a second time"
    for _ in range(PROCESSES - 1):
        undecided = [suspect for suspect in suspects if suspect.is_undecided]
        if not undecided or again is None:
            break
        try:
            measured = as_of_one(again([suspect.found for suspect in undecided]))
        except GateError as problem:
            error = str(problem)
            break
        for suspect in undecided:
            suspect.add(measured.get(suspect.found.key))
    yield from (finding for suspect in suspects if (finding := suspect.finding(error)))


def _shown(timing: Timing) -> str:
    ratio, control = timing.ratio(timing.whole), timing.control(timing.whole)
    if ratio is None or control is None:
        return "no ratio"
    return f"{figure(ratio, None)}, control within {100 * (control.spread - 1):.1f} %"


def _about(outcome: str, found: Measurement, was: str, now: str) -> Finding:
    return Finding(outcome, found.measure, found.implementation, found.case, was, now, command(found), found.measure)
