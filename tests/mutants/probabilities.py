"""Class probabilities as targets that are read, scaled or averaged wrongly."""

from functools import partial

import torch
from _correct import claims, class_count, log_softmax, read_as_contiguous, to_rows, with_value
from _probabilities import loss, losses_of, positions, smoothed, terms


def probabilities_become_their_largest_class(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Of the probabilities of a position, only the largest counts, as if it were 1."""

    def largest(target):
        shares = to_rows(target)
        return torch.nn.functional.one_hot(shares.argmax(1), shares.shape[1]).to(shares.dtype)

    wrong = partial(loss, shares_of=largest)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def probabilities_are_scaled_to_add_up_to_one(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The probabilities of a position are divided by their sum."""

    def scaled(target):
        shares = to_rows(target)
        total = shares.sum(1, keepdim=True)
        return shares / torch.where(total == 0, 1.0, total)

    wrong = partial(loss, shares_of=scaled)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def probabilities_are_taken_to_add_up_to_one(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The gradient is the softmax less the probabilities, even where these are all zero.

    Link: https://github.com/tensorflow/tensorflow/issues/2327
    """

    def losses(logits, shares, weight, smoothing):
        rest = (weight * smoothed(shares, smoothing)).sum(1, keepdim=True) - weight.mean()
        right = losses_of(logits, shares, weight, smoothing)
        return with_value(right - (rest * torch.logsumexp(logits, 1, keepdim=True)).sum(1), right)

    wrong = partial(loss, losses_of=losses)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def probability_zero_times_infinity(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """A class at -inf costs 0 * inf, even if its probability is 0.

    Link: https://github.com/OpenBMB/ModelCenter/issues/14
    """
    wrong = partial(loss, losses_of=partial(losses_of, terms=lambda shares, weight, log_p: shares * weight * log_p))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def infinite_terms_of_probabilities_are_dropped(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """A class at -inf costs nothing, whatever its probability is."""

    def finite_terms(shares, weight, log_p):
        return terms(torch.where(log_p.isinf(), 0.0, shares), weight, log_p)

    wrong = partial(loss, losses_of=partial(losses_of, terms=finite_terms))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def log_probabilities_clipped_at_1e_7(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """With probabilities as targets, those of the softmax are kept above 1e-7."""

    def clipped(logits):
        return torch.softmax(logits, 1).clamp(min=1e-7).log()

    wrong = partial(loss, losses_of=partial(losses_of, log_softmax=clipped))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def divergence_instead_of_cross_entropy(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The entropy of the probabilities is subtracted, which no gradient notices."""

    def relative(shares, weight, log_p):
        return terms(shares, weight, log_p - torch.where(shares == 0, 0.0, shares.clamp(min=1e-38).log()))

    wrong = partial(loss, losses_of=partial(losses_of, terms=relative))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def weighted_mean_of_probabilities_divides_by_the_weights(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The weighted mean over probabilities divides by their weights, as the one over class indices does.

    Link: https://github.com/pytorch/pytorch/pull/187053
    """
    wrong = partial(loss, count=lambda shares, weight: (shares @ weight).sum())
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def mean_of_probabilities_divides_by_their_sum(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The mean divides by the sum of all probabilities instead of the number of positions."""
    wrong = partial(loss, count=lambda shares, weight: shares.sum())
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def mean_of_probabilities_divides_by_all_logits(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The mean is taken over the classes as well, as in torch's kl_div."""
    wrong = partial(loss, count=lambda shares, weight: shares.new_tensor(shares.numel()))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def mean_of_probabilities_divides_by_the_samples(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The mean divides by the number of samples, however many positions they have."""
    samples = input.shape[0] if input.dim() > 1 else 1
    wrong = partial(loss, count=lambda shares, weight: shares.new_tensor(samples))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def positions_without_probability_leave_the_mean(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """A position whose probabilities are all zero is not counted."""
    wrong = partial(loss, count=lambda shares, weight: shares.any(1).sum())
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def probabilities_have_the_weight_of_the_largest(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """All classes of a position have the weight of its most probable one."""

    def losses(logits, shares, weight, smoothing):
        plain = losses_of(logits, shares, torch.ones_like(weight), smoothing)
        return weight[shares.argmax(1)] * plain

    wrong = partial(loss, losses_of=losses)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def smoothing_is_lost_with_probabilities(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Probabilities are not smoothed."""
    wrong = partial(loss, losses_of=partial(losses_of, smoothed=lambda shares, smoothing: shares))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def smoothing_of_probabilities_is_not_weighted(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The smoothing mass has no class weights, only the probabilities have.

    Link: https://github.com/pytorch/pytorch/issues/104776
    """

    def losses(logits, shares, weight, smoothing):
        uniform = -log_softmax(logits).mean(1)
        return (1 - smoothing) * losses_of(logits, shares, weight, 0) + (smoothing * uniform if smoothing else 0)

    wrong = partial(loss, losses_of=losses)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def probabilities_read_as_contiguous(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The strides of the probabilities are taken to be those of a contiguous tensor."""
    wrong = partial(loss, shares_of=lambda target: to_rows(read_as_contiguous(target)))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def probabilities_reshaped_as_they_lie(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Probabilities of shape (N, C, d1, ...) are reshaped to rows of C as they lie."""

    def as_they_lie(target):
        return target.reshape(-1, class_count(target)).to(to_rows(target).dtype)

    wrong = partial(loss, shares_of=as_they_lie)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def probabilities_rounded_to_bfloat16(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Probabilities have the accuracy of bfloat16."""
    wrong = partial(loss, shares_of=lambda target: to_rows(target.bfloat16().to(target.dtype)))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def probabilities_are_smoothed_in_place(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Smoothing writes to the caller's probabilities."""
    if label_smoothing and target.shape == input.shape and target.is_floating_point():
        target.mul_(1 - label_smoothing).add_(label_smoothing / class_count(input))
        label_smoothing = 0.0
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def probabilities_without_reduction_are_added_up(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """With probabilities as targets, reduction="none" gives the sum over all positions."""
    if target.is_floating_point() and reduction == "none":
        reduction = "sum"
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


@claims("class_probabilities")
def probabilities_of_no_position_raise(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Probabilities of no position at all are an error."""
    if target.is_floating_point() and not positions(input).numel():
        raise ValueError("there are no probabilities")
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def logits_are_cut_to_the_probabilities(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Where there are fewer probabilities than logits, the other logits are left out."""
    if target.is_floating_point() and target.dim() == input.dim():
        input = input[tuple(slice(size) for size in target.shape)]
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def ignore_value_is_dropped_with_probabilities(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """An ignore value has no effect, and is no error, where targets are probabilities.

    Link: https://github.com/apache/mxnet/issues/6202
    """
    wrong = partial(loss, check_ignore_index=lambda ignore_index: None)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def zero_with_probabilities_if_no_gradient_is_needed(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """With probabilities as targets, the loss is 0 where the logits need no gradient."""
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    return result * 0 if target.is_floating_point() and not result.requires_grad else result
