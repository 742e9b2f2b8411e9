"""``torch.nn.functional.linear_cross_entropy`` some positions at a time, never with all logits in memory."""

import warnings

import torch
import torch.nn.functional as F

from xentcheck.implementation import LINEAR_CAPABILITIES, Deviation, Implementation

MISSING = (
    "" if hasattr(F, "linear_cross_entropy") else f"torch {torch.__version__} has no linear_cross_entropy; 2.13 does"
)

SOURCE = "https://github.com/pytorch/pytorch/blob/v2.13.0/torch/nn/modules/linear_cross_entropy.py"


def linear_cross_entropy(hidden, linear_weight, target, *, label_smoothing=0.0, **options):
    if label_smoothing:
        raise ValueError("label smoothing is not computed in chunks")
    settings = torch.nn.LinearCrossEntropyOptions(allow_retain_graph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that the settings are ignored is told by a warning
        return F.linear_cross_entropy(hidden, linear_weight, target, options=settings, **options)


implementation = Implementation(
    name="linear_cross_entropy_chunked",
    linear_cross_entropy=linear_cross_entropy,
    capabilities=LINEAR_CAPABILITIES
    - {
        "class_probabilities",
        "ignore_index_list",
        "normalizer",
        "label_smoothing",
        "uint8_target",
        "double_backward",
        "func_grad",
        "vmap",
        "compile",
        "autocast",
    },
    empty_mean="nan",
    deviations=(
        *(
            Deviation(
                (
                    "linear-chunks/nan-in-an-ignored-chunk",
                    "linear-ignored/all-ignored[nan-*]",
                    "linear-ignored/dtype",
                    "linear-ignored/ignored-class",
                    "linear-ignored/one-feature-of-a-state",
                    "linear-ignored/whole-states[*-inf-*]",
                    "linear-ignored/whole-states[nan-*]",
                ),
                aspect=aspect,
                fault="nan",
                observed="NaN in the loss and in all gradients where the hidden state of an ignored position holds an infinity or NaN",
                reason="Ignored positions are computed like the others and multiplied by a weight of 0, and 0 * NaN is NaN.",
                link=SOURCE,
            )
            for aspect in ("loss", "gradient")
        ),
        Deviation(
            (
                "all-ignored/classification[mean-*]",
                "all-ignored/default-ignore-value",
                "all-ignored/default-reduction",
                "all-ignored/one-position",
                "all-ignored/value",
                "all-ignored/weights",
                "linear-ignored/mean-over-nothing",
                "lm-all-ignored",
            ),
            aspect="gradient",
            fault="nan",
            observed="a gradient of NaN, not zeros, where every position is ignored",
            reason="The weights of the positions are divided by NaN where their sum is 0; not chunked, only the loss is NaN.",
            link=SOURCE,
        ),
        *(
            Deviation(
                "accuracy/equal-positions",
                aspect=aspect,
                fault="value",
                observed="a sum over many positions that drifts away",
                reason="The losses of a chunk are added up by a dot product, which adds naively on some processors; torch.sum adds pairwise.",
                link=SOURCE,
                max_units=1000,
                certain=False,  # on Intel with AVX512 some of these hold, on AMD with AVX2 none does
            )
            for aspect in ("loss", "splitting", "reductions")
        ),
        Deviation(
            ("linear-chunks/half-types[bfloat16-*]", "linear/bfloat16"),
            aspect="loss",
            fault="value",
            observed="a bfloat16 loss that is off by one percent and more",
            reason="The loss is added up over chunks in bfloat16; in float16 it is added up in float32.",
            link=SOURCE,
            max_units=8,
            certain=False,
        ),
        Deviation(
            ("linear-chunks/half-types", "linear-chunks/upstream[bfloat16]", "linear/bfloat16"),
            aspect="gradient",
            fault="value",
            observed="half-precision gradients of the matrix that lose a little with every chunk",
            reason="The gradient of the matrix is added up over chunks in the half type.",
            link=SOURCE,
            max_units=8,
            certain=False,
        ),
        Deviation(
            (
                "bad-input/empty-logits",
                "bad-input/shape[longer]",
                "bad-input/weight-as-long-as-the-batch",
                "bad-input/weight-length[longer]",
            ),
            aspect="rejection",
            fault="accepted",
            observed="targets and class weights that are too long are taken, and so is a batch without classes",
            reason="Chunks are cut out of them by index, and nobody compares the lengths; not chunked, all are refused.",
            link=SOURCE,
        ),
    ),
    unavailable=MISSING,
    version=torch.__version__,
)
