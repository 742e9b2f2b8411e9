"""Losses that are right when they are checked and fake their figures. Each says by which words it is caught.

``CHEATS`` maps a name to a function that makes an ``Implementation``, given ``patch`` (pytest's monkeypatch, undone after the test), to the
measure that it fakes, to the words and to the status. ``HONEST`` are those that look like cheats and are none.
"""

import torch

from xentcheck.implementation import Implementation

CHEATS, HONEST = {}, {}


def cheat(words, measure="speed", status="fail"):
    """Registers a function that makes a loss, or an ``Implementation``."""

    def register(make):
        CHEATS[make.__name__] = lambda patch: _implementation(make.__name__, make(patch)), measure, words, status
        return make

    return register


def honest(make):
    HONEST[make.__name__] = lambda patch: _implementation(make.__name__, make(patch))
    return make


def _implementation(name, made):
    return made if isinstance(made, Implementation) else Implementation(name=name, cross_entropy=made)


def right(input, target, **options):
    return torch.nn.functional.cross_entropy(input, target, **options)


class Given(torch.autograd.Function):
    """A loss and its gradient, as they are given."""

    @staticmethod
    def forward(ctx, input, loss, gradient):
        ctx.gradient = gradient
        return loss.clone()

    @staticmethod
    def backward(ctx, above):
        gradient = ctx.gradient() if callable(ctx.gradient) else ctx.gradient
        return (
            gradient if gradient is None else gradient * 1.0 if type(gradient) is torch.Tensor else gradient,
            None,
            None,
        )


def solved(input, target, **options):
    """The loss and the gradient of the logits, detached."""
    x = input.detach().requires_grad_()
    with torch.enable_grad():
        loss = right(x, target, **options)
        (gradient,) = torch.autograd.grad(loss, x)
    return loss.detach(), gradient
