"""What an implementation costs on a case: the line for the record, or why there is no figure. Judges only whether it is right at all.

A wrong loss can be as fast as it likes: before anything is measured the answer to the very batch is checked, under the case's memory
limit, and what is not right gets a line with its failure in place of figures.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xentcheck.cost import check as cost_check
from xentcheck.cost import memory, timing
from xentcheck.implementation import Implementation
from xentcheck.reference import blockwise
from xentcheck.run.judge import exceeded, held_to
from xentcheck.run.status import of_case
from xentcheck.run.verdict import describe
from xentcheck.spec import speed_cases
from xentcheck.spec.batch import Batch, build
from xentcheck.spec.case import Case
from xentcheck.spec.needs import capabilities_needed

SPEED, MEMORY = "speed", "memory"
MEASURES = (MEMORY, SPEED)
_FREE = 0.8  # of the memory that the machine has left, for an implementation


class Costs:
    """Measures one case after another; only the latest batch is remembered, so ask for all that concerns a case together."""

    def __init__(self, native: Implementation, device: str = "cpu", limit: int | None = None) -> None:
        self.native, self.device, self.limit = native, device, limit
        self._case: Case | None = None
        self._batch: Batch | None = None
        self._right: blockwise.Expected | None = None
        self._checked: dict[str, tuple[str, str]] = {}
        self._units: dict[str, dict[str, float]] = {}
        self._first: dict[str, dict[str, float]] = {}
        self._overwriting: set[str] = set()  # names of those known to change the logits, seen doing so on this case

    def memory(self, case: Case, implementation: Implementation) -> dict[str, Any]:
        """A line with the bytes of the forward pass, of the backward pass, kept in between and retained at the end."""
        line = self._line(MEMORY, case, implementation)
        if line["status"] == "pass":
            try:
                measured = memory.measure(self._maker(implementation), self._on_device(case), self._allowed(case))
            except memory.OverLimit as error:
                return line | {"status": "fail", "message": str(error)}
            line |= {"bytes": asdict(measured)}
        return line

    def speed(
        self, case: Case, implementation: Implementation, progress: Callable[[float], None] = lambda share: None
    ) -> dict[str, Any]:
        """A line with the raw samples of the implementation, of ``native`` and of the control, and what bounds them."""
        line = self._line(SPEED, case, implementation)
        if line["status"] == "pass":
            batch = self._on_device(case)
            itself = implementation.name == self.native.name
            candidate = None if itself else self._maker(implementation)(batch)
            seed = int(hashlib.sha256(case.id.encode()).hexdigest()[:8], 16)
            native = timing.step(self.native, batch)
            line |= asdict(timing.measure(native, candidate, batch, seed, progress))
            line |= {"first": self._first[implementation.name]}
            line |= {"settings": timing.settings()}
            if not batch.is_linear:  # whose time is that of its products
                line |= {"must_move": timing.must_move(batch)}
        return line

    def training_step(self, case: Case, implementation: Implementation) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """A whole step, for whoever wants to time them otherwise, and what comes before it."""
        one = self._maker(implementation)(self._on_device(case))
        return lambda: one.forward() if one.backward is None else one.backward(one.forward()), one.prepare

    def _maker(self, implementation: Implementation) -> Callable[[Batch], timing.Step]:
        return lambda batch: timing.step(implementation, batch, implementation.name in self._overwriting)

    def _line(self, measure: str, case: Case, implementation: Implementation) -> dict[str, Any]:
        status, message = self._check(case, implementation)
        return {
            "measure": measure,
            "profile": case.clause.profile,
            "implementation": implementation.name,
            "source": implementation.source or implementation.name,
            "case": case.id,
            "question": question(case),
            "device": self.device,
            "status": status,
            "message": message,
            **(
                {}
                if status != "pass"
                else {
                    "logits": self._about(case),
                    "error_units": self._units[implementation.name],
                    "overwrites": implementation.name in self._overwriting,
                }
            ),
        }

    def _about(self, case: Case) -> dict[str, Any]:
        batch = self._batch_of(case)
        shape = [*batch.target.shape, batch.classes] if batch.is_linear else list(batch.input.shape)
        return {
            "shape": shape,
            "dtype": case.question.dtype,
            "bytes": math.prod(shape) * batch.input.element_size(),
        }

    def _check(self, case: Case, implementation: Implementation) -> tuple[str, str]:
        self._turn_to(case)
        if implementation.name not in self._checked:
            self._checked[implementation.name] = self._checked_now(case, implementation)
        return self._checked[implementation.name]

    def _checked_now(self, case: Case, implementation: Implementation) -> tuple[str, str]:
        if implementation.unavailable:
            return "unavailable", implementation.unavailable
        if not speed_cases.is_for(self.device, case):
            return "unavailable", "measured on a CUDA device only, by --device cuda"
        try:
            timing.require(self.device)  # before a batch is made
        except timing.Unavailable as error:
            return "unavailable", str(error)
        missing = capabilities_needed(case, self._batch_of(case)) - implementation.capabilities
        if implementation.cross_entropy is not None and case.question.linear is not None:
            if case.question.dtype in ("bfloat16", "float16"):
                return "unsupported", "not fused: a linear layer before it rounds the logits to the half type"
            missing -= {"linear", "linear_bias"}  # measured after a linear layer
        if missing:
            return "unsupported", f"not claimed: {', '.join(sorted(missing))}"
        if self._right is None:
            self._right = blockwise.expected(self._batch_of(case))  # before anyone can change the question
        try:
            batch = self._on_device(case)
            before = {name: tensor.clone() for name, tensor in _arguments(batch).items()}
            loss, gradients = self._answer(case, implementation, batch)
        except timing.Unavailable as error:
            return "unavailable", str(error)
        except memory.OverLimit as error:
            return "fail", str(error)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also pytest.skip and sys.exit, by which no measurement may be lost
            return "error", f"expected a loss and a gradient; found {type(error).__name__}: {str(error).strip()[:300]}"
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
                return "fail", f"{wanted}; found {' and '.join(changed)} changed; {advice}"
            self._overwriting.add(implementation.name)
        found = cost_check.examine(self._batch_of(case), self._right, loss, gradients)
        if not found.faults:
            self._units[implementation.name] = {"loss": found.loss_units, "gradient": found.gradient_units}
            return "pass", ""
        declared = {aspect: implementation.deviation_for(case.id, aspect) for aspect in found.faults}
        held = [
            (held_to(declared[aspect], fault), describe(fault, exceeded(declared[aspect], fault)))
            for aspect, faults in found.faults.items()
            for fault in faults
        ]
        status = of_case(status for status, _ in held)
        return status, "; ".join(message for its_status, message in held if its_status == status)

    def _answer(self, case: Case, implementation: Implementation, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        memory.set_up(lambda b: timing.step(implementation, b, overwrites=True), batch)
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
            self._case, self._batch, self._right, self._checked, self._units, self._first = case, None, None, {}, {}, {}
            self._overwriting = set()

    def _batch_of(self, case: Case) -> Batch:
        self._turn_to(case)
        if self._batch is None:
            self._batch = build(case)
        return self._batch

    def _on_device(self, case: Case) -> Batch:
        return timing.on(self.device, self._batch_of(case))


def _arguments(batch: Batch) -> dict[str, Tensor]:
    others = {**batch.options, "upstream": batch.upstream}
    tensors = {name: value for name, value in others.items() if isinstance(value, Tensor)}
    return {"input": batch.input, "target": batch.target, **tensors}


def question(case: Case) -> str:
    """Names the exact question: costs of the same case compare only if it stayed the same."""
    text = json.dumps([case.id, case.question.model_dump(mode="json")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def ratio(line: Mapping[str, Any], phase: str) -> timing.Ratio | None:
    """The candidate's time over ``native``'s; None where the line has none, as for ``native`` itself."""
    return _ratio(line, timing.CANDIDATE, phase)


def control(line: Mapping[str, Any], phase: str) -> timing.Ratio | None:
    """``native``'s time over ``native``'s, of the same rounds."""
    return _ratio(line, timing.CONTROL, phase)


def whole(line: Mapping[str, Any]) -> str:
    """The phase that is all of what was timed: ``both``, or ``forward`` where no gradient was asked for."""
    return "both" if "both" in line.get("rounds", {}).get(timing.BASE, {"both": ()}) else "forward"


def seconds(line: Mapping[str, Any], phase: str) -> float | None:
    """The median of the rounds of the implementation itself. Means something beside other figures of the same line only."""
    rounds = line.get("rounds", {})
    samples = rounds.get(timing.CANDIDATE, rounds.get(timing.BASE, {})).get(phase)
    return timing.median(samples) if samples else None


def limit(line: Mapping[str, Any], phase: str) -> float | None:
    """The seconds that moving what must be moved takes at the bandwidth of the same run."""
    return timing.limit(line["must_move"][phase], line["bandwidth"]) if "must_move" in line else None


def _ratio(line: Mapping[str, Any], lane: str, phase: str) -> timing.Ratio | None:
    rounds = line.get("rounds", {})
    above, below = rounds.get(lane, {}).get(phase), rounds.get(timing.BASE, {}).get(phase)
    return timing.ratio(above, below) if above and below else None


def _left_on_this_machine() -> int | None:
    try:
        text = Path("/proc/meminfo").read_text()
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
