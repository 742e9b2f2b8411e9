"""Measures what an implementation costs on a case, or says why there is no figure. Judges only whether it is right at all.

A wrong loss can be as fast as it likes: before anything is measured the answer to the very batch is checked, under the case's memory
limit, and what is not right gets its failure in place of figures. Figures that cannot be believed are refused, with the reason.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xentcheck.cost import memory, timing
from xentcheck.cost.check import examine
from xentcheck.cost.elsewhere import SLOWER, Elsewhere
from xentcheck.cost.figures import figure
from xentcheck.cost.holdings import held_by
from xentcheck.cost.measurement import CANDIDATE, MEMORY, SPEED, Device, Logits, Measure, Measurement, Phase, Timing
from xentcheck.cost.rotation import Rotation, Untrusted
from xentcheck.implementation import Implementation
from xentcheck.implementation.purity import GlobalState
from xentcheck.reference import blockwise
from xentcheck.run.judge import exceeded, held_to
from xentcheck.run.status import Status, of_case
from xentcheck.run.verdict import describe
from xentcheck.spec import speed_cases
from xentcheck.spec.batch import Batch, build
from xentcheck.spec.case import Case
from xentcheck.spec.mistakes import CaseFileError
from xentcheck.spec.needs import capabilities_needed

_FREE = 0.8  # of the memory that the machine has left, for an implementation
_SPEED_UP = 1.0  # what is faster than native has to be borne out by another process
_MORE_THREADS = 0.5  # than the settings say; that much may be the noise of clocks
_AT_START = GlobalState()  # before any implementation is imported


class Costs:
    """Measures one case after another; only the latest batch is remembered, so ask for all that concerns a case together."""

    def __init__(self, native: Implementation, device: Device = "cpu", limit: int | None = None) -> None:
        self.native, self.device, self.limit = native, device, limit
        self._elsewhere, self._threads = Elsewhere(), torch.get_num_threads()
        self._case: Case | None = None
        self._batch: Batch | None = None
        self._right: blockwise.Expected | None = None
        self._rotation: Rotation | None = None
        self._checked: dict[str, tuple[Status, str]] = {}
        self._units: dict[str, dict[str, float]] = {}
        self._first: dict[str, dict[Phase, float]] = {}
        self._overwriting: set[str] = set()  # names of those known to change the logits, seen doing so on this case

    def memory(self, case: Case, implementation: Implementation) -> Measurement:
        """The bytes of the forward pass, of the backward pass, kept in between and retained at the end."""

        def measured() -> dict[str, Any]:
            rotation = self._rotation_of(case)
            memory.set_up(lambda batch: timing.step(implementation, batch), rotation.buffers[0])
            held = held_by(implementation, rotation.tensors)
            dealt = rotation.deal_for_memory()
            one = timing.step(implementation, rotation.buffers[dealt.buffer])
            device, allowed = rotation.buffers[0].input.device, self._allowed(case)
            found = memory.measure(one, device, allowed, lambda *given: rotation.examine(dealt, *one.answer(*given)))
            return {MEMORY: found.with_held(held)}

        return self._measurement(MEMORY, case, implementation, measured)

    def speed(
        self, case: Case, implementation: Implementation, progress: Callable[[float], None] = lambda share: None
    ) -> Measurement:
        """The raw samples of the implementation, of ``native`` and of the control, and what bounds them."""
        return self._measurement(
            SPEED, case, implementation, lambda: {"timing": self._timing(case, implementation, progress)}
        )

    def _timing(self, case: Case, implementation: Implementation, progress: Callable[[float], None]) -> Timing:
        rotation = self._rotation_of(case)
        native, candidate = (
            [timing.step(each, batch) for batch in rotation.buffers] for each in (self.native, implementation)
        )
        is_native = implementation.name == self.native.name
        seed = int(hashlib.sha256(case.id.encode()).hexdigest()[:8], 16)
        measured = timing.measure(native, None if is_native else candidate, rotation, seed, progress)
        batch = rotation.variants[0]
        found = Timing(
            rounds=measured.rounds,
            repetitions=measured.repetitions,
            bandwidth=measured.bandwidth,
            processors=measured.processors,
            first=self._first[implementation.name],
            settings=timing.settings(),
            must_move=None if batch.is_linear else timing.must_move(batch),
        )
        if not is_native:
            self._doubt(case, found)
        return found

    def _doubt(self, case: Case, found: Timing) -> None:
        """Raises Untrusted for figures that cannot be, or that a process without the implementation does not bear out."""
        changed = _AT_START.changed()
        if changed:
            raise Untrusted(
                f"expected torch and its clock as they were when they were imported; found {', '.join(changed)} replaced"
            )
        threads, busy = self._threads, found.processors.get(CANDIDATE, 0.0)
        if torch.get_num_threads() != threads or busy > threads + _MORE_THREADS:
            raise Untrusted(
                f"expected at most {threads} {'thread' if threads == 1 else 'threads'}, by the settings of this run; found {max(busy, torch.get_num_threads()):.2g} at work"
            )
        took, least = found.seconds(found.whole), found.least(found.whole)
        assert took is not None  # since every lane is timed over the whole step
        if took < least:
            raise Untrusted(
                f"expected at least {1e3 * least:.3g} ms, in which this machine can read the logits; found {1e3 * took:.3g} ms"
            )
        ratio = found.ratio(found.whole)
        if self.device == "cpu" and ratio is not None and ratio.high < _SPEED_UP:
            lane = timing.native_lane(self.native, self._rotation_of(case))
            slower = self._elsewhere.slow_down(case, lambda: float(np.nanmax(lane())))
            if slower.low > SLOWER:
                raise Untrusted(
                    f"expected native to take as long here as in a process of its own; found {figure(slower, None)} times as long, "
                    "so that what is measured beside it looks faster than it is"
                )

    def training_step(self, case: Case, implementation: Implementation) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """A whole step, for whoever wants to time them otherwise, and what comes before it."""
        rotation = self._rotation_of(case)
        steps = [timing.step(implementation, batch) for batch in rotation.buffers]
        current = [steps[0]]

        def prepare() -> None:
            current[0] = steps[rotation.deal().buffer]

        def whole() -> Any:
            one = current[0]
            return one.forward() if one.backward is None else one.backward(one.forward())

        return whole, prepare

    def _measurement(
        self, measure: Measure, case: Case, implementation: Implementation, measured: Callable[[], dict[str, Any]]
    ) -> Measurement:
        """What ``measured`` finds where the answer is right, or why there is nothing; whatever the implementation raises."""
        figures: dict[str, Any] = {}
        status, message = self._check(case, implementation)
        if status is Status.PASS:
            try:
                figures = measured() | {
                    "logits": self._logits(case),
                    "error_units": self._units[implementation.name],
                    "overwrites": implementation.name in self._overwriting,
                }
            except (memory.OverLimit, Untrusted) as error:
                status, message = Status.FAIL, str(error)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # also pytest.skip and sys.exit, by which no measurement may be lost
                status, message = Status.ERROR, _raised(error)
        return Measurement(
            measure=measure,
            implementation=implementation.name,
            case=case.id,
            profile=case.clause.profile or "",
            source=implementation.source or implementation.name,
            question=question(case),
            device=self.device,
            status=status,
            message=message,
            **figures,
        )

    def _logits(self, case: Case) -> Logits:
        batch = self._batch_of(case)
        shape = (*batch.target.shape, batch.classes) if batch.is_linear else tuple(batch.input.shape)
        size = math.prod(shape) * batch.input.element_size()
        return Logits(shape=shape, dtype=case.question.dtype, bytes=size)

    def _check(self, case: Case, implementation: Implementation) -> tuple[Status, str]:
        self._turn_to(case)
        if implementation.name not in self._checked:
            try:
                self._checked[implementation.name] = self._checked_now(case, implementation)
            except (KeyboardInterrupt, CaseFileError):
                raise
            except BaseException as error:  # such as a gradient that raises when it is read
                self._checked[implementation.name] = Status.ERROR, _raised(error)
        return self._checked[implementation.name]

    def _checked_now(self, case: Case, implementation: Implementation) -> tuple[Status, str]:
        if implementation.unavailable:
            return Status.UNAVAILABLE, implementation.unavailable
        if implementation.broken:
            return Status.ERROR, implementation.broken
        if not speed_cases.is_for(self.device, case):
            return Status.UNAVAILABLE, "measured on a CUDA device only, by --device cuda"
        try:
            timing.require(self.device)  # before a batch is made
        except timing.Unavailable as error:
            return Status.UNAVAILABLE, str(error)
        missing = capabilities_needed(case, self._batch_of(case)) - implementation.capabilities
        if implementation.cross_entropy is not None and case.question.linear is not None:
            if case.question.dtype in ("bfloat16", "float16"):
                return Status.UNSUPPORTED, "not fused: a linear layer before it rounds the logits to the half type"
            missing -= {"linear", "linear_bias"}  # measured after a linear layer
        if missing:
            return Status.UNSUPPORTED, f"not claimed: {', '.join(sorted(missing))}"
        right = self._right_of(case)  # before anyone can change the question
        try:
            batch = self._on_device(case)
            before = {name: tensor.clone() for name, tensor in _arguments(batch).items()}
            loss, gradients = self._answer(case, implementation, batch)
        except timing.Unavailable as error:
            return Status.UNAVAILABLE, str(error)
        except memory.OverLimit as error:
            return Status.FAIL, str(error)
        changed = [name for name, tensor in _arguments(batch).items() if not torch.equal(tensor, before[name])]
        if changed:
            gradients = tuple(gradient.clone() for gradient in gradients)  # which may be the logits
            for name in changed:
                _arguments(batch)[name].copy_(before[name])
            known = implementation.deviation_for(case.id, "purity")
            if changed != ["input"] or known is None or known.fault != "changed":
                wanted = "expected a call that leaves its arguments as they were"
                advice = (
                    "an implementation that overwrites its input says so by a Deviation of aspect purity, fault changed"
                )
                return Status.FAIL, f"{wanted}; found {' and '.join(changed)} changed; {advice}"
            self._overwriting.add(implementation.name)
        found = examine(self._batch_of(case), right, loss, gradients)
        if not found.faults:
            self._units[implementation.name] = {"loss": found.loss_units, "gradient": found.gradient_units}
            return Status.PASS, ""
        declared = {aspect: implementation.deviation_for(case.id, aspect) for aspect in found.faults}
        held = [
            (held_to(declared[aspect], fault), describe(fault, exceeded(declared[aspect], fault)))
            for aspect, faults in found.faults.items()
            for fault in faults
        ]
        status = of_case(status for status, _ in held)
        return status, "; ".join(message for its_status, message in held if its_status == status)

    def _answer(self, case: Case, implementation: Implementation, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        memory.set_up(lambda batch: timing.step(implementation, batch), batch)
        one = timing.step(implementation, batch)
        with memory.limited(self._allowed(case)):
            loss, gradients, self._first[implementation.name] = timing.first_call(one, batch.input.is_cuda)
        if one.backward is None:
            loss, *gradients = loss if one.alone == "both" else (loss,)
        return torch.as_tensor(loss).detach(), tuple(map(torch.as_tensor, gradients))

    def _allowed(self, case: Case) -> int | None:
        """Bytes: the least of what the run, the case and the machine allow. A CUDA device refuses by itself."""
        if self.device != "cpu":
            return None
        given = [limit for limit in (self.limit, case.question.memory_limit) if limit is not None]
        left = _left_on_this_machine()
        return min([*given, *([] if left is None else [int(_FREE * left)])], default=None)

    def _turn_to(self, case: Case | None) -> None:
        if self._case is not case:
            self._case, self._batch, self._right, self._rotation = case, None, None, None
            self._checked, self._units, self._first = {}, {}, {}
            self._overwriting = set()

    def _batch_of(self, case: Case) -> Batch:
        self._turn_to(case)
        if self._batch is None:
            self._batch = build(case)
        return self._batch

    def _right_of(self, case: Case) -> blockwise.Expected:
        self._turn_to(case)
        if self._right is None:
            self._right = blockwise.expected(self._batch_of(case))
        return self._right

    def forget(self) -> None:
        """The next question is as the first one."""
        self._turn_to(None)

    def close(self) -> None:
        """Ends the other process."""
        self._elsewhere.close()

    def _rotation_of(self, case: Case) -> Rotation:
        self._turn_to(case)
        if self._rotation is None:
            self._rotation = Rotation(self._batch_of(case), self._on_device(case), self._right_of(case))
        return self._rotation

    def _on_device(self, case: Case) -> Batch:
        return timing.on(self.device, self._batch_of(case))


def _arguments(batch: Batch) -> dict[str, Tensor]:
    others = {**batch.options, "upstream": batch.upstream}
    tensors = {name: value for name, value in others.items() if isinstance(value, Tensor)}
    return {"input": batch.input, "target": batch.target, **tensors}


def _raised(error: BaseException) -> str:
    return f"expected a loss and a gradient; found {type(error).__name__}: {str(error).strip()[:300]}"


def question(case: Case) -> str:
    """Names the exact question: costs of the same case compare only where it stayed the same."""
    text = json.dumps([case.id, case.question.model_dump(mode="json")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _left_on_this_machine() -> int | None:
    try:
        text = Path("/proc/meminfo").read_text()
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
