"""A slow ``native``, beside which anything looks fast."""

import time

import torch
from _registry import cheat, right


@cheat("torch.nn.functional.cross_entropy replaced")
def a_patched_function(patch):
    plain = torch.nn.functional.cross_entropy

    def slow(*args, **options):
        plain(*args, **options)
        return plain(*args, **options)

    patch.setattr(torch.nn.functional, "cross_entropy", slow)
    return lambda input, target, **options: plain(input, target, **options)


@cheat("torch._C._nn.cross_entropy_loss replaced")
def a_patched_operator(patch):
    plain = torch._C._nn.cross_entropy_loss

    def slow(*args):
        plain(*args)
        return plain(*args)

    patch.setattr(torch._C._nn, "cross_entropy_loss", slow)
    return lambda input, target, **options: plain(input, target, None, 1, -100, 0.0)


@cheat("torch.autograd.grad replaced")
def a_patched_backward_pass(patch):
    plain = torch.autograd.grad

    def slow(*args, **options):
        plain(*args, **options, retain_graph=True)
        return plain(*args, **options)

    patch.setattr(torch.autograd, "grad", slow)
    return right


@cheat("expected native to take as long here as in a process of its own")
def a_hook_that_slows_whoever_is_not_the_candidate(patch):
    """Every function that Python calls costs more, but for the candidate's, which is a single call into torch's own code."""
    import sys

    inside = []
    plain = torch._C._nn.cross_entropy_loss

    def slow(frame, event, argument):
        if event == "call" and frame.f_code.co_name == "cross_entropy" and not inside:
            end = time.perf_counter() + 0.02
            while time.perf_counter() < end:
                pass

    patch.setattr(sys, "setprofile", sys.setprofile)  # undone by the test
    sys.setprofile(slow)

    def loss(input, target, **options):
        return plain(input, target, None, 1, -100, 0.0)

    return loss
