"""Answers kept from an earlier call."""

import torch
from _registry import Given, cheat, right, solved


def _keeping(key):
    kept = {}

    def loss(input, target, **options):
        name = key(input, target)
        if name not in kept:
            kept[name] = solved(input, target, **options)
        return Given.apply(input, *kept[name]) if input.requires_grad else kept[name][0]

    return loss


@cheat("in every repetition")
def kept_by_address(patch):
    return _keeping(lambda input, target: input.data_ptr())


@cheat("in every repetition")
def kept_by_address_of_the_targets(patch):
    return _keeping(lambda input, target: (target.data_ptr(), target.shape))


@cheat("in every repetition")
def kept_by_shape(patch):
    return _keeping(lambda input, target: (input.shape, input.dtype))


@cheat("in every repetition")
def kept_by_version(patch):
    """Thinks that what is written anew has a new version, which a clone or a view of another leaf has not."""
    return _keeping(lambda input, target: (input.data_ptr(), input._version % 2))


@cheat("in every repetition")
def kept_by_the_sum_of_the_targets(patch):
    return _keeping(lambda input, target: int(target.sum()))


@cheat("in every repetition", measure="memory")
def kept_for_the_memory(patch):
    return _keeping(lambda input, target: input.shape)


@cheat("in every repetition")
def kept_loss_alone(patch):
    """The gradient is right; the forward pass returns the loss of the first call."""
    kept = {}

    class Lazy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, input, target):
            ctx.save_for_backward(input, target)
            return kept[input.shape].clone()

        @staticmethod
        def backward(ctx, above):
            return solved(*ctx.saved_tensors)[1] * above, None

    def loss(input, target, **options):
        kept.setdefault(input.shape, right(input, target).detach())
        return Lazy.apply(input, target)

    return loss
