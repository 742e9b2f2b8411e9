"""torchtitan: its loss, a sum over positions in float32, and what computes it where the classes are spread over ranks, on one rank."""

from functools import cache

from xentcheck.implementation import Adapter, Deviation

INSTALLED = {
    "requires": [
        "torchtitan==0.3.0",
        "spmd-types==0.2.3",
        "tyro==1.0.17",
        "docstring-parser==0.18.0",
        "typeguard==4.6.1",
    ],
    "no_deps": True,
}


@cache
def one_rank():
    from torch import distributed

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    return distributed.group.WORLD


def plain(logits, labels):
    from torchtitan.components.loss import cross_entropy_loss

    return cross_entropy_loss(logits, labels)


def loss_parallel(logits, labels, *, reduction="mean"):
    from torchtitan.components.loss import _LossParallelCrossEntropy

    return _LossParallelCrossEntropy.apply(logits, labels, one_rank(), logits.shape[-1], reduction)


SOURCE = "https://github.com/pytorch/torchtitan/blob/v0.3.0/torchtitan/components/loss.py"
LOSS_PARALLEL = (
    Deviation(
        (
            "bad-input/target[class-count]",
            "bad-input/target[too-large]",
            "bad-input/target[minus-*]",
            "bad-input/target[byte-255-by-default]",
            "bad-input/target[far-negative]",
            "bad-input/target[wraps-*]",
            "bad-input/target-without-reduction[class-count]",
            "bad-input/target-without-reduction[minus-1]",
            "bad-input/target-of-a-sum",
            "bad-input/target-beside-ignored",
            "bad-input/target-of-tokens",
            "bad-input/target-of-unbatched",
        ),
        aspect="rejection",
        fault="accepted",
        observed="a target that is no class has the loss 0, and its row a gradient that does not add up to 0",
        reason="It is taken for a class of another rank, whose share of the sum over ranks is missing.",
        link=SOURCE,
    ),
    Deviation(
        ("ignored-nonfinite/whole-rows[nan-none]", "ignored-nonfinite/whole-rows[nan-sum]"),
        aspect="gradient",
        fault="nan",
        observed="NaN gradients in ignored rows that hold NaN",
        reason="The backward pass multiplies the softmax of an ignored row with a gradient of 0, and 0 * NaN is NaN.",
        link=SOURCE,
    ),
    Deviation(
        "*",
        aspect="poisoning",
        fault="nan",
        observed="NaN gradients of ignored positions as soon as these hold an infinity or NaN",
        reason="The backward pass multiplies the softmax of an ignored row with a gradient of 0, and 0 * NaN is NaN.",
        link=SOURCE,
        certain=False,
    ),
)

implementations = (
    Adapter(
        name="torchtitan_plain",
        computes_in="float32",
        call=plain,
        layout="sequence",
        ignores="-100 only",
        reductions={"sum"},
        half_loss_dtype="float32",
        built_on="torch",
        **INSTALLED,
    ),
    Adapter(
        name="torchtitan_loss_parallel",
        computes_in="float32",
        call=loss_parallel,
        ignores="-100 only",
        reductions={"sum", "none"},
        half_loss_dtype="float32",
        deviations=LOSS_PARALLEL,
        **INSTALLED,
    ),
)
