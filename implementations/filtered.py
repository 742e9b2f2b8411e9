"""Positions filtered out with Python lists, several padding values at once, then native on what is left."""

import torch
import torch.nn.functional as F

from _torch import (
    DROPPED_IGNORE_VALUE,
    FLOAT16_MEAN,
    IMPOSSIBLE_CLASS,
)
from xentcheck.implementation import LOGITS_CAPABILITIES, Deviation, Implementation


def cross_entropy(input, target, *, ignore_index=-100, reduction="mean"):
    ignored = [ignore_index] if isinstance(ignore_index, int) else list(ignore_index)
    if reduction == "none":
        raise ValueError("the filtered positions are gone, so there is no loss for each position")
    kept = [i for i, value in enumerate(target.tolist()) if value not in ignored]
    return F.cross_entropy(input[kept], target[kept], reduction=reduction)


implementation = Implementation(
    name="filtered",
    cross_entropy=cross_entropy,
    capabilities=LOGITS_CAPABILITIES
    - {
        "normalizer",
        "reduction_none",
        "weight",
        "label_smoothing",
        "k_dim",
        "unbatched",
        "vmap",
        "compile",
    },
    empty_mean="nan",
    deviations=(
        *FLOAT16_MEAN,
        IMPOSSIBLE_CLASS,
        DROPPED_IGNORE_VALUE,
        Deviation(
            (
                "bad-input/probabilities-of-another-shape[too-few-rows]",
                "bad-input/shape-of-tokens[one-sample]",
                "bad-input/shape[empty]",
                "bad-input/shape[one]",
                "bad-input/shape[shorter]",
            ),
            aspect="rejection",
            fault="accepted",
            observed="a target shorter than the batch is taken, and the rest of the logits are dropped",
            reason="The kept positions are counted in the target and looked up in the logits; nobody compares the lengths.",
            link="https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html",
        ),
        *(
            Deviation(
                ("class-probabilities/modes[func_grad]", "modes/function-transform"),
                aspect=aspect,
                fault="raised",
                observed="under torch.func, the target's values cannot be read",
                reason="torch 2.6 refuses tolist() under torch.func.vjp, even of a tensor that has no part in it; 2.13 does not.",
                link="https://docs.pytorch.org/docs/stable/func.ux_limitations.html",
                torch="<2.13",
                certain=False,
            )
            for aspect in ("loss", "gradient", "shape")
        ),
        Deviation(
            "bad-input/target[minus-100-under-minus-1]",
            aspect="rejection",
            fault="accepted",
            observed="-100 is ignored although another value was asked for",
            reason="The loss of what is left is called without ignore_index, so its default of -100 is still in force.",
            link="https://github.com/Lightning-AI/litgpt/pull/1076",
        ),
    ),
    version=torch.__version__,
)
