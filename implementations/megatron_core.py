"""Megatron-core's vocabulary-parallel losses, plain and fused, on one rank with gloo. They know no ignored targets."""

from functools import cache

from xentcheck.implementation import Adapter


@cache
def group():
    """The group of tensor-parallel ranks: this process alone."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    return parallel_state.get_tensor_model_parallel_group()


def plain(logits, labels, **options):
    from megatron.core.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy

    group()
    return vocab_parallel_cross_entropy(logits, labels, **options)


def fused(logits, labels, **options):
    from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy

    return fused_vocab_parallel_cross_entropy(logits, labels, tp_group=group(), **options)


COMMON = {
    "layout": "sequence",
    "ignores": "by-adapter",
    "adapter_does": {"mask", "divide"},
    "reductions": {"none"},
    "requires": ["megatron-core==0.16.1", "packaging==26.0"],
    "no_deps": True,
}

implementations = (
    Adapter(
        name="megatron_core_plain",
        computes_in="float32",
        call=plain,
        offers={"label_smoothing"},
        smoothing="1/(C-1)",
        **COMMON,
    ),
    # torch.compile, by which its five parts are fused, would compile them anew for each shape.
    Adapter(name="megatron_core_fused", computes_in="float32", call=fused, env={"TORCHDYNAMO_DISABLE": "1"}, **COMMON),
)
