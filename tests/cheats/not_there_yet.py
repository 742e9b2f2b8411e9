"""Answers that are made when somebody reads them."""

import threading

import torch
from _registry import Given, cheat, right, solved

from xentcheck.implementation import Implementation


class Lazy(torch.Tensor):
    """A tensor that is computed by the first function that gets it."""

    @staticmethod
    def of(like, work):
        made = torch.empty_like(like).as_subclass(Lazy)
        made.work = work
        return made

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            for each in args:
                work = getattr(each, "work", None)
                if work is not None and getattr(function, "__name__", "") not in ("__get__", "size", "dim"):
                    each.work = None
                    each.as_subclass(torch.Tensor).copy_(work())
            return function(*args, **(kwargs or {}))


def _both(work):
    """An implementation that returns loss and gradient itself."""

    def loss_and_gradient(input, target, upstream, **options):
        return work(input, target, upstream if upstream is not None else 1.0, **options)

    return Implementation(name="both", loss_and_gradient=loss_and_gradient)


@cheat("expected a plain dense torch.Tensor")
def a_gradient_that_is_computed_when_it_is_read(patch):
    def work(input, target, above, **options):
        loss, _ = solved(input, target, **options)
        return loss, Lazy.of(input, lambda: solved(input, target, **options)[1] * above)

    return _both(work)


@cheat("expected a plain dense torch.Tensor", measure="memory")
def a_gradient_that_takes_its_memory_when_it_is_read(patch):
    return a_gradient_that_is_computed_when_it_is_read(patch)


@cheat("expected a plain dense torch.Tensor")
def a_loss_that_is_computed_when_it_is_read(patch):
    def work(input, target, above, **options):
        _, gradient = solved(input, target, **options)
        return Lazy.of(input.new_zeros(()), lambda: right(input, target, **options)), gradient * above

    return _both(work)


@cheat("in every repetition")
def a_gradient_that_a_thread_fills(patch):
    calls = []

    def loss(input, target, **options):
        calls.append(None)
        if len(calls) < 3:
            return right(input, target, **options)
        x, gradient = input.detach().clone(), torch.zeros_like(input)

        def fill():
            gradient.copy_(solved(x, target, **options)[1])

        threading.Timer(0.05, fill).start()
        return Given.apply(input, right(x, target, **options), lambda: gradient)

    return loss


@cheat("whose entries share memory")
def one_number_for_all_entries(patch):
    calls = []

    def work(input, target, above, **options):
        calls.append(None)
        loss, gradient = solved(input, target, **options)
        return loss, gradient * above if len(calls) < 3 else gradient.new_zeros(()).expand(input.shape)

    return _both(work)


@cheat("layout torch.sparse_coo")
def a_sparse_gradient(patch):
    calls = []

    def work(input, target, above, **options):
        calls.append(None)
        loss, gradient = solved(input, target, **options)
        return loss, gradient * above if len(calls) < 3 else gradient.to_sparse()

    return _both(work)


@cheat("found RuntimeError: no kernel for that", status="error")
def a_gradient_that_raises_when_it_is_read(patch):
    def refuse():
        raise RuntimeError("no kernel for that")

    def work(input, target, above, **options):
        return solved(input, target, **options)[0], Lazy.of(input, refuse)

    return _both(work)


@cheat("found RuntimeError: out of order", status="error")
def raises_from_the_fifth_call_on(patch):
    calls = []

    def loss(input, target, **options):
        calls.append(None)
        if len(calls) > 5:
            raise RuntimeError("out of order")
        return right(input, target, **options)

    return loss
