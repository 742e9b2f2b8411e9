"""Class weights gone wrong; without weights, all of these are right."""

from functools import partial

import torch
from _correct import class_weights, denominator, loss, position_losses, with_value


def _weights(change):
    """Class weights that went through ``change``, if there are any."""

    def changed(weight, logits):
        right = class_weights(weight, logits)
        return right if weight is None else change(right)

    return changed


def weights_accepted_but_unused(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Weights have no effect."""
    wrong = partial(loss, class_weights=_weights(torch.ones_like))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def weights_applied_twice(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The loss of a position is multiplied by its weight twice."""

    def losses(log_p, classes, weight, smoothing):
        return position_losses(log_p, classes, weight * weight, smoothing)

    wrong = partial(loss, position_losses=losses)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def weights_missing_from_the_gradient(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The loss is weighted, but its gradient is not."""

    def losses(log_p, classes, weight, smoothing):
        plain = position_losses(log_p, classes, torch.ones_like(weight), smoothing)
        return with_value(plain, position_losses(log_p, classes, weight, smoothing))

    wrong = partial(loss, position_losses=losses)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def weights_of_the_predicted_class(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """A position has the weight of its largest logit instead of its target."""

    def losses(log_p, classes, weight, smoothing):
        right = position_losses(log_p, classes, weight, smoothing)
        hard = position_losses(log_p, classes, torch.ones_like(weight), 0)
        predicted = log_p.argmax(1)
        return right + (1 - smoothing) * (weight[predicted] - weight[classes]) * hard

    wrong = partial(loss, position_losses=losses)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def weights_scaled_to_sum_to_one(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Weights are divided by their sum, which only the mean does not notice."""
    wrong = partial(loss, class_weights=_weights(lambda weight: weight / weight.sum()))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def negative_weights_become_zero(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Weights are clamped to be positive."""
    wrong = partial(loss, class_weights=_weights(lambda weight: weight.clamp(min=0)))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def weight_zero_means_not_given(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """A class of weight 0 gets weight 1."""
    wrong = partial(loss, class_weights=_weights(lambda weight: weight.where(weight != 0, 1)))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def weights_one_class_off(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Every class has the weight of the next one."""
    wrong = partial(loss, class_weights=_weights(lambda weight: weight.roll(-1)))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def weights_rounded_to_bfloat16(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Weights have the accuracy of bfloat16."""
    wrong = partial(loss, class_weights=_weights(lambda weight: weight.bfloat16().to(weight.dtype)))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def weights_lost_without_reduction(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """With reduction="none", weights have no effect."""
    if reduction == "none":
        wrong = partial(loss, class_weights=_weights(torch.ones_like))
        return wrong(input, target, weight, ignore_index, reduction, label_smoothing)
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def weights_lost_in_the_denominator_of_smoothing(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """With smoothing, the weighted mean is divided by the number of kept positions."""

    def total(classes, keep, weight):
        return keep.sum() if label_smoothing > 0 else denominator(classes, keep, weight)

    wrong = partial(loss, denominator=total)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)
