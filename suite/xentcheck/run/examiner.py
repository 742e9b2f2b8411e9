"""Tests an implementation on a case: batch, observation, truth and verdict, each made once for all aspects."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xentcheck.implementation import Implementation
from xentcheck.reference.truth import Truth, relevant_conventions, truth
from xentcheck.run.judge import Exam, judge
from xentcheck.run.observe import Answer, Failure, Observation, Observe, ObserveAll, observe
from xentcheck.run.relations import NEEDS, Check, applying, related
from xentcheck.run.status import Status
from xentcheck.run.verdict import Verdict, is_same
from xentcheck.spec.batch import Batch, build
from xentcheck.spec.case import RELATIONS, Aspect, Case, Relation
from xentcheck.spec.needs import capabilities_to_ask, good_batch

Answered = tuple[Sequence[Batch], Check, Sequence[Answer | Failure]]

KEPT = 40  # batches, truths and observations of the last cases; those of a whole run would not fit in memory


class Examiner:
    """Examines cases one after another. It remembers only the last few, so ask for all aspects of a case together.

    observe: calls an implementation in this process or in another one (``run.isolation``). observe_all: the same for several batches at
    once, where that costs less; the batches of all relations of a case are then observed together. native: what an implementation that is
    built on torch is compared with where it fails.
    """

    def __init__(
        self,
        observe: Observe = observe,
        observe_all: ObserveAll | None = None,
        native: Callable[[], Implementation] | None = None,
    ) -> None:
        self._observe, self._observe_all, self._native = observe, observe_all, native
        self._memory: OrderedDict[Any, Any] = OrderedDict()
        self._refused: dict[tuple[str, ...], str] = {}  # what was given instead of a loss for good input
        self.observations = 0

    def batch(self, case: Case) -> Batch:
        return self._once(("batch", case.id), lambda: build(case))

    def exam(self, case: Case) -> Exam:
        def make() -> Exam:
            batch = self.batch(case)
            relevant = frozenset() if case.expects_error else relevant_conventions(batch)
            return Exam(
                case, batch, capabilities_to_ask(case, batch), relevant, lambda answers: self.truth(case, answers)
            )

        return self._once(("exam", case.id), make)

    def truth(self, case: Case, answers: Mapping[str, str]) -> Truth:
        return self._once(("truth", case.id, *sorted(answers.items())), lambda: truth(self.batch(case), answers))

    def observation(self, case: Case, implementation: Implementation) -> Observation | Failure:
        def make() -> Observation | Failure:
            self.observations += 1
            error = case.question.expect.error
            wants_gradient = case.has_gradient or (error is not None and error.phase == "backward")
            return self._observe(implementation, self.batch(case), wants_gradient, 2)

        return self._once(("observation", case.id, implementation.name), make)

    def aspects(self, case: Case, implementation: Implementation) -> tuple[Aspect, ...]:
        """The aspects of the case itself, and the relations that apply to its batch and whose needs the implementation offers."""
        offered = implementation.capabilities
        if not self.exam(case).needed <= offered:
            return case.aspects
        related = self._once(("applying", case.id), lambda: applying(case, self.batch(case)))
        return (*case.aspects, *(name for name in related if NEEDS.get(name, frozenset()) <= offered))

    def examine(self, case: Case, aspect: Aspect, implementation: Implementation) -> Verdict:
        verdict = self._in_context(case, implementation, self._examined(case, aspect, implementation))
        if verdict.fault is None or verdict.status.is_good or not implementation.built_on or self._native is None:
            return verdict
        native = self._native()
        known = self._examined(case, aspect, native)
        if known.status is Status.DEVIATES and known.fault is not None and is_same(verdict.fault, known.fault):
            return replace(verdict, status=known.status, same_as=native.name)
        return verdict

    def _in_context(self, case: Case, implementation: Implementation, verdict: Verdict) -> Verdict:
        """The verdict in the light of what an adapter says of its library: whether it can refuse values, and what is the adapter's."""
        exam, fault = self.exam(case), verdict.fault
        if (
            fault is not None
            and fault.kind == "accepted"
            and not exam.asks_for_refusal
            and implementation.refuses != "raise"
        ):
            seen = self.observation(case, implementation)
            loss = None if isinstance(seen, Failure) else seen.first.loss
            if implementation.refuses == "nothing" or (loss is not None and np.isnan(loss).any()):
                reason = f"cannot raise an error; found {fault.found}"
                return replace(verdict, status=Status.UNSUPPORTED, fault=None, reason=reason)
        if verdict.status.was_asked and _answers_itself(implementation, exam.batch):
            return replace(verdict, by_adapter=True)
        return verdict

    def _examined(self, case: Case, aspect: Aspect, implementation: Implementation) -> Verdict:
        exam = self.exam(case)
        if exam.batch.classes % implementation.classes_divisible_by:
            reason = (
                f"takes multiples of {implementation.classes_divisible_by} classes; the case has {exam.batch.classes}"
            )
            return Verdict(
                implementation.name,
                case.clause.clause,
                case.id,
                aspect,
                Status.UNSUPPORTED,
                reason=reason,
                dtype=case.question.dtype,
            )
        seen = self.observation(case, implementation) if exam.concerns(implementation) else None

        def relate(name: Relation) -> Answered:
            key = ("relations", case.id, implementation.name)
            if name not in self._memory.get(key, ()):
                names: Sequence[Relation] = [name]
                if self._observe_all is not None:  # where all together cost little more
                    names = [name for name in RELATIONS if name in self.aspects(case, implementation)]
                self._memory.pop(key, None)
                self._once(key, lambda: self._related(case, implementation, names))
            return self._memory[key][name]

        return judge(exam, aspect, implementation, seen, relate, lambda: self._refused_good(case, implementation))

    def _refused_good(self, case: Case, implementation: Implementation) -> str:
        """What the implementation gives instead of a loss for good input of the case's dtype and mode; empty if it gives one."""
        good = good_batch(case, implementation.capabilities, implementation.classes_divisible_by)
        key = implementation.name, str(good.input.dtype), good.mode
        if key not in self._refused:
            seen = self._observe(implementation, good, False, 1)
            if isinstance(seen, Failure):
                self._refused[key] = seen.message
            elif seen.first.raised is not None:
                self._refused[key] = str(seen.first.raised)
            else:
                self._refused[key] = "" if seen.first.loss is not None else seen.first.loss_type
        return self._refused[key]

    def _related(
        self, case: Case, implementation: Implementation, names: Sequence[Relation]
    ) -> dict[Relation, Answered]:
        """The batches of relations, with the checks and the answers."""
        made = {name: related(name, self.batch(case)) for name in names}
        batches = [batch for some, _ in made.values() for batch in some]
        if self._observe_all is None:
            seen: Sequence[Any] = [self._observe(implementation, batch, True, 1) for batch in batches]
        else:
            seen = self._observe_all(implementation, batches)
        answers = iter([one if isinstance(one, Failure) else one.first for one in seen])
        return {name: (some, check, [next(answers) for _ in some]) for name, (some, check) in made.items()}

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key in self._memory:
            self._memory.move_to_end(key)
        else:
            self._memory[key] = make()
            while len(self._memory) > KEPT:
                self._memory.popitem(last=False)
        return self._memory[key]


def _answers_itself(implementation: Implementation, batch: Batch) -> bool:
    """Whether the answer to a batch is an adapter's and not its library's: it masks what is ignored, or divides by nothing."""
    does, valid = implementation.adapter_does, batch.valid
    return ("mask" in does and not valid.all()) or ("divide" in does and batch.reduction == "mean" and not valid.any())
