"""The right loss with the wrong gradient."""

from functools import partial

import torch
from _correct import (
    claims,
    flat,
    kept,
    log_softmax_with_backward,
    loss,
    mask,
    neutral,
    read_as_contiguous,
    reduce,
    to_rows,
    with_gradient,
    with_value,
)


def upstream_gradient_ignored(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The upstream gradient is taken to be 1.

    Link: https://github.com/kulinseth/pytorch/pull/289
    """
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    return with_gradient(result, torch.ones_like)


def upstream_squared(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The upstream gradient is applied twice."""
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    return with_gradient(result, lambda upstream: upstream * upstream)


def upstream_first_element_only(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Every position gets the upstream gradient of the first.

    Link: https://github.com/linkedin/Liger-Kernel/issues/678
    """

    def first(upstream):
        return upstream.reshape(-1)[:1].expand(upstream.numel()).reshape(upstream.shape)

    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    return with_gradient(result, first)


def upstream_is_averaged(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Every position gets the mean of the upstream gradients: positions were added up too early.

    Link: https://github.com/linkedin/Liger-Kernel/issues/968
    """
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    return with_gradient(result, lambda upstream: upstream.mean().expand(upstream.shape))


def upstream_assumed_contiguous(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The upstream gradient is read as if its memory were contiguous.

    Link: https://github.com/NVIDIA/TransformerEngine/pull/2402
    """
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    return with_gradient(result, read_as_contiguous)


def expanded_upstream_is_refused(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """An upstream gradient with stride 0, as ``loss.sum()`` gives it, is an error.

    Link: https://github.com/Dao-AILab/quack/pull/126
    """

    def refused(upstream):
        if 0 in upstream.stride():
            raise RuntimeError("the upstream gradient has stride 0")
        return upstream

    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    return with_gradient(result, refused)


def upstream_sign_is_lost(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The upstream gradient is taken to be positive."""
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    return with_gradient(result, torch.abs)


def upstream_zero_means_one(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """An upstream gradient of 0 is taken for "not given"."""
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    return with_gradient(result, lambda upstream: upstream.where(upstream != 0, 1))


def upstream_rounded_to_bfloat16(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The upstream gradient has the accuracy of bfloat16."""
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    return with_gradient(result, lambda upstream: upstream.bfloat16().to(upstream.dtype))


def upstream_is_overwritten(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The backward pass scales the upstream gradient in place; it belongs to the caller."""

    def overwritten(upstream):
        copy = upstream.clone()
        upstream.mul_(2)
        return copy

    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    return with_gradient(result, overwritten)


def graph_is_cut(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The loss has no gradient."""
    return loss(input, target, weight, ignore_index, reduction, label_smoothing).detach()


def graph_is_cut_without_reduction(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The loss has no gradient with reduction="none"."""
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    return result.detach() if reduction == "none" else result


def graph_is_cut_with_weights(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The loss has no gradient with class weights."""
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    return result if weight is None else result.detach()


def graph_is_built_under_no_grad(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The loss requires a gradient even under ``torch.no_grad()``."""
    with torch.enable_grad():
        return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def crashes_without_grad(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """If no gradient is asked for, a variable of the backward pass is missing.

    Link: https://github.com/linkedin/Liger-Kernel/issues/930
    """
    if input.requires_grad and torch.is_grad_enabled():
        scale = 1
    return loss(input, target, weight, ignore_index, reduction, label_smoothing) * scale


def zero_if_no_gradient_is_needed(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The loss is 0 if the logits need no gradient.

    Link: https://github.com/linkedin/Liger-Kernel/issues/507
    """
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    return result if input.requires_grad else torch.zeros_like(result)


def gradient_of_none_is_divided_by_the_count(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """With reduction="none", the gradient is that of a mean.

    Link: https://github.com/ROCm/TransformerEngine/pull/336
    """
    count = max(target.numel(), 1)
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    return with_gradient(result, lambda u: u / count) if reduction == "none" else result


def gradient_of_the_sum_is_divided_by_the_spatial_size(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """With several position dimensions, the gradient of the sum is divided by their size.

    Link: https://github.com/apache/mxnet/issues/5981
    """
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    if reduction != "sum" or target.dim() < 2 or target.numel() == 0:
        return result
    return with_gradient(result, lambda u: u / target[0].numel())


def mean_gradient_lacks_the_denominator(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The gradient of the mean is that of the sum."""

    def undivided(losses, total, reduction, shape):
        if reduction != "mean":
            return reduce(losses, total, reduction, shape)
        return reduce(with_gradient(losses, lambda u: u * total), total, reduction, shape)

    wrong = partial(loss, reduce=undivided)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def mean_gradient_is_divided_twice(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The gradient of the mean is divided by the denominator twice."""

    def divided_again(losses, total, reduction, shape):
        if reduction != "mean":
            return reduce(losses, total, reduction, shape)
        return reduce(with_gradient(losses, lambda u: u / total), total, reduction, shape)

    wrong = partial(loss, reduce=divided_again)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def ignored_positions_keep_their_gradient(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Ignored positions cost nothing, but have the gradient of a target of class 0.

    Link: https://github.com/PaddlePaddle/Paddle/pull/28622
    """

    def mask_the_value(losses, keep):
        return with_value(losses, mask(losses, keep))

    wrong = partial(loss, neutral=lambda logits, keep: logits, mask=mask_the_value)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def ignored_positions_have_a_trace_of_gradient(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The gradient at ignored positions is 1e-6 instead of 0."""

    def traced(logits, keep):
        def trace(gradient):
            return gradient.masked_fill(~keep.unsqueeze(1), 1e-6)

        return neutral(with_gradient(logits, trace), keep)

    wrong = partial(loss, neutral=traced)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def gradient_reaches_the_target_only(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The log-softmax passes the gradient on as it is, without the part of the softmax.

    Link: https://github.com/pytorch/pytorch/issues/190746
    """
    wrong = partial(loss, log_softmax=log_softmax_with_backward(lambda gradient, p: gradient))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def second_backward_is_wrong(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The backward pass writes its result over the probabilities it has saved, which a second
    backward pass takes for probabilities.

    Link: https://github.com/unslothai/unsloth/issues/5002
    """
    saved = []

    def overwriting(gradient, p):
        result = gradient - (saved.pop() if saved else p) * gradient.sum(1, keepdim=True)
        saved.append(result.detach())
        return result

    wrong = partial(loss, log_softmax=log_softmax_with_backward(overwriting))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


@claims("double_backward")
def second_derivative_is_zero(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The probabilities in the gradient are taken for constants by a second differentiation."""

    def constant(gradient, p):
        constant_p = p.detach() + 0 * p  # of which the derivative is 0, not missing
        return gradient - constant_p * gradient.sum(1, keepdim=True)

    wrong = partial(loss, log_softmax=log_softmax_with_backward(constant))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def input_edits_go_unnoticed(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The backward pass reads the logits again, unseen by autograd, whatever has been done to
    them by then."""
    keep = kept(flat(target), ignore_index)

    def read_again(gradient, _):
        p = torch.softmax(neutral(to_rows(input), keep), dim=1)
        return gradient - p * gradient.sum(1, keepdim=True)

    wrong = partial(loss, log_softmax=log_softmax_with_backward(read_again))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)
