"""DeepSpeed's vocabulary-parallel losses on one rank: of tokens, and of a causal language model."""

from _torch import NAN_IN_IGNORED_ROWS
from xentcheck.implementation import Adapter, Deviation


def tokens(logits, labels, **options):
    from deepspeed.sequence.cross_entropy import vocab_parallel_cross_entropy

    return vocab_parallel_cross_entropy(logits, labels, **options)


def causal(logits, labels, *, ignore_index=-100, **options):
    from deepspeed.sequence.cross_entropy import VocabParallelCausalLMLoss

    return VocabParallelCausalLMLoss(ignore_index=ignore_index)(logits, labels, **options)


INSTALLED = {
    "requires": [
        "deepspeed==0.19.8",
        "einops==0.8.2",
        "hjson==3.1.0",
        "msgpack==1.1.2",
        "ninja==1.13.0",
        "packaging==26.0",
        "psutil==7.2.2",
        "py-cpuinfo==9.0.0",
        "pydantic==2.12.5",
        "pydantic-core==2.41.5",
        "annotated-types==0.7.0",
        "typing-inspection==0.4.2",
        "tqdm==4.67.3",
    ],
    "no_deps": True,
    "deviations": tuple(
        Deviation(
            cases,
            aspect=aspect,
            fault="nan",
            observed="NaN gradients in ignored rows that hold an infinity or NaN",
            reason="_VocabParallelCrossEntropy.backward multiplies the softmax of an ignored row by 0, and 0 * NaN is NaN.",
        )
        for cases, aspect in ((NAN_IN_IGNORED_ROWS, "gradient"), ("*", "poisoning"))
    ),
}

implementations = (
    Adapter(name="deepspeed_vocab_parallel", computes_in="float32", call=tokens, layout="sequence", **INSTALLED),
    Adapter(
        name="deepspeed_causal",
        computes_in="float32",
        call=causal,
        layout="sequence",
        shifts=True,
        reductions={"mean"},
        keywords={"normalizer": "num_items_in_batch"},
        **INSTALLED,
    ),
)
