"""Right in exact arithmetic, or nearly, and wrong in floating point."""

from functools import partial

import numpy
import torch
from _correct import (
    denominator,
    log_softmax,
    log_softmax_from,
    log_softmax_with_backward,
    loss,
    position_losses,
    reduce,
    states,
    to_rows,
    truncate,
    with_gradient,
    with_value,
)

HALVES = (torch.bfloat16, torch.float16)


def _added_one_by_one(losses, dtype):
    """The sum of the losses, each partial sum rounded to ``dtype``, with the gradient of a sum."""
    values = losses.detach().to(dtype)
    if dtype == torch.bfloat16:  # which numpy lacks
        total = values.new_zeros(())
        for value in values.unbind():
            total = total + value
    else:
        total = torch.from_numpy(numpy.cumsum(values.numpy()))[-1]
    return with_value(losses.sum(), total.to(losses.dtype))


def _log_of_softmax(log):
    """A log-softmax that takes ``log`` of the probabilities."""
    return lambda logits: log(torch.softmax(logits, dim=1))


def no_maximum_subtracted(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The exponentials of the logits are taken as they are, and overflow or vanish."""
    wrong = partial(loss, log_softmax=log_softmax_from(lambda x: x.exp().sum(1, keepdim=True).log()))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def maximum_over_the_whole_tensor(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The largest of all logits is subtracted from every row, whose own may be far lower."""

    def log_sum_exp(logits):
        top = logits.detach().amax() if logits.numel() else 0
        return top + (logits - top).exp().sum(1, keepdim=True).log()

    wrong = partial(loss, log_softmax=log_softmax_from(log_sum_exp))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def log_after_softmax(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The logarithm of a softmax is infinite where the softmax has vanished.

    Link: https://github.com/NVIDIA/Megatron-LM/pull/5522
    """
    wrong = partial(loss, log_softmax=_log_of_softmax(lambda p: p.log()))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def epsilon_1e_8_in_the_logarithm(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """log(p + 1e-8)."""
    wrong = partial(loss, log_softmax=_log_of_softmax(lambda p: (p + 1e-8).log()))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def epsilon_1e_12_in_the_logarithm(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """log(p + 1e-12)."""
    wrong = partial(loss, log_softmax=_log_of_softmax(lambda p: (p + 1e-12).log()))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def epsilon_1e_7_in_the_logarithm(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """log(p + 1e-7)."""
    wrong = partial(loss, log_softmax=_log_of_softmax(lambda p: (p + 1e-7).log()))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def probabilities_clamped_at_1e_7(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Probabilities are kept 1e-7 away from 0 and 1."""
    wrong = partial(loss, log_softmax=_log_of_softmax(lambda p: p.clamp(1e-7, 1 - 1e-7).log()))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def logits_clamped_at_50(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Logits are clamped to [-50, 50]."""
    wrong = partial(loss, to_rows=lambda input: to_rows(input).clamp(-50, 50))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def logits_clamped_at_100(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Logits are clamped to [-100, 100]."""
    wrong = partial(loss, to_rows=lambda input: to_rows(input).clamp(-100, 100))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def loss_clamped_at_100(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The loss of a position is at most 100, as in torch's binary cross entropy."""

    def clamped(log_p, classes, weight, smoothing):
        return position_losses(log_p.clamp(min=-100), classes, weight, smoothing)

    wrong = partial(loss, position_losses=clamped)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


@states(sums="careful")
def losses_added_one_by_one(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """States careful sums, and adds up the losses of float32 and float64 logits in a running sum.

    Link: https://github.com/pytorch/pytorch/issues/55657
    """

    def running(losses, total, reduction, shape):
        if reduction == "none" or input.dtype in HALVES or not len(losses):
            return reduce(losses, total, reduction, shape)
        result = _added_one_by_one(losses, losses.dtype)
        return result if reduction == "sum" else result / total

    wrong = partial(loss, reduce=running)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def half_precision_losses_added_one_by_one(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The losses of bfloat16 and float16 logits are added up by a running sum of that dtype.

    Link: https://github.com/awslabs/raf/pull/113
    """

    def running(losses, total, reduction, shape):
        if reduction == "none" or input.dtype not in HALVES or not len(losses):
            return reduce(losses, total, reduction, shape)
        result = _added_one_by_one(losses, input.dtype)
        return result if reduction == "sum" else result / total

    wrong = partial(loss, reduce=running)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def mean_divides_a_half_precision_sum(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The mean of half-precision logits is the quotient of two numbers of that dtype, of which the
    sum overflows in float16.

    Link: https://github.com/pytorch/pytorch/issues/29429
    """

    def quotient(losses, total, reduction, shape):
        if reduction != "mean":
            return reduce(losses, total, reduction, shape)
        return losses.sum().to(input.dtype) / total.to(input.dtype)

    wrong = partial(loss, reduce=quotient)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def positions_counted_in_half_precision(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The denominator counts in the dtype of the logits, where adding one to 256 in bfloat16, or
    2048 in float16, changes nothing.

    Link: https://github.com/pytorch/pytorch/issues/61523
    """

    def saturated(classes, keep, weight):
        return denominator(classes, keep, weight).clamp(max=2 / torch.finfo(input.dtype).eps)

    wrong = partial(loss, denominator=saturated)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def exponentials_added_up_in_half_precision(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The exponentials of half-precision logits are added up in that dtype, one class at a time."""

    def log_sum_exp(logits):
        top = logits.detach().amax(1, keepdim=True)
        right = top + (logits - top).exp().sum(1, keepdim=True).log()
        if input.dtype not in HALVES:
            return right
        total = torch.zeros(len(logits), dtype=input.dtype)
        for exponentials in (logits.detach() - top).exp().to(input.dtype).unbind(1):
            total = total + exponentials
        return with_value(right, top + total.to(logits.dtype).log().unsqueeze(1))

    wrong = partial(loss, log_softmax=log_softmax_from(log_sum_exp))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def _log_sum_exp_with(total_of):
    """A log-sum-exp of float32 logits whose exponentials, a NumPy array (P, C), are added up by ``total_of``."""

    def log_sum_exp(logits):
        right = torch.logsumexp(logits, 1, keepdim=True)
        if logits.dtype != torch.float32 or not logits.numel():
            return right
        top = logits.detach().amax(1, keepdim=True)
        total = torch.from_numpy(total_of((logits.detach() - top).exp().numpy()))
        return with_value(right, top + total.log().unsqueeze(1))

    return log_sum_exp


@states(sums="careful")
def exponentials_added_one_by_one(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """States careful sums, and adds up the exponentials in a running sum in float32."""
    running = _log_sum_exp_with(lambda exponentials: numpy.cumsum(exponentials, axis=1)[:, -1])
    wrong = partial(loss, log_softmax=log_softmax_from(running))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


@states(sums="careful")
def exponentials_added_in_16_lanes(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """States careful sums, and adds up the exponentials in 16 running sums in float32, those of a vector register, and then these."""

    def by_lanes(exponentials):
        lanes = [numpy.cumsum(exponentials[:, n::16], axis=1)[:, -1] for n in range(min(16, exponentials.shape[1]))]
        return numpy.sum(lanes, axis=0)

    wrong = partial(loss, log_softmax=log_softmax_from(_log_sum_exp_with(by_lanes)))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def log_sum_exp_rounded_to_half_precision(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The log-sum-exp of half-precision logits is rounded before the target logit is subtracted.

    Link: https://github.com/google-deepmind/optax/issues/1020
    """

    def log_sum_exp(logits):
        right = torch.logsumexp(logits, 1, keepdim=True)
        return with_value(right, right.to(input.dtype).to(logits.dtype))

    wrong = partial(loss, log_softmax=log_softmax_from(log_sum_exp))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def true_class_gradient_rounded_before_subtraction(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """In half precision, the gradient is rounded before the -1 of the true class is added.

    Link: https://github.com/linkedin/Liger-Kernel/pull/1329
    """

    def rounded_twice(gradient, p):
        softmax_part = -p * gradient.sum(1, keepdim=True)
        return softmax_part.to(input.dtype).to(p.dtype) + gradient

    wrong = partial(loss, log_softmax=log_softmax_with_backward(rounded_twice))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def gradient_from_rounded_probabilities(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """In half precision, the gradient is worked out from probabilities kept in that dtype.

    Link: https://github.com/NVIDIA/TransformerEngine/pull/3193
    """

    def from_rounded(gradient, p):
        return gradient - p.to(input.dtype).to(p.dtype) * gradient.sum(1, keepdim=True)

    wrong = partial(loss, log_softmax=log_softmax_with_backward(from_rounded))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def logits_truncated_to_tf32(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Float32 logits lose all but 10 bits of their mantissa."""

    def truncated(input):
        rows = to_rows(input)
        return with_value(rows, truncate(rows, 10)) if input.dtype == torch.float32 else rows

    wrong = partial(loss, to_rows=truncated)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def logits_pass_through_float16(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Logits of every dtype pass through float16, where 70000 is an infinity."""
    wrong = partial(loss, to_rows=lambda input: to_rows(input).half().to(to_rows(input).dtype))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def gradient_from_probabilities_with_short_mantissa(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The gradient is worked out from probabilities with 12 bits of mantissa."""

    def from_truncated(gradient, p):
        return gradient - truncate(p, 12).to(p.dtype) * gradient.sum(1, keepdim=True)

    wrong = partial(loss, log_softmax=log_softmax_with_backward(from_truncated))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def gradient_rounded_to_bfloat16(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The gradient has the accuracy of bfloat16, whatever its dtype is."""

    def rounded(gradient):
        return gradient.bfloat16().to(gradient.dtype)

    wrong = partial(loss, to_rows=lambda input: with_gradient(to_rows(input), rounded))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def float64_computed_in_float32(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Float64 logits are computed with in float32."""
    wrong = partial(loss, to_rows=lambda input: to_rows(input.float()))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def float64_losses_added_in_float32(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The losses of float64 logits are added up in float32."""

    def summed(losses, total, reduction, shape):
        if reduction == "none":
            return reduce(losses, total, reduction, shape)
        return reduce(losses.float(), total, reduction, shape)

    wrong = partial(loss, reduce=summed)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def tiny_probabilities_have_no_gradient(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Probabilities below 1e-12 are taken for zero in the gradient."""

    def flushed(gradient, p):
        return gradient - torch.where(p < 1e-12, 0.0, p) * gradient.sum(1, keepdim=True)

    wrong = partial(loss, log_softmax=log_softmax_with_backward(flushed))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def gradient_clipped_at_one(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """No entry of the gradient is larger than 1."""

    def clipped(gradient):
        return gradient.clamp(-1, 1)

    wrong = partial(loss, to_rows=lambda input: with_gradient(to_rows(input), clipped))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def exponential_with_a_short_constant(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """exp(x) is 2 ** (1.4427 x): five digits of log2(e)."""

    def log_sum_exp(logits):
        top = logits.detach().amax(1, keepdim=True)
        return top + torch.exp2((logits - top) * 1.4427).sum(1, keepdim=True).log()

    wrong = partial(loss, log_softmax=log_softmax_from(log_sum_exp))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def a_small_z_loss_is_added(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """1e-4 times the squared log-sum-exp is added to every loss, without being asked for.

    Link: https://github.com/allenai/OLMo-core/pull/702
    """

    def penalised(logits):
        return log_softmax(logits) - 1e-4 * torch.logsumexp(logits, 1, keepdim=True) ** 2

    wrong = partial(loss, log_softmax=penalised)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def runs_in_bfloat16_under_autocast(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Under autocast the loss is computed in bfloat16 instead of float32.

    Link: https://github.com/pytorch/xla/pull/7992
    """
    if not torch.is_autocast_enabled("cpu"):
        return loss(input, target, weight, ignore_index, reduction, label_smoothing)
    wrong = partial(loss, to_rows=lambda input: to_rows(input.bfloat16()))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def float16_is_not_implemented(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Float16 logits are an error.

    Link: https://github.com/pytorch/pytorch/issues/123328
    """
    if input.dtype == torch.float16:
        raise RuntimeError("not implemented for 'Half'")
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def bfloat16_is_not_implemented(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Bfloat16 logits are an error.

    Link: https://github.com/unslothai/unsloth/pull/1254
    """
    if input.dtype == torch.bfloat16:
        raise RuntimeError("branches of different data types")
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def classes_are_counted_twice(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Every class stands twice in the softmax, as if two ranks held all of them: log 2 too much.

    Link: https://github.com/NVIDIA/Megatron-LM/issues/7452
    """
    wrong = partial(
        loss, log_softmax=log_softmax_from(lambda x: torch.logsumexp(torch.cat([x, x], 1), 1, keepdim=True))
    )
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)
