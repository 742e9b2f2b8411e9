"""What looks like a cheat and is none."""

import mmap

import torch
from _registry import Given, honest, right, solved

from xentcheck.implementation import find


@honest
def keeps_a_workspace(patch):
    """Grows room when it needs more, and works in it; its answers are its caller's."""
    room = [torch.empty(0)]

    def loss(input, target, **options):
        if room[0].numel() < input.numel():
            room[0] = torch.empty(input.numel())
        value, gradient = solved(input, target, **options)
        room[0][: gradient.numel()].view(gradient.shape).copy_(gradient)
        return Given.apply(input, value, gradient)

    return loss


@honest
def sets_up_at_its_first_call(patch):
    ready = []

    def loss(input, target, **options):
        if not ready:
            ready.append(torch.randn(200, 200).inverse())
        return right(input, target, **options)

    return loss


@honest
def takes_its_memory_from_the_system(patch):
    def loss(input, target, **options):
        value, gradient = solved(input, target, **options)
        room = torch.frombuffer(mmap.mmap(-1, 4 * gradient.numel()), dtype=torch.float32).view(gradient.shape)
        return Given.apply(input, value, room.copy_(gradient))

    return loss


@honest
def remembers_shapes(patch):
    plans = {}

    def loss(input, target, **options):
        plans.setdefault(input.shape, len(plans))
        return right(input, target, **options)

    return loss


@honest
def computes_the_gradient_in_the_forward_pass(patch):
    def loss(input, target, **options):
        return Given.apply(input, *solved(input, target, **options))

    return loss


@honest
def maskedce(patch):
    return find("maskedce")[0]


@honest
def maskedce_inplace(patch):
    return find("maskedce_inplace")[0]
