"""torchtitan: its loss, a sum over positions in float32, and what computes it where the classes are spread over ranks, on one rank."""

from functools import cache

from xentcheck.implementation import Adapter

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


implementations = (
    Adapter(
        name="torchtitan_plain",
        call=plain,
        layout="sequence",
        ignores="-100 only",
        reductions={"sum"},
        built_on="torch",
        **INSTALLED,
    ),
    Adapter(
        name="torchtitan_loss_parallel",
        call=loss_parallel,
        ignores="-100 only",
        reductions={"sum", "none"},
        **INSTALLED,
    ),
)
