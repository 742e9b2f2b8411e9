"""The right fused linear loss, cut into stages as ``_correct`` is, and two ways to be wrong: in a stage, or in ``gradients``.

Shapes inside: hidden (N, H), matrix (C, H), bias (C), logits and their gradient d (N, C); classes, keep and losses (N,).
"""

import torch
from _correct import (
    check_options,
    check_range,
    class_weights,
    compute_dtype,
    denominator,
    kept,
    log_softmax,
    mask,
    position_losses,
    reduce,
)
from torch.autograd.function import once_differentiable

from xentcheck.implementation import Implementation


def hide(hidden, keep):
    """Ignored hidden states leave, whatever they hold."""
    return torch.where(keep.unsqueeze(1), hidden, 0.0)


def product(hidden, matrix, bias):
    wide = compute_dtype(hidden.dtype)
    x = hidden.to(wide) @ matrix.to(wide).T
    return x if bias is None else x + bias.to(wide)


def gradients(d, hidden, matrix):
    """Of hidden states, matrix and bias."""
    return d @ matrix, d.T @ hidden, d.sum(0)


class _Explicit(torch.autograd.Function):
    """The losses of all positions, with ``formula(d, hidden, matrix, unit, upstream)`` for the gradients; d is unit times upstream."""

    @staticmethod
    def forward(ctx, hidden, matrix, bias, losses_of, formula):
        wide = compute_dtype(hidden.dtype)
        with torch.enable_grad():
            x = product(hidden.detach(), matrix.detach(), None if bias is None else bias.detach()).requires_grad_()
            losses = losses_of(x)
            (unit,) = torch.autograd.grad(losses.sum(), x)
        ctx.save_for_backward(hidden.to(wide), matrix.to(wide), unit)
        ctx.formula, ctx.dtype = formula, hidden.dtype
        return losses.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        hidden, matrix, unit = ctx.saved_tensors
        found = ctx.formula(unit * upstream.unsqueeze(1), hidden, matrix, unit, upstream)
        return (
            *(g.to(ctx.dtype) if wanted else None for g, wanted in zip(found, ctx.needs_input_grad, strict=False)),
            None,
            None,
        )


def loss(
    hidden,
    linear_weight,
    target,
    linear_bias,
    weight,
    ignore_index,
    reduction,
    label_smoothing,
    *,
    kept=kept,
    hide=hide,
    product=product,
    log_softmax=log_softmax,
    class_weights=class_weights,
    position_losses=position_losses,
    mask=mask,
    denominator=denominator,
    reduce=reduce,
    formula=None,
):
    """``formula``: explicit gradients, in place of those that autograd finds; see ``_Explicit``."""
    check_options(reduction, label_smoothing)
    classes = target.long()
    keep = kept(classes, ignore_index)
    check_range(classes, keep, len(linear_weight))
    w = class_weights(weight, torch.empty(0, len(linear_weight), dtype=compute_dtype(hidden.dtype)))
    classes = torch.where(keep, classes, 0)
    seen = hide(hidden, keep)

    def losses_of(x):
        return position_losses(log_softmax(x), classes, w, label_smoothing)

    if formula is None:
        losses = losses_of(product(seen, linear_weight, linear_bias))
    else:
        losses = _Explicit.apply(seen, linear_weight, linear_bias, losses_of, formula)
    losses = mask(losses, keep)
    if reduction == "mean" and not keep.any():
        return losses.sum().to(hidden.dtype)
    return reduce(losses, denominator(classes, keep, w), reduction, target.shape).to(hidden.dtype)


def fused(function):
    """Declares a function to be a fused linear loss: hidden states and matrix in place of logits."""
    function.implementation = Implementation(name=function.__name__, linear_cross_entropy=function)
    return function
