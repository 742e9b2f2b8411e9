"""NVIDIA Apex: its fused softmax cross entropy, for CUDA only, which gives the losses of positions. Built from source."""

from importlib import util

from xentcheck.implementation import Adapter


def softmax_cross_entropy(logits, labels, *, ignore_index=-100, label_smoothing=0.0):
    from apex.contrib.xentropy import SoftmaxCrossEntropyLoss

    return SoftmaxCrossEntropyLoss.apply(logits, labels, label_smoothing, ignore_index)


implementation = Adapter(
    name="apex",
    call=softmax_cross_entropy,
    reductions={"none"},
    offers={"label_smoothing"},
    adapter_does={"divide"},
    device="cuda",
    unavailable=""
    if util.find_spec("xentropy_cuda")
    else "needs a CUDA device and an Apex built there with --xentropy",
)
