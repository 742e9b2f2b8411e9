"""Results of the wrong shape, size or dtype."""

from functools import partial

import torch
from _correct import flat, kept, loss, reduce


def none_returns_the_sum(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """reduction="none" adds the losses up all the same.

    Link: https://github.com/linkedin/Liger-Kernel/issues/421
    """
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    return result.sum() if reduction == "none" else result


def none_comes_back_flat(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """reduction="none" gives one dimension, whatever the shape of the targets is."""
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    return result.reshape(-1) if target.dim() > 1 and reduction == "none" else result


def none_comes_back_in_another_order(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """reduction="none" gives the right shape, filled with the last dimension running slowest."""

    def reordered(losses, total, reduction, shape):
        result = reduce(losses, total, reduction, shape)
        if reduction != "none" or len(shape) < 2:
            return result
        return losses.reshape(shape[::-1]).permute(*reversed(range(len(shape))))

    wrong = partial(loss, reduce=reordered)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def none_is_squeezed(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """reduction="none" loses the dimensions of size 1."""
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    return result.squeeze() if reduction == "none" else result


def none_leaves_out_ignored_positions(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """reduction="none" gives the losses of the kept positions only."""
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    keep = kept(flat(target), ignore_index)
    return result.reshape(-1)[keep] if reduction == "none" and not keep.all() else result


def none_is_divided_by_the_count(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """reduction="none" gives losses already divided by the denominator of the mean."""

    def divided(losses, total, reduction, shape):
        result = reduce(losses, total, reduction, shape)
        return result / total.clamp(min=1) if reduction == "none" else result

    wrong = partial(loss, reduce=divided)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def none_holds_minus_one_at_ignored_positions(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """reduction="none" marks ignored positions with -1 instead of 0."""
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    keep = kept(flat(target), ignore_index).reshape(target.shape)
    return result.masked_fill(~keep, -1) if reduction == "none" else result


def sum_is_the_mean(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """reduction="sum" gives the mean."""

    def mean(losses, total, reduction, shape):
        return reduce(losses, total, "mean" if reduction == "sum" else reduction, shape)

    wrong = partial(loss, reduce=mean)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def sum_is_divided_by_batch_size(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """reduction="sum" divides by the number of samples."""

    def divided(losses, total, reduction, shape):
        result = reduce(losses, total, reduction, shape)
        samples = shape[0] if shape else 1
        return result / max(samples, 1) if reduction == "sum" else result

    wrong = partial(loss, reduce=divided)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def mean_keeps_a_dimension(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """reduction="mean" gives a tensor of shape (1,) instead of ()."""
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    return result.reshape(1) if reduction == "mean" else result


def unbatched_loss_keeps_a_dimension(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Unbatched logits with reduction="none" give a tensor of shape (1,) instead of ()."""
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    return result.reshape(1) if reduction == "none" and target.dim() == 0 else result


def unbatched_mean_divides_by_the_classes(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The mean over unbatched logits is divided by the number of classes."""

    def divided(losses, total, reduction, shape):
        return reduce(losses, total if shape else total * len(input), reduction, shape)

    wrong = partial(loss, reduce=divided)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def float32_loss_comes_back_as_float64(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The loss of float32 logits is float64."""
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    return result.double() if input.dtype == torch.float32 else result


def bfloat16_loss_comes_back_as_float16(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The loss of bfloat16 logits is float16."""
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    return result.half() if input.dtype == torch.bfloat16 else result


def nothing_is_returned(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The loss is worked out, and None returned.

    Link: https://github.com/NVIDIA/Megatron-LM/issues/1481
    """
    loss(input, target, weight, ignore_index, reduction, label_smoothing)
