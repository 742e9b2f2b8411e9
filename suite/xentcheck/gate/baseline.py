"""What later runs are held to: verdicts, capabilities, bytes and ratios. Seconds mean nothing on another day."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from xentcheck.cost.figures import figure
from xentcheck.cost.measurement import MEMORY, SPEED, Bytes, Device, Measurement, Memory, Ratio, Timing
from xentcheck.gate.selection import Selection
from xentcheck.results.record import Results
from xentcheck.run.status import Status
from xentcheck.run.verdict import Key, Verdict
from xentcheck.spec.mistakes import UsageError

FORMAT: Literal[2] = 2
# The control has come out as 1 if its interval holds 1, or misses it by no more than this, and reaches no further than that.
MISSED, WIDE = 1.01, 1.10
THRESHOLD = 1.05  # by which a ratio may grow

Name = Annotated[str, Field(min_length=1, max_length=300)]


class GateError(UsageError):
    """A baseline that cannot be read, or that nothing can be compared with. The text says what to do."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Interval(_Part):
    """A ratio to ``native`` with its bounds."""

    estimate: Annotated[float, Field(gt=0, lt=1e6)]
    low: Annotated[float, Field(gt=0, lt=1e6)]
    high: Annotated[float, Field(gt=0, lt=1e6)]

    @model_validator(mode="after")
    def _is_in_order(self) -> Interval:
        if not self.low <= self.estimate <= self.high:
            raise ValueError(f"expected low <= estimate <= high; found {self.low}, {self.estimate}, {self.high}")
        return self

    @property
    def ratio(self) -> Ratio:
        return Ratio(self.estimate, self.low, self.high)


class Place(_Part):
    """What a ratio depends on beside the implementation."""

    torch: Name
    cpu: Name


class Anchor(_Part):
    """The best ratio that any baseline of this case has had, with its place and the day of its run. It catches what creeps up in steps that
    each are too small to see."""

    ratio: Interval
    place: Place
    since: Name


class HeldSpeed(_Part):
    question: Name
    device: Device
    threads: Annotated[int, Field(ge=1)]
    ratio: Interval
    anchor: Anchor


class HeldMemory(_Part):
    question: Name
    device: Device
    forward: Bytes
    kept: Bytes
    backward: Bytes
    retained: Bytes
    uncounted: Bytes


class Held(_Part):
    """What one implementation is held to. verdicts: case -> the status of all its aspects, or aspect -> status where they differ."""

    version: str
    capabilities: tuple[Name, ...]
    verdicts: Mapping[Name, Mapping[Name, Status]]
    memory: Mapping[Name, HeldMemory]
    speed: Mapping[Name, HeldSpeed]

    @model_validator(mode="after")
    def _holds_something(self) -> Held:
        if not (self.verdicts or self.memory or self.speed) or not all(self.verdicts.values()):
            raise ValueError("expected verdicts, memory or speed; found none")
        return self


class Baseline(_Part):
    """cases: the digest of all cases. questions: the digest of each."""

    format: Literal[2]
    edition: Name
    cases: Name
    questions: Mapping[Name, Name]
    environment: Place
    implementations: Annotated[Mapping[Name, Held], Field(min_length=1)]

    def keys(self, selection: Selection) -> list[Key]:
        """Everything that a run is held to, or what of it is selected."""
        return [
            key
            for name, held in self.implementations.items()
            for key in (
                *(Key(name, case, aspect) for case, aspects in held.verdicts.items() for aspect in aspects),
                *(Key(name, case, MEMORY) for case in held.memory),
                *(Key(name, case, SPEED) for case in held.speed),
            )
            if selection.has(key)
        ]


def make_baseline(
    results: Results, before: Baseline | None = None, anchored_anew: Selection | None = None
) -> tuple[Baseline, list[str]]:
    """What later runs are held to, and what had to be left out. The ratios of several runs on one case are taken together.

    before: the baseline that this one replaces; its anchors stay, but for those of the keys in ``anchored_anew``.
    """
    left_out: list[str] = []
    environment, run = results.run["environment"], results.run
    place = Place(torch=str(environment.get("torch")), cpu=str(environment.get("cpu")))
    held = {}
    for name, claims in sorted(run["implementations"].items()):
        own = [m for m in results.costs if m.implementation == name]
        kept = before.implementations[name].speed if before and name in before.implementations else {}
        speed = {}
        for case in dict.fromkeys(m.case for m in own if m.measure == SPEED):
            found = _speed([m for m in own if m.key == (name, case, SPEED)], place, run["started"], left_out)
            if found is not None:
                renewed = anchored_anew is not None and anchored_anew.has(Key(name, case, SPEED))
                speed[case] = found if renewed or case not in kept else _anchored(found, kept[case])
        held[name] = Held(
            version=claims["version"],
            capabilities=tuple(claims["capabilities"]),
            verdicts=_by_case(v for v in results.verdicts if v.implementation == name),
            memory={m.case: _memory(m, m.memory) for m in own if m.memory},
            speed=speed,
        )
    made = Baseline(
        format=FORMAT,
        edition=run["edition"],
        cases=run["cases"],
        questions=run["questions"],
        environment=place,
        implementations=held,
    )
    return made, left_out


