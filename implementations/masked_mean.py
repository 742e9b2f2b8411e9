"""A mask multiplied onto the losses of all positions, then ``.mean()``: often written, and its denominator is wrong.

https://github.com/open-mmlab/mmsegmentation/issues/546 is one of many places where the mean counts the ignored positions.
"""

import torch
import torch.nn.functional as F

from _torch import COMPILED_TARGET, POISONED
from xentcheck.implementation import Deviation, Implementation


def cross_entropy(input, target, *, ignore_index=-100, reduction="mean"):
    if reduction != "mean":
        raise ValueError("only the mean is on offer")
    loss = F.cross_entropy(input, target, ignore_index=ignore_index, reduction="none")
    mask = target != ignore_index
    return (loss * mask.to(loss.dtype)).mean()


# Wherever something is ignored and something is left.
_SOME_IGNORED = (
    "accuracy/many-positions",
    "ignored-nonfinite/seed-002-row-of-minus-inf",
    "ignored-nonfinite/seed-002-vocabulary-mask",
    "ignored-nonfinite/seed-002-vocabulary-mask-by-the-advice",
    "ignored-positions/default-value",
    "ignored-positions/dtype",
    "ignored-positions/ignored-class-stays-in-the-softmax",
    "ignored-positions/ignored-in-a-later-block",
    "ignored-positions/many-classes-tail",
    "ignored-positions/one-kept-of-three",
    "ignored-positions/place",
    "ignored-positions/seed-000-token-classification-flattened",
    "ignored-positions/seed-001-padding-inside-the-class-range",
    "ignored-positions/seed-001-unlabelled",
    "ignored-positions/seed-002-three-rows-of-ones",
    "ignored-positions/seed-003-padded-targets",
    "ignored-positions/three-kept-of-five",
    "ignored-positions/unequal-halves",
    "ignored-positions/value",
    "layouts/dtype",
    "layouts/large",
    "layouts/logits",
    "lm-constrained",
    "lm-first-step",
    "logit-range",
    "micro-batches",
    "minus-infinity/column-with-ignored-positions",
    "modes",
    "tails/among-ignored",
    "unclaimed-options",
)
_DENOMINATOR = {
    "fault": "value",
    "reason": "The mean divides by all positions, the ignored ones included; it is too small by the share that is kept. Divide by mask.sum().",
    "link": "https://github.com/open-mmlab/mmsegmentation/issues/546",
}

implementation = Implementation(
    name="masked_mean",
    cross_entropy=cross_entropy,
    capabilities=frozenset(
        {
            "ignore_index",
            "ignore_index_in_range",
            "reduction_mean",
            "reduction_option",
            "backward",
            "non_contiguous",
            "non_finite",
            "many_classes",
            "float32",
            "float64",
        }
    ),
    deviations=(
        COMPILED_TARGET,
        Deviation(
            (
                *_SOME_IGNORED,
                "ignored-nonfinite/dtype",
                "ignored-nonfinite/ignored-class",
                "ignored-nonfinite/mixed",
                "ignored-nonfinite/one-class-of-a-row",
                "ignored-nonfinite/whole-rows",
                "upstream-gradient",
            ),
            aspect="loss",
            observed="a mean over all positions instead of the valid ones",
            **_DENOMINATOR,
        ),
        Deviation(
            (
                *_SOME_IGNORED,
                "accuracy/certain-over-a-vocabulary",  # where a running sum may lose the whole loss
                "ignored-nonfinite/one-class-of-a-row[minus-inf]",
                "ignored-nonfinite/whole-rows[*1e30-*]",
                "infinite-or-nan-valid-row",
                "upstream-gradient/scalar",
            ),
            aspect="gradient",
            observed="gradients of a mean over all positions instead of the valid ones",
            **_DENOMINATOR,
        ),
        Deviation(
            (
                "accuracy",
                "ignored-nonfinite",
                "ignored-positions",
                "infinite-or-nan-valid-row",
                "layouts",
                "lm-constrained",
                "lm-first-step",
                "logit-range",
                "minus-infinity",
                "unclaimed-options",
                "upstream-gradient",
            ),
            aspect="deletion",
            observed="another mean as soon as the ignored positions are left out",
            **_DENOMINATOR,
        ),
        Deviation(
            (
                "accuracy/certain-over-a-vocabulary",
                "accuracy/many-positions[float64-*]",
                "ignored-nonfinite",
                "ignored-positions/dtype",
                "ignored-positions/ignored-class-stays-in-the-softmax",
                "ignored-positions/ignored-in-a-later-block",
                "ignored-positions/many-classes-tail",
                "ignored-positions/one-kept-of-three",
                "ignored-positions/place[all-*]",
                "ignored-positions/place[every-*]",
                "ignored-positions/place[first]",
                "ignored-positions/place[last]",
                "ignored-positions/place[prefix]",
                "ignored-positions/place[suffix]",
                "ignored-positions/seed-000-token-classification-flattened",
                "ignored-positions/seed-001-padding-inside-the-class-range",
                "ignored-positions/seed-001-unlabelled",
                "ignored-positions/seed-002-three-rows-of-ones",
                "ignored-positions/seed-003-padded-targets",
                "ignored-positions/three-kept-of-five",
                "ignored-positions/unequal-halves",
                "infinite-or-nan-valid-row",
                "layouts/dtype",
                "layouts/large",
                "layouts/logits",
                "lm-constrained",
                "lm-first-step",
                "logit-range",
                "minus-infinity/column-with-ignored-positions",
                "unclaimed-options",
                "upstream-gradient",
            ),
            aspect="splitting",
            observed="parts that do not combine by what counts in them",
            **_DENOMINATOR,
        ),
        POISONED,
        Deviation(
            (
                "ignored-nonfinite/all-ignored",
                "ignored-nonfinite/dtype",
                "ignored-nonfinite/ignored-class",
                "ignored-nonfinite/mixed",
                "ignored-nonfinite/one-class-of-a-row[nan]",
                "ignored-nonfinite/one-class-of-a-row[plus-inf]",
                "ignored-nonfinite/whole-rows[*-inf-*]",
                "ignored-nonfinite/whole-rows[nan-*]",
            ),
            aspect="gradient",
            fault="nan",
            observed="NaN gradients in ignored rows that hold an infinity or NaN",
            reason="As in native; multiplying the loss with a mask does not undo it.",
            link="https://github.com/pytorch/pytorch/issues/11551",
        ),
    ),
    version=torch.__version__,
)
