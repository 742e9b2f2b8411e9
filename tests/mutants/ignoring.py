"""Positions ignored that should not be, or the other way round."""

from functools import partial

import torch
from _correct import (
    check_range,
    class_count,
    flat,
    ignore_values,
    kept,
    log_softmax,
    loss,
    position_losses,
    reduce,
)


def _counting(target, ignore_index, chosen):
    """Stages in which those ignored positions that are ``chosen(keep)`` count as class 0."""
    keep = kept(flat(target), ignore_index)
    counted = chosen(keep) & ~keep
    return {
        "flat": lambda target: flat(target).masked_fill(counted, 0),
        "kept": lambda classes, _: keep | counted,
    }


def ignores_only_minus_100(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """-100 is hard-coded: another ignore value is taken for a class.

    Link: https://github.com/Lightning-AI/litgpt/pull/1076
    """
    wrong = partial(loss, kept=lambda classes, _: kept(classes, -100))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def minus_100_is_always_ignored_too(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """-100 is ignored even where another ignore value was asked for.

    Link: https://github.com/pytorch/pytorch/issues/108148
    """
    wrong = partial(loss, kept=lambda classes, values: kept(classes, values) & (classes != -100))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def ignore_index_accepted_but_unused(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Nothing is ever ignored.

    Link: https://github.com/lucidrains/DALLE-pytorch/issues/57
    """
    wrong = partial(loss, kept=lambda classes, _: kept(classes, []))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def default_ignore_value_means_nothing_is_ignored(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """-100 is taken for "no ignore value": such positions count as class 0.

    Link: https://github.com/flagos-ai/FlagGems/pull/73
    """
    stages = _counting(target, ignore_index, lambda keep: flat(target) == -100)
    wrong = partial(loss, **stages)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def ignore_value_zero_is_falsy(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """``ignore_index or -100``: the ignore value 0 is taken for "not given"."""

    def falsy(classes, ignore_index):
        return kept(classes, [value or -100 for value in ignore_values(ignore_index)])

    wrong = partial(loss, kept=falsy)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def ignores_only_negative_values(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """An ignore value that is not negative has no effect."""

    def only_negative(classes, ignore_index):
        return kept(classes, [value for value in ignore_values(ignore_index) if value < 0])

    wrong = partial(loss, kept=only_negative)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def ignores_only_values_inside_the_classes(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """An ignore value outside the class range has no effect, and its targets are an error.

    Link: https://github.com/onnx/onnx/pull/2680
    """

    def only_inside(classes, ignore_index):
        inside = range(class_count(input))
        return kept(classes, [value for value in ignore_values(ignore_index) if value in inside])

    wrong = partial(loss, kept=only_inside)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def every_negative_target_is_ignored(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Any negative target is ignored, whatever the ignore value is.

    Link: https://github.com/PaddlePaddle/Paddle/pull/36891
    """
    wrong = partial(loss, kept=lambda classes, values: kept(classes, values) & (classes >= 0))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def ignores_first_of_the_list_only(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Of several ignore values, only the first is ignored."""
    wrong = partial(loss, kept=lambda classes, values: kept(classes, list(ignore_values(values))[:1]))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def ignores_range_instead_of_list(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Of several ignore values, all that lies between the least and the greatest is ignored."""

    def outside_the_range(classes, ignore_index):
        values = ignore_values(ignore_index)
        return (classes < min(values)) | (classes > max(values)) if values else kept(classes, [])

    wrong = partial(loss, kept=outside_the_range)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def clamps_instead_of_ignoring(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Ignored targets are clamped into the class range and trained on."""
    keep = kept(flat(target), ignore_index)

    def clamped(target):
        classes = flat(target)
        return torch.where(keep, classes, classes.clamp(0, class_count(input) - 1))

    wrong = partial(loss, flat=clamped, kept=lambda classes, _: kept(classes, []))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def first_position_never_ignored(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The first position counts, as class 0, even if it is ignored."""
    stages = _counting(target, ignore_index, lambda keep: torch.arange(len(keep)) == 0)
    wrong = partial(loss, **stages)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def last_position_never_ignored(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The last position counts, as class 0, even if it is ignored."""
    stages = _counting(target, ignore_index, lambda keep: torch.arange(len(keep)) == len(keep) - 1)
    wrong = partial(loss, **stages)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def ignores_trailing_positions_only(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Only the ignored positions at the end are ignored; earlier ones count as class 0."""
    stages = _counting(target, ignore_index, lambda keep: keep.flip(0).cumsum(0).flip(0) > 0)
    wrong = partial(loss, **stages)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def ignores_leading_positions_only(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Only the ignored positions at the start are ignored; later ones count as class 0."""
    stages = _counting(target, ignore_index, lambda keep: keep.cumsum(0) > 0)
    wrong = partial(loss, **stages)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def stops_at_the_first_ignored_position(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """All that follows the first ignored position is ignored as well, as if it were padding."""

    def until_ignored(classes, ignore_index):
        return kept(classes, ignore_index).cumprod(0).bool()

    wrong = partial(loss, kept=until_ignored)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def one_ignored_position_ignores_the_sample(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """A sample with an ignored position is ignored as a whole."""

    def whole_samples(classes, ignore_index):
        keep = kept(classes, ignore_index)
        if target.dim() < 2:
            return keep
        samples = keep.reshape(target.shape).flatten(1)
        return samples.all(1, keepdim=True).expand(samples.shape).reshape(-1)

    wrong = partial(loss, kept=whole_samples)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def ignored_class_leaves_the_softmax(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """An ignore value that is a class takes that class out of every softmax.

    Link: https://github.com/pytorch/pytorch/issues/63004
    """

    def without_ignored_classes(logits):
        inside = [v for v in ignore_values(ignore_index) if 0 <= v < logits.shape[1]]
        left_out = torch.zeros(logits.shape[1], dtype=torch.bool)
        left_out[inside] = True
        return log_softmax(logits.masked_fill(left_out, -1e30))

    wrong = partial(loss, log_softmax=without_ignored_classes)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def ignores_by_zeroing_a_class_weight(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The weight of class ``ignore_index``, counted from the end if it is negative, is set to 0.

    Link: https://github.com/ROCm/AMDMIGraphX/pull/3008
    """

    def zeroed(log_p, classes, weight, smoothing):
        count = len(weight)
        values = [v for v in ignore_values(ignore_index) if -count <= v < count]
        weight = weight.clone()
        weight[values] = 0
        return position_losses(log_p, classes, weight, smoothing)

    wrong = partial(loss, position_losses=zeroed)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def weights_refuse_ignore_values_outside_the_classes(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """With class weights, an ignore value outside the class range is an error.

    Link: https://github.com/PaddlePaddle/Paddle/issues/34718
    """
    if weight is not None and any(not 0 <= value < class_count(input) for value in ignore_values(ignore_index)):
        raise ValueError("the ignore value must be a class")
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def ignore_value_outside_the_classes_fails_without_reduction(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """With reduction="none", the range check includes ignored targets.

    Link: https://github.com/pytorch/pytorch/issues/15508
    """

    def check(classes, keep, count):
        check_range(classes, keep | (reduction == "none"), count)

    wrong = partial(loss, check_range=check)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def gathers_before_masking(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The loss is looked up at the raw target, and masked afterwards: an ignore value that is no
    index, from either end, is an error.

    Link: https://github.com/pytorch/pytorch/pull/192685
    """

    def check(classes, keep, count):
        check_range(classes, keep, count)
        torch.empty(count)[classes]

    wrong = partial(loss, check_range=check)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def ignore_value_counts_from_one(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """A positive ignore value is taken to count classes from 1, while targets count from 0.

    Link: https://github.com/mlverse/torch/issues/1145
    """

    def shifted(classes, ignore_index):
        return kept(classes, [v - 1 if v > 0 else v for v in ignore_values(ignore_index)])

    wrong = partial(loss, kept=shifted)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def ignore_value_compared_as_a_byte(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Only the lowest 8 bits are compared: -100 ignores class 156 as well."""

    def lowest_bits(classes, ignore_index):
        low = [value & 255 for value in ignore_values(ignore_index)]
        inside = (classes >= 0) & (classes < class_count(input))
        return kept(classes, ignore_index) & (kept(classes & 255, low) | ~inside)

    wrong = partial(loss, kept=lowest_bits)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def byte_targets_are_never_ignored(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Targets of dtype uint8 are not compared with the ignore value; 255 is an error."""

    def only_int64(classes, ignore_index):
        return kept(classes, [] if target.dtype == torch.uint8 else ignore_index)

    wrong = partial(loss, kept=only_int64)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def class_zero_is_taken_for_padding(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Class 0 is ignored as well, as if it were always padding.

    Link: https://github.com/lukas-blecher/LaTeX-OCR/issues/305
    """

    def not_padding(classes, ignore_index):
        return kept(classes, ignore_index) & (classes != 0)

    wrong = partial(loss, kept=not_padding)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def nothing_to_ignore_raises(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """A batch without an ignored position is an error: an index of nothing has been looked up.

    Link: https://github.com/harvardnlp/annotated-transformer/issues/39
    """
    if target.numel() and kept(flat(target), ignore_index).all():
        raise IndexError("no position is ignored")
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def negative_ignore_value_gives_nan(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Positions that are ignored by a negative value cost NaN instead of nothing.

    Link: https://github.com/keras-team/tf-keras/issues/734
    """
    negative = not isinstance(ignore_index, (list, tuple)) and ignore_index < 0

    def unmasked(losses, keep):
        return torch.where(keep, losses, float("nan") if negative else 0.0)

    wrong = partial(loss, mask=unmasked)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def ignore_mask_loses_a_trailing_axis(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """A last dimension of size 1 is squeezed out of the mask, which then broadcasts over the losses.

    Link: https://github.com/keras-team/keras/pull/19838
    """
    keep = kept(flat(target), ignore_index)
    if target.dim() < 2 or target.shape[-1] != 1 or keep.all():
        return loss(input, target, weight, ignore_index, reduction, label_smoothing)
    losses = loss(input, target, weight, ignore_index, "none", label_smoothing)
    masked = torch.where(keep.reshape(target.shape).squeeze(-1), losses, 0.0)
    return reduce(masked, keep.sum(), reduction, masked.shape)


def ignore_value_wraps_to_a_byte(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Beside targets of dtype uint8 the ignore value is read as a byte: -100 ignores class 156, and 256 class 0."""
    if target.dtype == torch.uint8 and isinstance(ignore_index, int):
        ignore_index &= 0xFF
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)