def _speed(measured: Sequence[Measurement], place: Place, started: str, left_out: list[str]) -> HeldSpeed | None:
    timed = [(m, m.timing) for m in measured if m.timing and not m.timing.is_of_native]
    sure = [(m, timing) for m, timing in timed if not why_unsure(timing)]
    if not sure:
        if timed:
            last, timing = timed[-1]
            left_out.append(
                f"{last.implementation} {last.case}: {why_unsure(timing)}; measure again on a quieter machine"
            )
        return None
    ratios = [ratio for _, timing in sure if (ratio := timing.ratio(timing.whole))]
    middle = sorted(r.estimate for r in ratios)[len(ratios) // 2]
    low, high = min(r.low for r in ratios), max(r.high for r in ratios)
    interval = Interval(estimate=round(middle, 4), low=round(low, 4), high=round(high, 4))
    last, timing = sure[-1]
    return HeldSpeed(
        question=last.question,
        device=last.device,
        threads=timing.settings.threads,
        ratio=interval,
        anchor=Anchor(ratio=interval, place=place, since=started),
    )


def _anchored(now: HeldSpeed, before: HeldSpeed) -> HeldSpeed:
    """With the anchor that it had, unless it is of another question or is beaten."""
    same = ("question", "device", "threads")
    is_beaten = (
        now.ratio.high < before.anchor.ratio.low and now.ratio.estimate * THRESHOLD < before.anchor.ratio.estimate
    )
    if is_beaten or any(getattr(now, name) != getattr(before, name) for name in same):
        return now
    return now.model_copy(update={"anchor": before.anchor})


def _memory(found: Measurement, memory: Memory) -> HeldMemory:
    return HeldMemory(question=found.question, device=found.device, **memory.model_dump(exclude={"held"}))


def _by_case(verdicts: Iterable[Verdict]) -> dict[str, dict[str, Status]]:
    cases: dict[str, dict[str, Status]] = {}
    for verdict in sorted(verdicts, key=lambda v: v.key):
        cases.setdefault(verdict.case, {})[verdict.aspect] = verdict.status
    return cases


def read_baseline(path: Path) -> Baseline:
    """A baseline file. Raises GateError."""
    anew = f"write it anew by `xentcheck baseline RESULTS --to {path}`"
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
    except OSError as error:
        raise GateError(f"{path}: no baseline can be read: {error.strerror}; {anew}") from error
    except (ValueError, RecursionError) as error:
        raise GateError(f"{path}: expected a baseline in JSON; found {error}; {anew}") from error
    found = value.get("format") if isinstance(value, dict) else value
    if found != FORMAT or isinstance(found, (bool, float)):
        raise GateError(f"{path}: expected a baseline of format {FORMAT}; found {str(found)[:60]!r}; {anew}")
    try:
        return Baseline.model_validate(value)
    except ValidationError as error:
        first, *more = error.errors(include_url=False)
        others = f" (and {len(more)} more)" if more else ""
        where, wrong = ": ".join(map(str, first["loc"])), str(first.get("input"))[:60]
        raise GateError(f"{path}: {where}: {first['msg']}; found {wrong!r}{others}; {anew}") from error


def as_text(baseline: Baseline) -> str:
    return json.dumps(baseline.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError(f"a key twice among {', '.join(name for name, _ in pairs)[:100]}")
    return value


def why_unsure(timing: Timing) -> str:
    """Why nothing can be said by its ratio; empty where something can."""
    control = timing.control(timing.whole)
    if control is None:
        return "there is no control"
    if control.low > MISSED or control.high < 1 / MISSED:
        return f"the control came out as {figure(control, None)}, not as 1"
    if control.spread > WIDE:
        return f"the control is wide: {figure(control, None)}"
    return ""
