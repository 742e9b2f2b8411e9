"""Nothing, or next to nothing, once the check is over."""

import sys

import torch
from _registry import Given, cheat, right, solved


def _later(calls, then):
    """Right for so many calls."""
    count = [0]

    def loss(input, target, **options):
        count[0] += 1
        return right(input, target, **options) if count[0] <= calls else then(input, target, **options)

    return loss


@cheat("in every repetition")
def nothing_from_the_third_call_on(patch):
    return _later(2, lambda input, target, **options: Given.apply(input, input.new_zeros(()), torch.zeros_like(input)))


@cheat("in every repetition")
def nothing_after_ten_calls(patch):
    return _later(10, lambda input, target, **options: Given.apply(input, input.new_zeros(()), torch.zeros_like(input)))


@cheat("in every repetition")
def whatever_the_memory_holds(patch):
    return _later(2, lambda input, target, **options: Given.apply(input, input.new_empty(()), torch.empty_like(input)))


@cheat("in every repetition")
def half_of_the_positions(patch):
    def half(input, target, **options):
        loss, gradient = solved(input[: len(input) // 2], target[: len(target) // 2], **options)
        whole = torch.zeros_like(input)
        whole[: len(gradient)] = gradient / 2
        return Given.apply(input, loss, whole)

    return _later(2, half)


@cheat("in every repetition")
def nothing_where_the_timing_calls(patch):
    """Looks at who calls it."""

    def loss(input, target, **options):
        frame, names = sys._getframe(), set()
        while frame:
            names.add(frame.f_code.co_name)
            frame = frame.f_back
        if "take" in names:
            return Given.apply(input, input.new_zeros(()), torch.zeros_like(input))
        return right(input, target, **options)

    return loss


@cheat("in every repetition")
def a_gradient_of_zeros_where_it_is_timed(patch):
    return _later(
        2,
        lambda input, target, **options: Given.apply(
            input, solved(input, target, **options)[0], torch.zeros_like(input)
        ),
    )


@cheat("in every repetition")
def every_second_call_pays_for_two(patch):
    """Hands out memory that the next call fills."""
    owed = []

    def loss(input, target, **options):
        if len(owed) < 2:  # the check and the first step
            owed.append(None)
            return right(input, target, **options)
        if owed[-1] is None:
            gradient = torch.empty_like(input)
            owed[-1] = (gradient, input.detach().clone(), target.clone())
            return Given.apply(input, input.new_zeros(()), lambda: gradient)
        gradient, x, t = owed[-1]
        owed[-1] = None
        gradient.copy_(solved(x, t, **options)[1])
        return right(input, target, **options)

    return loss
