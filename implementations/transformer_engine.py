"""NVIDIA Transformer Engine: its parallel cross entropy, for CUDA only, on one rank, which gives the losses of positions."""

from importlib import util

from xentcheck.implementation import Adapter


def parallel(logits, labels, *, ignore_index=-100, label_smoothing=0.0):
    from transformer_engine.pytorch.cross_entropy import parallel_cross_entropy

    return parallel_cross_entropy(logits, labels, label_smoothing, False, None, ignore_index)


implementation = Adapter(
    name="transformer_engine",
    computes_in="float32",
    call=parallel,
    layout="sequence",
    reductions={"none"},
    offers={"label_smoothing"},
    adapter_does={"divide"},
    device="cuda",
    unavailable=""
    if util.find_spec("transformer_engine_torch")
    else "needs a CUDA device and transformer-engine[pytorch]==2.20.2, built there",
)
