"""The capabilities that a case needs: an implementation that does not claim one of them is not asked."""

from __future__ import annotations

import torch

from xentcheck.spec.batch import Batch
from xentcheck.spec.case import Case, Question
from xentcheck.spec.case_modes import MODES

MANY_CLASSES = 4096


def capabilities_needed(case: Case, batch: Batch) -> frozenset[str]:
    """What an implementation must offer to be asked this case. batch: the case's."""
    question = case.question
    needed = {*question.needs, question.dtype, *_for_ignoring(question, batch)}
    if case.expects_error:
        # Every implementation must refuse a call that cannot be right, whether or not it offers the rest of the call.
        return frozenset(needed - {"ignore_index_in_range"})
    needed |= _for_options(batch) | _for_input(batch)
    if any(layout != "contiguous" for layout in _layouts(question)):
        needed.add("non_contiguous")
    if case.has_gradient:
        needed.add("backward")
    return frozenset(needed | ({capability} if (capability := MODES[question.mode].capability) else set()))


def _for_ignoring(question: Question, batch: Batch) -> set[str]:
    if question.ignore_index is None:  # -100 is ignored by default
        holds_default = not batch.target.is_floating_point() and bool((batch.target.long() == -100).any())
        return {"ignore_index"} if holds_default else set()
    needed = {"ignore_index" if isinstance(question.ignore_index, int) else "ignore_index_list"}
    if any(0 <= value < batch.classes for value in batch.ignore_values):
        needed.add("ignore_index_in_range")
    return needed


def _for_options(batch: Batch) -> set[str]:
    needed = {"weight", "label_smoothing", "normalizer", "linear_bias"} & batch.options.keys()
    needed.add(f"reduction_{batch.reduction}")
    if "reduction" in batch.options:
        needed.add("reduction_option")
    return needed


def _for_input(batch: Batch) -> set[str]:
    needed = set()
    if batch.has_probabilities:
        needed.add("class_probabilities")
    if batch.input.dim() != 2:
        needed.add("unbatched" if batch.input.dim() == 1 else "k_dim")
    if batch.classes > MANY_CLASSES and not batch.is_linear:  # an identity matrix would be large
        needed.add("many_classes")
    if batch.is_linear:
        needed.add("linear")
    elif not torch.isfinite(batch.input).all():
        needed.add("non_finite")
    if batch.target.dtype == torch.uint8:
        needed.add("uint8_target")
    return needed


def _layouts(question: Question) -> list[str]:
    layouts = [question.logits.layout, question.target.layout, question.upstream.layout, question.weight_layout]
    return layouts + ([question.linear.layout, question.linear.matrix_layout] if question.linear else [])
