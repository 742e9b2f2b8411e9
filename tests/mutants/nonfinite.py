"""Infinities and NaN in the logits."""

from functools import partial

import torch
from _correct import (
    claims,
    log_softmax_with_backward,
    loss,
    mask,
    position_losses,
    to_rows,
)


def _as_they_are(logits, keep):
    return logits


def _multiplied(losses, keep):
    return losses * keep


@claims("double_backward")
def nan_leaks_into_gradient(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Ignored losses are masked, ignored logits are not: their gradient is 0 * NaN.

    Link: https://github.com/pytorch/pytorch/issues/11551
    """
    wrong = partial(loss, neutral=_as_they_are)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def mask_is_multiplied_into_the_loss(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Ignored losses are multiplied by zero, and NaN stays NaN.

    Link: https://github.com/flashlight/flashlight/pull/153
    """
    wrong = partial(loss, neutral=_as_they_are, mask=_multiplied)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def nan_leaks_through_smoothing(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """With smoothing, ignored losses are multiplied by zero, and NaN stays NaN.

    Link: https://github.com/sooftware/kospeech/issues/37
    """
    if label_smoothing == 0:
        return loss(input, target, weight, ignore_index, reduction, label_smoothing)
    wrong = partial(loss, neutral=_as_they_are, mask=_multiplied)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def nan_at_ignored_positions_of_none(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Without reduction, an ignored position that holds a NaN has the loss NaN instead of 0.

    Link: https://github.com/pytorch/pytorch/issues/20406
    """
    losses = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    if reduction != "none":
        return losses
    broken = to_rows(input).isnan().any(1).reshape(target.shape)
    return losses.masked_fill(broken, float("nan"))


def one_hot_times_log_probability(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The target is multiplied in as a one-hot vector: a class at -inf gives 0 * inf.

    Link: https://github.com/google-deepmind/optax/issues/896
    """

    def one_hot(log_p, classes, weight, smoothing):
        share = torch.nn.functional.one_hot(classes, len(weight)).to(log_p.dtype)
        share = (1 - smoothing) * share + smoothing / len(weight)
        return -(weight * share * log_p).sum(1)

    wrong = partial(loss, position_losses=one_hot)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def smoothing_is_always_evaluated(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Smoothing 0 multiplies the uniform part by 0 instead of leaving it out.

    Link: https://github.com/facebookresearch/pytext/pull/1698
    """

    def both_parts(log_p, classes, weight, smoothing):
        target_part = position_losses(log_p, classes, weight, 0)
        uniform_part = position_losses(log_p, classes, weight, 1)
        return (1 - smoothing) * target_part + smoothing * uniform_part

    wrong = partial(loss, position_losses=both_parts)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def infinite_smoothing_terms_are_dropped(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Classes at -inf are left out of the smoothing, which should be infinite with them."""

    def finite_terms(log_p, classes, weight, smoothing):
        target_part = position_losses(log_p, classes, weight, 0)
        uniform_part = position_losses(log_p.masked_fill(log_p.isinf(), 0), classes, weight, 1)
        return (1 - smoothing) * target_part + smoothing * uniform_part

    wrong = partial(loss, position_losses=finite_terms)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def infinite_loss_becomes_a_large_number(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """A target at -inf costs the largest finite number."""

    def finite(log_p, classes, weight, smoothing):
        losses = position_losses(log_p, classes, weight, smoothing)
        return losses.clamp(max=torch.finfo(input.dtype).max)

    wrong = partial(loss, position_losses=finite)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def infinite_losses_are_dropped(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """A target at -inf costs nothing."""

    def dropped(log_p, classes, weight, smoothing):
        losses = position_losses(log_p, classes, weight, smoothing)
        return torch.where(losses == float("inf"), 0.0, losses)

    wrong = partial(loss, position_losses=dropped)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def minus_inf_becomes_minus_ten_thousand(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Logits of -inf are replaced by -10000, so that such a target costs a finite number."""

    def finite(input):
        rows = to_rows(input)
        return rows.masked_fill(rows == float("-inf"), -1e4)

    wrong = partial(loss, to_rows=finite)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def target_at_minus_inf_has_a_nan_gradient(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The gradient of a target at -inf goes through log(0)."""

    def through_log(gradient, p):
        right = gradient - p * gradient.sum(1, keepdim=True)
        return torch.where((p == 0) & (gradient != 0), float("nan"), right)

    wrong = partial(loss, log_softmax=log_softmax_with_backward(through_log))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def class_at_minus_inf_has_a_nan_gradient(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The gradient of a class at -inf is 0 * inf, whether it is the target or not."""

    def times_log_p(gradient, p):
        return gradient - p * gradient.sum(1, keepdim=True) + 0 * p.log()

    wrong = partial(loss, log_softmax=log_softmax_with_backward(times_log_p))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def rows_with_an_infinity_are_skipped(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """A position with -inf at any class adds nothing to the loss."""

    def skipped(losses, keep):
        finite = to_rows(input.detach()).isfinite().all(1)
        return mask(losses, keep & finite)

    wrong = partial(loss, mask=skipped)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def nan_at_a_kept_position_is_hidden(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """NaN logits are replaced by zeros at kept positions, too, where they should give NaN."""

    def hidden(input):
        rows = to_rows(input)
        return rows.masked_fill(rows.isnan(), 0)

    wrong = partial(loss, to_rows=hidden)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def refuses_nan_at_ignored_positions(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """NaN logits are an error, even where they are ignored."""
    if input.isnan().any():
        raise ValueError("the logits hold NaN")
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def maximum_includes_ignored_rows(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """One maximum over all logits, ignored ones included, is subtracted before exponentials."""
    top = input.detach().amax() if input.numel() else 0

    def shifted(logits):
        shifted = logits - top.to(logits.dtype)
        return shifted - shifted.exp().sum(1, keepdim=True).log()

    wrong = partial(loss, log_softmax=shifted)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)
