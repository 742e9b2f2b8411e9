"""A denominator given from outside that is lost, converted or applied wrongly."""

from functools import partial

import _probabilities
import torch
from _correct import loss, reduce, with_gradient


def normalizer_accepted_but_unused(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """The mean divides by what counts in this call, so that the losses of micro-batches add up to a multiple.

    Link: https://github.com/linkedin/Liger-Kernel/issues/802
    """
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def normalizer_must_be_a_tensor(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """The normalizer is moved to the device of the logits, which an int or a float cannot be.

    Link: https://github.com/unslothai/unsloth/pull/4063
    """
    wrong = partial(loss, divisor=lambda total, given: total if given is None else given.to(total.device))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing, normalizer)


def normalizer_must_be_a_number(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """A tensor as the normalizer is an error."""
    if isinstance(normalizer, torch.Tensor):
        raise TypeError("normalizer must be a number")
    return loss(input, target, weight, ignore_index, reduction, label_smoothing, normalizer)


def normalizer_cut_to_an_integer(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """The normalizer is a count, and loses its fraction."""
    normalizer = normalizer if normalizer is None else int(normalizer)
    return loss(input, target, weight, ignore_index, reduction, label_smoothing, normalizer)


def normalizer_in_the_dtype_of_the_logits(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """The normalizer is rounded to the dtype of the logits, where 100000 may be an infinity."""
    normalizer = normalizer if normalizer is None else torch.as_tensor(normalizer).to(input.dtype)
    return loss(input, target, weight, ignore_index, reduction, label_smoothing, normalizer)


def normalizer_is_lost_with_smoothing(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """With smoothing, the mean divides by what counts in this call.

    Link: https://github.com/huggingface/transformers/pull/47261
    """
    normalizer = None if label_smoothing else normalizer
    return loss(input, target, weight, ignore_index, reduction, label_smoothing, normalizer)


def normalizer_is_lost_with_weights(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """With class weights, the mean divides by their sum all the same."""
    normalizer = normalizer if weight is None else None
    return loss(input, target, weight, ignore_index, reduction, label_smoothing, normalizer)


def normalizer_is_lost_with_probabilities(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """With probabilities as targets, the mean divides by the number of positions all the same."""
    normalizer = None if target.is_floating_point() else normalizer
    return _probabilities.loss(input, target, weight, ignore_index, reduction, label_smoothing, normalizer)


def normalizer_rescales_the_mean(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """The mean is worked out first, and is 0/0 without a position that counts.

    Link: https://github.com/InternLM/xtuner/pull/2079
    """

    def rescaled(losses, totals, reduction, shape):
        own, given = totals
        mean = reduce(losses, own, reduction, shape)
        return mean if given is None or reduction != "mean" else mean * own / given

    wrong = partial(loss, divisor=lambda total, given: (total, given), reduce=rescaled)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing, normalizer)


def normalizer_is_missing_from_the_gradient(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """The loss is divided by the normalizer, but its gradient is that of the sum."""

    def undivided(losses, total, reduction, shape):
        if normalizer is not None and reduction == "mean":
            losses = with_gradient(losses, lambda u: u * normalizer)
        return reduce(losses, total, reduction, shape)

    wrong = partial(loss, reduce=undivided)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing, normalizer)


def normalizer_of_one_means_not_given(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """A normalizer of 1 is taken for a default that somebody has passed on."""
    normalizer = None if normalizer == 1 else normalizer
    return loss(input, target, weight, ignore_index, reduction, label_smoothing, normalizer)


def normalizer_counts_samples(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """The normalizer is taken for a number of samples, and multiplied by their length."""
    if normalizer is not None and target.dim() > 1:
        normalizer = normalizer * target[0].numel()
    return loss(input, target, weight, ignore_index, reduction, label_smoothing, normalizer)


def micro_batches_count_by_their_length(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """A micro-batch has the say of its length, however much of it is ignored, as when means are averaged.

    Link: https://github.com/huggingface/transformers/pull/34191
    """

    def by_length(total, given):
        return total if given is None else given * total / max(target.numel(), 1)

    wrong = partial(loss, divisor=by_length)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing, normalizer)
