"""Bad input that gives a number instead of an error; on good input, all of these are right."""

from functools import partial

import torch
from _correct import (
    check_options,
    class_count,
    flat,
    kept,
    loss,
    mask,
    position_losses,
    to_rows,
)


def _expected_shape(input):
    return input.shape[:1] + input.shape[2:] if input.dim() > 1 else torch.Size([])


def _out_of_range(input, target, ignore_index):
    classes = flat(target)
    outside = (classes < 0) | (classes >= class_count(input))
    return outside & kept(classes, ignore_index)


def _replacing(input, target, ignore_index, change):
    """Stages in which targets that are out of range become ``change(classes)``."""
    keep = kept(flat(target), ignore_index)
    bad = _out_of_range(input, target, ignore_index)

    def replaced(target):
        classes = flat(target)
        return torch.where(bad, change(classes), classes)

    return {"flat": replaced, "kept": lambda classes, _: keep}


def _wrapping(input, target, ignore_index):
    """Stages in which a target that is out of range reads some other logit."""
    count = class_count(input)
    return _replacing(input, target, ignore_index, lambda classes: classes % count)


def out_of_range_targets_give_zero(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """A target out of range is ignored.

    Link: https://github.com/pytorch/pytorch/issues/108148
    """

    def in_range(classes, ignore_index):
        return kept(classes, ignore_index) & ~_out_of_range(input, target, ignore_index)

    wrong = partial(loss, kept=in_range)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def out_of_range_targets_are_clamped(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """A target out of range becomes the nearest class."""
    last = class_count(input) - 1
    stages = _replacing(input, target, ignore_index, lambda classes: classes.clamp(0, last))
    wrong = partial(loss, **stages)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def negative_targets_wrap_around(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """A negative target counts from the last class."""
    count = class_count(input)

    def wrapped(classes):
        return torch.where(classes < 0, classes + count, classes)

    wrong = partial(loss, **_replacing(input, target, ignore_index, wrapped))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def target_equal_to_the_class_count_is_accepted(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The range check is off by one: target C passes, as class C - 1."""
    count = class_count(input)

    def one_less(classes):
        return torch.where(classes == count, count - 1, classes)

    wrong = partial(loss, **_replacing(input, target, ignore_index, one_less))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def out_of_range_target_has_logit_zero(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """A target out of range is found in no tile, and its logit counts as 0.

    Link: https://github.com/axolotl-ai-cloud/axolotl/pull/3767
    """
    bad = _out_of_range(input, target, ignore_index)
    stages = _replacing(input, target, ignore_index, torch.zeros_like)

    def without_logit(log_p, classes, weight, smoothing):
        losses = position_losses(log_p, classes, weight, smoothing)
        return losses + mask((1 - smoothing) * weight[0] * to_rows(input)[:, 0], bad)

    wrong = partial(loss, **stages, position_losses=without_logit)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def out_of_range_target_costs_1e20(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """A target out of range costs 1e20.

    Link: https://github.com/PaddlePaddle/Paddle/issues/10945
    """
    bad = _out_of_range(input, target, ignore_index)
    stages = _replacing(input, target, ignore_index, torch.zeros_like)

    def costly(*parts):
        return position_losses(*parts).masked_fill(bad, 1e20)

    wrong = partial(loss, **stages, position_losses=costly)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def out_of_range_target_costs_nan(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """A target out of range costs NaN instead of being an error.

    Link: https://github.com/tensorflow/tensorflow/issues/8484
    """
    bad = _out_of_range(input, target, ignore_index)
    stages = _replacing(input, target, ignore_index, torch.zeros_like)

    def poisoned(*parts):
        return position_losses(*parts).masked_fill(bad, float("nan"))

    wrong = partial(loss, **stages, position_losses=poisoned)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def range_is_unchecked_without_reduction(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """With reduction="none", a target out of range reads some other logit.

    Link: https://github.com/pytorch/pytorch/issues/12670
    """
    if reduction != "none":
        return loss(input, target, weight, ignore_index, reduction, label_smoothing)
    wrong = partial(loss, **_wrapping(input, target, ignore_index))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def range_is_unchecked_for_images(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """With several position dimensions, a target out of range reads some other logit.

    Link: https://github.com/pytorch/pytorch/issues/49882
    """
    if target.dim() < 2:
        return loss(input, target, weight, ignore_index, reduction, label_smoothing)
    wrong = partial(loss, **_wrapping(input, target, ignore_index))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def range_is_checked_at_the_first_position_only(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """A target out of range reads some other logit, unless it is the first."""
    if _out_of_range(input, target, ignore_index)[:1].any():
        return loss(input, target, weight, ignore_index, reduction, label_smoothing)
    wrong = partial(loss, **_wrapping(input, target, ignore_index))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def float_targets_are_cast(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Floating point numbers for classes are rounded towards zero."""
    target = target.long() if target.is_floating_point() else target
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def smoothing_is_clamped(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """A label_smoothing outside [0, 1] becomes 0 or 1."""
    label_smoothing = min(max(label_smoothing, 0.0), 1.0)
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def smoothing_is_not_checked(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """A label_smoothing outside [0, 1] is used as it is."""
    wrong = partial(loss, check_options=lambda reduction, _: check_options(reduction, 0.0))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def unknown_reduction_is_the_mean(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Any other reduction is taken for "mean"."""
    reduction = reduction if reduction in ("none", "sum") else "mean"
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def short_targets_are_broadcast(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Targets of another shape are broadcast to the one expected, where that is possible."""
    target = torch.broadcast_to(target, _expected_shape(input))
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def long_batches_are_truncated(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """If there are more targets than logits, or the other way round, the rest is left out."""
    if input.dim() > 1 and target.dim() > 0:
        count = min(len(input), len(target))
        input, target = input[:count], target[:count]
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def classes_last_is_accepted(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Logits of shape (N, L, C) are accepted for targets of shape (N, L)."""
    if target.shape != _expected_shape(input) and target.shape == input.shape[:-1]:
        input = input.movedim(-1, 1)
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def any_target_shape_is_flattened(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Targets of any shape are accepted if there are as many as needed."""
    expected = _expected_shape(input)
    if target.numel() == expected.numel():
        target = target.reshape(expected)
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def trailing_target_dimension_is_squeezed(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Targets with one more dimension, of size 1, are accepted.

    Link: https://github.com/keras-team/keras/pull/19838
    """
    if target.shape == (*_expected_shape(input), 1):
        target = target.squeeze(-1)
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def one_hot_targets_are_accepted(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Integer targets of the shape of the logits are taken for one-hot vectors.

    Link: https://github.com/apache/mxnet/issues/6202
    """
    if target.shape == input.shape and input.dim() > 1 and not target.is_floating_point():
        target = target.argmax(1)
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def long_weights_are_cut(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Of too many class weights, the first are used."""
    weight = weight if weight is None else weight[: class_count(input)]
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def single_weight_is_expanded(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """One class weight serves for all classes."""
    if weight is not None and weight.numel() == 1:
        weight = weight.expand(class_count(input))
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def integer_logits_are_cast(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Integer logits are taken for float32."""
    input = input if input.is_floating_point() else input.float()
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def unknown_options_are_swallowed(
    input, target, *, weight=None, ignored_index=-100, reduction="mean", label_smoothing=0.0, **others
):
    """The ignore value has another name here, and what is passed as ignore_index is lost.

    Link: https://github.com/allenai/OLMo/pull/580
    """
    return loss(input, target, weight, ignored_index, reduction, label_smoothing)
