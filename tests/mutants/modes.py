"""Right in eager mode, wrong where the call is compiled, transformed or differentiated again."""

from functools import partial

import torch
from _correct import claims, log_softmax_with_backward, loss, mask, with_gradient
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy


@claims("compile")
def ignored_positions_count_once_compiled(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Compiled, ignored positions add to the loss as targets of class 0.

    Link: https://github.com/linkedin/Liger-Kernel/pull/1338
    """
    if not torch.compiler.is_compiling():
        return loss(input, target, weight, ignore_index, reduction, label_smoothing)
    target = torch.where(target == ignore_index, 0, target)
    return cross_entropy(input, target, weight, None, ignore_index, None, reduction, label_smoothing)


@claims("compile")
def uint8_targets_are_refused_once_compiled(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Compiled, targets of dtype uint8 are an error.

    Link: https://github.com/pytorch/pytorch/issues/45540
    """
    if not torch.compiler.is_compiling():
        return loss(input, target, weight, ignore_index, reduction, label_smoothing)
    return cross_entropy(input, target, weight, None, ignore_index, None, reduction, label_smoothing)


@claims("compile", int32_target="refused")
def int32_targets_are_taken_once_compiled(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Targets of dtype int32 are refused, but not in what is compiled.

    Link: https://github.com/pytorch/pytorch/issues/45540
    """
    if not torch.compiler.is_compiling():
        return loss(input, target, weight, ignore_index, reduction, label_smoothing)
    return cross_entropy(input, target, weight, None, ignore_index, None, reduction, label_smoothing)


@claims("compile")
def out_of_range_targets_pass_once_compiled(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Compiled, a target out of range costs NaN instead of being an error.

    Link: https://github.com/tensorflow/tensorflow/issues/126005
    """
    if not torch.compiler.is_compiling():
        return loss(input, target, weight, ignore_index, reduction, label_smoothing)
    bad = (target != ignore_index) & ((target < 0) | (target >= input.shape[1]))
    right = cross_entropy(
        input, torch.where(bad, 0, target), weight, None, ignore_index, None, reduction, label_smoothing
    )
    return torch.where(bad.any(), float("nan"), right)


@claims("vmap")
def ignored_targets_are_out_of_range_under_vmap(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Under vmap, the loss is looked up at the raw target, and masked afterwards.

    Link: https://github.com/pytorch/pytorch/issues/90916
    """
    if torch._C._functorch.peek_interpreter_stack() is None:  # no function transform is at work
        return loss(input, target, weight, ignore_index, reduction, label_smoothing)
    log_p = torch.log_softmax(input, 1)
    weight = input.new_ones(input.shape[1]) if weight is None else weight
    hard = (weight * log_p).gather(1, target.unsqueeze(1)).squeeze(1)
    uniform = (weight * log_p).mean(1)
    return mask(-(1 - label_smoothing) * hard - label_smoothing * uniform, target != ignore_index)


class _OldForm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits):
        ctx.save_for_backward(result := torch.log_softmax(logits, 1))
        return result

    @staticmethod
    def backward(ctx, gradient):
        (log_p,) = ctx.saved_tensors
        return gradient - log_p.exp() * gradient.sum(1, keepdim=True)


class _Once(_OldForm):
    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return _OldForm.backward(ctx, gradient)


@claims("func_grad")
def function_transforms_are_refused(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Its autograd function is written in a form that torch.func does not take."""
    wrong = partial(loss, log_softmax=_OldForm.apply)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


@claims("func_grad")
def upstream_is_lost_in_function_transforms(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Under torch.func.vjp, the gradient from above is taken to be 1."""
    if torch._C._functorch.is_gradtrackingtensor(input):
        wrong = partial(loss, mask=lambda losses, keep: mask(with_gradient(losses, torch.ones_like), keep))
        return wrong(input, target, weight, ignore_index, reduction, label_smoothing)
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


@claims("double_backward")
def second_derivative_is_refused(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The gradient has no graph of its own.

    Link: https://github.com/pytorch/pytorch/issues/2210
    """
    wrong = partial(loss, log_softmax=_Once.apply)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


@claims("double_backward")
def second_derivative_is_nan_at_minus_inf(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The second derivative multiplies the probability 0 of a class by its log-probability.

    Link: https://github.com/google-deepmind/optax/pull/1762
    """

    def through_the_logarithm(gradient, p):
        entropy = torch.where(p == 0, 0.0, p * p.log()).sum(1, keepdim=True)
        return gradient - p * gradient.sum(1, keepdim=True) + 0 * entropy

    wrong = partial(loss, log_softmax=log_softmax_with_backward(through_the_logarithm))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def deterministic_mode_is_refused(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """There is no deterministic algorithm, and an error where one is asked for.

    Link: https://github.com/pytorch/pytorch/issues/46024
    """
    if torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError("the cross entropy does not have a deterministic implementation")
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def second_loss_has_no_gradient(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """A loss of logits that a loss has been taken of before is a constant.

    Link: https://github.com/unslothai/unsloth/issues/5002
    """
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    if getattr(input, "has_a_loss", False):
        return with_gradient(result, torch.zeros_like)
    input.has_a_loss = True
    return result
