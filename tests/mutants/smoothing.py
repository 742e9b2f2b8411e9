"""Label smoothing gone wrong; without smoothing, all of these are right."""

from functools import partial

import torch
from _correct import (
    check_options,
    flat,
    ignore_values,
    kept,
    loss,
    mask,
    position_losses,
    with_value,
)


def _as_they_are(losses, keep):
    return losses


def _parts(log_p, classes, weight):
    """The loss of the hard target, and of the uniform distribution over all classes."""
    return position_losses(log_p, classes, weight, 0), position_losses(log_p, classes, weight, 1)


def smoothing_counts_ignored_positions(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The uniform part of the loss is that of all positions, ignored ones included.

    Link: https://github.com/pytorch/pytorch/issues/73205
    """
    keep = kept(flat(target), ignore_index)

    def losses(log_p, classes, weight, smoothing):
        hard, uniform = _parts(log_p, classes, weight)
        return (1 - smoothing) * mask(hard, keep) + smoothing * uniform

    if label_smoothing == 0:
        return loss(input, target, weight, ignore_index, reduction, label_smoothing)
    wrong = partial(loss, neutral=_as_they_are, position_losses=losses, mask=_as_they_are)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def smoothing_disables_ignoring(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """With smoothing, ignored positions count as class 0.

    Link: https://github.com/k-tahiro/bert-summarizer/pull/41
    """
    if label_smoothing == 0:
        return loss(input, target, weight, ignore_index, reduction, label_smoothing)
    wrong = partial(loss, neutral=_as_they_are, mask=_as_they_are)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def ignore_mask_is_inverted_when_smoothing(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """With smoothing, it is the kept positions that cost nothing.

    Link: https://github.com/awslabs/sockeye/issues/200
    """
    if label_smoothing == 0:
        return loss(input, target, weight, ignore_index, reduction, label_smoothing)
    wrong = partial(loss, neutral=_as_they_are, mask=lambda losses, keep: mask(losses, ~keep))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def weighted_smoothing_gathers_before_masking(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """With weights and smoothing, the mean looks up the weight of ignored targets, too.

    Link: https://github.com/pytorch/pytorch/issues/91383
    """
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    if weight is not None and label_smoothing > 0 and reduction == "mean":
        weight.gather(0, flat(target))
    return result


def smoothing_accepted_but_unused(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Smoothing has no effect.

    Link: https://github.com/linkedin/Liger-Kernel/issues/243
    """

    def hard(log_p, classes, weight, smoothing):
        return position_losses(log_p, classes, weight, 0)

    wrong = partial(loss, position_losses=hard)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def smoothing_goes_to_the_other_classes(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The smoothing mass is shared among the C - 1 other classes instead of all C."""

    def losses(log_p, classes, weight, smoothing):
        count = len(weight)
        if smoothing == 0 or count == 1:
            return position_losses(log_p, classes, weight, smoothing)
        hard, uniform = _parts(log_p, classes, weight)
        return (1 - smoothing) * hard + smoothing * (uniform * count - hard) / (count - 1)

    wrong = partial(loss, position_losses=losses)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def smoothing_leaves_the_target_at_one(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The uniform part is added, but the share of the target stays 1."""

    def losses(log_p, classes, weight, smoothing):
        if smoothing == 0:
            return position_losses(log_p, classes, weight, smoothing)
        hard, uniform = _parts(log_p, classes, weight)
        return hard + smoothing * uniform

    wrong = partial(loss, position_losses=losses)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def smoothing_is_not_divided_by_the_classes(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Every class gets the whole smoothing mass instead of its share."""

    def losses(log_p, classes, weight, smoothing):
        if smoothing == 0:
            return position_losses(log_p, classes, weight, smoothing)
        hard, uniform = _parts(log_p, classes, weight)
        return (1 - smoothing) * hard + smoothing * uniform * len(weight)

    wrong = partial(loss, position_losses=losses)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def smoothing_divides_by_half_the_classes(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The smoothing mass is shared among half of the classes, as on one of two shards.

    Link: https://github.com/NVIDIA/Megatron-LM/issues/737
    """

    def losses(log_p, classes, weight, smoothing):
        if smoothing == 0:
            return position_losses(log_p, classes, weight, smoothing)
        half = len(weight) // 2 or 1
        hard, uniform = position_losses(log_p, classes, weight, 0), (weight * log_p)[:, :half]
        return (1 - smoothing) * hard - smoothing * uniform.mean(1)

    wrong = partial(loss, position_losses=losses)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def smoothing_leaves_out_the_last_class(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The uniform part is divided by C, but its sum stops before the last class."""

    def losses(log_p, classes, weight, smoothing):
        right = position_losses(log_p, classes, weight, smoothing)
        if smoothing == 0:
            return right
        return right + smoothing * weight[-1] * log_p[:, -1] / len(weight)

    wrong = partial(loss, position_losses=losses)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def smoothing_leaves_out_the_ignored_class(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """An ignore value that is a class gets no share of the smoothing mass."""

    def losses(log_p, classes, weight, smoothing):
        right = position_losses(log_p, classes, weight, smoothing)
        inside = [v for v in ignore_values(ignore_index) if 0 <= v < len(weight)]
        if smoothing == 0 or not inside:
            return right
        return right + smoothing * (weight * log_p)[:, inside].sum(1) / len(weight)

    wrong = partial(loss, position_losses=losses)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def smoothing_is_weighted_by_the_target(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The uniform part has the weight of the target class instead of each class its own.

    Link: https://github.com/pytorch/pytorch/issues/104776
    """

    def losses(log_p, classes, weight, smoothing):
        return weight[classes] * position_losses(log_p, classes, torch.ones_like(weight), smoothing)

    wrong = partial(loss, position_losses=losses)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def smoothing_is_not_weighted(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The uniform part has no class weights.

    Link: https://github.com/linkedin/Liger-Kernel/pull/420
    """

    def losses(log_p, classes, weight, smoothing):
        if smoothing == 0:
            return position_losses(log_p, classes, weight, smoothing)
        hard = position_losses(log_p, classes, weight, 0)
        uniform = position_losses(log_p, classes, torch.ones_like(weight), 1)
        return (1 - smoothing) * hard + smoothing * uniform

    wrong = partial(loss, position_losses=losses)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def smoothing_averages_over_the_weights(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The uniform part is divided by the sum of the class weights instead of their number."""

    def losses(log_p, classes, weight, smoothing):
        if smoothing == 0:
            return position_losses(log_p, classes, weight, smoothing)
        hard, uniform = _parts(log_p, classes, weight)
        return (1 - smoothing) * hard + smoothing * uniform / weight.mean()

    wrong = partial(loss, position_losses=losses)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def smoothing_is_missing_from_the_gradient(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The loss is smoothed, but its gradient is that of the hard target."""

    def losses(log_p, classes, weight, smoothing):
        hard = position_losses(log_p, classes, weight, 0)
        return with_value(hard, position_losses(log_p, classes, weight, smoothing))

    wrong = partial(loss, position_losses=losses)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def smoothing_of_one_is_refused(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """label_smoothing=1.0 is taken to be out of range."""

    def below_one(reduction, label_smoothing):
        check_options(reduction, label_smoothing)
        if label_smoothing == 1:
            raise ValueError("label_smoothing must be below 1")

    wrong = partial(loss, check_options=below_one)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)
