"""flash-attention: its Triton cross entropy, for CUDA only, which gives the losses of positions."""

from xentcheck.implementation import Adapter


def cross_entropy(logits, labels, **options):
    from flash_attn.ops.triton.cross_entropy import cross_entropy_loss

    return cross_entropy_loss(logits, labels, **options)


implementation = Adapter(
    name="flash_attn",
    call=cross_entropy,
    reductions={"none"},
    returns=0,
    offers={"label_smoothing"},
    adapter_does={"divide"},
    requires=["flash-attn==2.8.3.post2", "einops==0.8.1"],
    no_deps=True,
    device="cuda",
)
