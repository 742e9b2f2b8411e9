"""What was measured of one implementation on one case: the figures of a record's ``cost`` line, and what they say. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from xentcheck.run.status import Status
from xentcheck.run.verdict import Key

Measure = Literal["speed", "memory"]
Phase = Literal["forward", "backward", "both"]
Lane = Literal["native", "candidate", "control"]
Device = Literal["cpu", "cuda"]

SPEED: Measure = "speed"
MEMORY: Measure = "memory"
MEASURES: tuple[Measure, ...] = (MEMORY, SPEED)
PHASES: tuple[Phase, ...] = ("forward", "backward", "both")
BASE: Lane = "native"
CANDIDATE: Lane = "candidate"
CONTROL: Lane = "control"
CONFIDENCE = 0.99

Bytes = Annotated[int, Field(ge=0, le=2**50)]
Seconds = Annotated[float, Field(gt=0)]


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Ratio(NamedTuple):
    """The median of ratios and the bounds of its 99 % interval."""

    estimate: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """How far the interval reaches from 1, as a factor of at least 1."""
        return math.exp(max(abs(math.log(self.low)), abs(math.log(self.high))))


class Logits(_Figures):
    """What a case is about, in size. shape: of the logits, also of those that a fused loss does not hold. bytes: theirs."""

    shape: tuple[Annotated[int, Field(ge=0)], ...]
    dtype: str
    bytes: Bytes


class Memory(_Figures):
    """Bytes beyond what is there before the call: the logits and the target are not counted, the gradient of the logits is.

    forward: the peak during the forward pass. kept: what it leaves allocated for the backward pass, the loss included. backward: the
    peak during the backward pass, counting what was kept. retained: what is still allocated when loss and gradient are gone.
    uncounted: what the process was seen to hold beyond the counted peak, about; 0 within 24 MiB. held: what the implementation holds
    between calls, such as a workspace made at import; part of both peaks.
    """

    forward: Bytes
    kept: Bytes
    backward: Bytes
    retained: Bytes
    uncounted: Bytes = 0
    held: Bytes = 0

    def with_held(self, held: int) -> Memory:
        """With what is held between calls, which a step that works in it does not take anew."""
        more = {"held": held, "forward": self.forward + held, "backward": self.backward + held}
        return self.model_copy(update=more)


class Settings(_Figures):
    """What changes a time by as much as an implementation does."""

    threads: Annotated[int, Field(ge=1)]
    huge_pages: str
    environment: Mapping[str, str]


class Moved(_Figures):
    """Bytes that must be moved: ``copied`` are read or written beside other work, ``filled`` are only written."""

    copied: Bytes
    filled: Bytes


class Bandwidth(_Figures):
    """Bytes per second of a copy (what is read and what is written) and of a fill with zero."""

    copy_: Seconds = Field(alias="copy")
    fill: Seconds


class Timing(_Figures):
    """The raw samples of one measurement.

    rounds: lane -> phase -> the minimum of each round, in seconds; only ``both`` for a lane that does both at once, and only ``forward``
    where no gradient is asked for. first: the seconds of the first step on this shape, by phase. must_move: None where the products of
    a linear layer take most of the time. processors: lane -> how many threads did its work; 0 where that is not known.
    """

    rounds: Mapping[Lane, Mapping[Phase, tuple[Seconds, ...]]]
    repetitions: Annotated[int, Field(ge=1)]
    bandwidth: Bandwidth
    first: Mapping[Phase, Seconds]
    settings: Settings
    must_move: Mapping[Phase, Moved] | None = None
    processors: Mapping[str, float] = {}

    @property
    def whole(self) -> Phase:
        """The phase that is all of what was timed: ``both``, or ``forward`` where no gradient was asked for."""
        return "both" if "both" in self.rounds[BASE] else "forward"

    @property
    def is_of_native(self) -> bool:
        """Whether the implementation is ``native`` itself, which has no ratio to ``native``."""
        return CANDIDATE not in self.rounds

    def ratio(self, phase: Phase) -> Ratio | None:
        """The candidate's time over ``native``'s; None where either has none."""
        return self._over_native(CANDIDATE, phase)

    def control(self, phase: Phase) -> Ratio | None:
        """``native``'s time over ``native``'s, of the same rounds."""
        return self._over_native(CONTROL, phase)

    def seconds(self, phase: Phase) -> float | None:
        """The median of the rounds of the implementation itself. Means something beside other figures of the same measurement only."""
        samples = self.rounds.get(CANDIDATE, self.rounds[BASE]).get(phase)
        return median(samples) if samples else None

    def limit(self, phase: Phase) -> float | None:
        """The seconds that moving what must be moved takes at the bandwidth of the same run."""
        if self.must_move is None:
            return None
        moved = self.must_move[phase]
        return moved.copied / self.bandwidth.copy_ + moved.filled / self.bandwidth.fill

    def least(self, phase: Phase) -> float:
        """The seconds below which a figure cannot be: what counts is read at twice the copy's bandwidth, and zeros are left to the system."""
        return 0.0 if self.must_move is None else 0.5 * self.must_move[phase].copied / self.bandwidth.copy_

    def _over_native(self, lane: Lane, phase: Phase) -> Ratio | None:
        above, below = self.rounds.get(lane, {}).get(phase), self.rounds[BASE].get(phase)
        return ratio(above, below) if above and below else None


class Measurement(_Figures):
    """One measure of one implementation on one case. Only one that passed has figures: those of ``timing`` or those of ``memory``.

    source: what ``--impl`` takes. question: names the exact case. error_units: the largest errors of the loss and of the gradient.
    overwrites: whether the implementation is known to change the logits, and did.
    """

    measure: Measure
    implementation: str
    case: str
    profile: str
    source: str
    question: str
    device: Device
    status: Status
    message: str = ""
    logits: Logits | None = None
    error_units: Mapping[str, float] = {}
    overwrites: bool = False
    memory: Memory | None = None
    timing: Timing | None = None

    @model_validator(mode="after")
    def _has_figures_where_it_passed(self) -> Measurement:
        given = {SPEED: self.timing, MEMORY: self.memory}
        has_own, has_other = given.pop(self.measure) is not None, any(v is not None for v in given.values())
        if has_other or has_own is not (self.status is Status.PASS) or (has_own and self.logits is None):
            raise ValueError(f"expected the logits and the figures of {self.measure} exactly where the status is pass")
        return self

    @property
    def key(self) -> Key:
        return Key(self.implementation, self.case, self.measure)


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """The median of the rounds' ratios with its 99 % interval from order statistics, exact whatever the noise is distributed like.

    The k-th smallest and k-th largest of n ratios enclose their median but for 2 P(Binomial(n, 1/2) < k). (A percentile bootstrap
    that promises 99 % holds 96.5 % with 15 rounds, since its resampled medians are order statistics, too, and closer ones.)
    """
    ratios = sorted(a / b for a, b in zip(above, below, strict=True))
    n, k, outside = len(ratios), 1, 2 * 0.5 ** len(ratios)
    while k < n // 2 and outside + 2 * math.comb(n, k) * 0.5**n <= 1 - CONFIDENCE:
        outside += 2 * math.comb(n, k) * 0.5**n
        k += 1
    return Ratio(median(ratios), ratios[k - 1], ratios[n - k])


def as_of_one(measurements: Sequence[Measurement]) -> dict[Key, Measurement]:
    """By key; of several about the same the last holds."""
    return {m.key: m for m in measurements}
