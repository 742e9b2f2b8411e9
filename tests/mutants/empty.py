"""Nothing kept: every target ignored, or no target at all."""

from functools import partial

import torch
from _correct import claims, denominator, flat, kept, loss, reduce, with_gradient


def all_ignored_raises(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The mean over no kept position is a division by zero."""

    def total(classes, keep, weight):
        if reduction == "mean" and len(keep) and not keep.any():
            raise ZeroDivisionError("every target is ignored")
        return denominator(classes, keep, weight)

    wrong = partial(loss, denominator=total)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def all_ignored_gives_infinity(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The mean over no kept position is an infinity.

    Link: https://github.com/unslothai/unsloth/pull/7677
    """

    def infinite(losses, total, reduction, shape):
        result = reduce(losses, total, reduction, shape)
        return torch.where(total == 0, float("inf"), result) if reduction == "mean" else result

    wrong = partial(loss, reduce=infinite)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def all_ignored_gives_a_detached_zero(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Without a kept position, the loss is a new zero that knows nothing of the logits.

    Link: https://github.com/huggingface/trl/pull/5826
    """
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    return result if kept(flat(target), ignore_index).any() else torch.zeros_like(result.detach())


def all_ignored_leaves_no_gradient(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Without a kept position, the gradient is None instead of zeros.

    Link: https://github.com/huggingface/trl/pull/6859
    """
    keep = kept(flat(target), ignore_index)
    input = with_gradient(input, lambda gradient: gradient if keep.any() else None)
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def all_ignored_gives_nan_gradients(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Without a kept position, the gradient of the mean is NaN: 0/0 has been differentiated."""
    if reduction == "mean" and not kept(flat(target), ignore_index).any():
        input = with_gradient(input, lambda gradient: gradient * float("nan"))
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def empty_batch_raises(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """No position at all is an error.

    Link: https://github.com/pytorch/pytorch/issues/15870
    """
    if target.numel() == 0:
        raise ValueError("the batch is empty")
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def sum_is_the_mean_times_the_count(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The sum is worked out from the mean, and is NaN where that is 0/0."""

    def sum_from_mean(losses, total, reduction, shape):
        if reduction != "sum":
            return reduce(losses, total, reduction, shape)
        return reduce(losses, total, "mean", shape) * total

    wrong = partial(loss, reduce=sum_from_mean)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


@claims(empty_mean="nan")
def mean_of_nothing_depends_on_the_shape(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The mean over no position is NaN, but for images it is 0.

    Link: https://github.com/pytorch/pytorch/pull/64572
    """

    def at_least_one(classes, keep, weight):
        total = denominator(classes, keep, weight)
        return total if keep.any() or target.dim() < 3 else total + 1

    wrong = partial(loss, denominator=at_least_one)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)
