"""LitGPT: its chunked cross entropy."""

from xentcheck.implementation import Adapter


def chunked(logits, labels, **options):
    from litgpt.utils import chunked_cross_entropy

    return chunked_cross_entropy(logits, labels, **options)


implementation = Adapter(
    name="litgpt",
    call=chunked,
    layout="sequence",
    reductions={"mean"},
    built_on="torch",
    requires=["litgpt==0.5.13"],
)
