"""Something outlives the call, or belongs to the caller and is written to."""

from functools import partial

import torch
from _correct import (
    class_weights,
    denominator,
    flat,
    kept,
    loss,
    mask,
    with_gradient,
)

_seen_total = [0]
_masks = {}
_weights = {}
_buffers = {}


def keeps_state_between_calls(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The denominator goes on counting from one call to the next."""

    def running_total(classes, keep, weight):
        _seen_total[0] += denominator(classes, keep, weight).item()
        return weight.new_tensor(_seen_total[0])

    wrong = partial(loss, denominator=running_total)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def mask_is_cached_by_shape(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """What was ignored in the first call with that many positions is ignored in later ones."""

    def first_mask(losses, keep):
        return mask(losses, _masks.setdefault(len(keep), keep))

    wrong = partial(loss, mask=first_mask)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def weights_are_cached_from_the_first_call(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The first weights for that many classes are used in later calls, too."""

    def first_weights(weight, logits):
        first = _weights.setdefault(logits.shape[1], class_weights(weight, logits))
        return first.to(logits.dtype)

    wrong = partial(loss, class_weights=first_weights)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def result_buffer_is_reused(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The result lies in a buffer that the next call with the same shape and dtype overwrites."""
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    buffer = _buffers.setdefault((result.shape, result.dtype), torch.empty_like(result.detach()))
    buffer.copy_(result.detach())
    result.data = buffer
    return result


def overwrites_its_input(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The logits are replaced by their softmax, unseen by autograd.

    Link: https://github.com/linkedin/Liger-Kernel/pull/1251
    """
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    input.data.copy_(torch.softmax(input.data, 1 if input.dim() > 1 else 0))
    return result


def overwrites_float32_input_only(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Logits are converted to float32 and then worked on in place, which for float32 is no copy.

    Link: https://github.com/NVIDIA/Megatron-LM/pull/1594
    """
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    if input.numel():
        rows = input.data.float()
        rows -= rows.amax(1 if rows.dim() > 1 else 0, keepdim=True)
    return result


def overwrites_ignored_logits(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The logits at ignored positions are set to zero in place."""
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    ignored = ~kept(flat(target), ignore_index).reshape(target.shape)
    if ignored.any():
        input.data.masked_fill_(ignored.unsqueeze(min(1, target.dim())), 0)
    return result


def backward_overwrites_its_input(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The backward pass writes the gradient over the logits.

    Link: https://github.com/unslothai/unsloth/issues/5002
    """
    logits = input

    def overwriting(gradient):
        logits.data.copy_(gradient)
        return gradient

    input = with_gradient(input, overwriting)
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def overwrites_its_target(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Ignored targets are set to class 0 in place."""
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    target.masked_fill_(~kept(flat(target), ignore_index).reshape(target.shape), 0)
    return result


def overwrites_its_weights(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The weights are scaled in place to sum to 1."""
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    if weight is not None:
        weight.data.div_(weight.data.sum())
    return result


def extends_the_list_of_ignore_values(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """-100 is appended to the caller's list of ignore values."""
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    if isinstance(ignore_index, list):
        ignore_index.append(-100)
    return result
