"""The capabilities that a case needs: an implementation that does not claim one of them is not asked."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace

import torch

from xentcheck.spec.batch import DTYPES, Batch
from xentcheck.spec.case import Case, Question
from xentcheck.spec.case_modes import MODES

MANY_CLASSES = 4096
# Option: its default, and the capability of taking the option at all. A call means the same without an option that is at its default.
_DEFAULTS = {
    "ignore_index": (-100, "ignore_index"),
    "reduction": ("mean", "reduction_option"),
    "label_smoothing": (0.0, "label_smoothing"),
}


def capabilities_needed(case: Case, batch: Batch) -> frozenset[str]:
    """What an implementation must offer to be called with all options of this case and to give all that it asks for. batch: the case's."""
    return _needed(case, batch) | ({"backward"} if case.has_gradient else set())


def capabilities_to_ask(case: Case, batch: Batch) -> frozenset[str]:
    """What an implementation must offer to be asked this case: the loss, called by ``as_taken``. Its gradient may need more."""
    return _needed(case, as_taken(batch, frozenset()))


def capabilities_of(batch: Batch) -> frozenset[str]:
    """What an implementation must offer to be called with this batch, as far as its tensors and options show."""
    batch = as_taken(batch, frozenset())
    return frozenset(_for_ignoring(batch) | _for_options(batch) | _for_input(batch))


def as_taken(batch: Batch, capabilities: Set[str]) -> Batch:
    """The batch without the options that are at their default and that an implementation with these capabilities need not take."""
    left_out = {
        name
        for name, (default, capability) in _DEFAULTS.items()
        if capability not in capabilities and name in batch.options and batch.options[name] == default
    }
    if not left_out:
        return batch
    return replace(batch, options={name: value for name, value in batch.options.items() if name not in left_out})


def good_batch(case: Case, capabilities: Set[str], divisible_by: int = 1) -> Batch:
    """A small batch that any loss with these capabilities takes, in the case's dtype and mode if they are claimed."""
    capability = MODES[case.question.mode].capability
    mode = case.question.mode if capability in capabilities else "eager"
    return trial_batch(capabilities, divisible_by, dtypes=(case.question.dtype, *DTYPES), mode=mode)


def trial_batch(
    capabilities: Set[str],
    divisible_by: int = 1,
    dtypes: Sequence[str] = ("float32", *DTYPES),
    mode: str = "eager",
) -> Batch:
    """A small batch that any loss with these capabilities takes: logits (7, C), targets (7,), C at least 5 and a multiple of
    ``divisible_by``, in the first of the dtypes that is claimed."""
    dtype = next((name for name in dtypes if name in capabilities), "float32")
    reduction = next((name for name in ("mean", "sum", "none") if f"reduction_{name}" in capabilities), "mean")
    options = {} if reduction == "mean" else {"reduction": reduction}
    upstream = torch.ones((7,) if reduction == "none" else (), dtype=DTYPES[dtype])
    classes = divisible_by * -(-5 // divisible_by)
    logits = torch.linspace(-1, 1, 7 * classes).reshape(7, classes).to(DTYPES[dtype])
    return Batch(logits, torch.tensor([0, 1, 3, 2, 3, 4, 1]), options, upstream, mode)


def _needed(case: Case, batch: Batch) -> frozenset[str]:
    question, error = case.question, case.question.expect.error
    needed = {*question.needs, question.dtype, *_for_ignoring(batch)}
    if error is not None:
        # Every implementation must refuse a call that cannot be right, whether or not it offers the rest of the call.
        needed |= {"backward"} if error.phase == "backward" else set()
        return frozenset(needed - {"ignore_index_in_range"})
    needed |= _for_options(batch) | _for_input(batch)
    if any(layout != "contiguous" for layout in _layouts(question)):
        needed.add("non_contiguous")
    mode = MODES[question.mode]
    if mode.differentiates:
        needed.add("backward")
    return frozenset(needed | ({mode.capability} if mode.capability else set()))


def _for_ignoring(batch: Batch) -> set[str]:
    if "ignore_index" not in batch.options:
        holds_default = not batch.target.is_floating_point() and bool((batch.target.long() == -100).any())
        return {"ignore_minus_100"} if holds_default else set()
    needed = {"ignore_index" if isinstance(batch.options["ignore_index"], int) else "ignore_index_list"}
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


def _layouts(question: Question) -> Sequence[str]:
    layouts = [question.logits.layout, question.target.layout, question.upstream.layout, question.weight_layout]
    return layouts + ([question.linear.layout, question.linear.matrix_layout] if question.linear else [])
