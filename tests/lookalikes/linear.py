"""Correct fused linear losses, written in different ways."""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from xentcheck.implementation import LINEAR_CAPABILITIES, Implementation

_OFFERED = LINEAR_CAPABILITIES - {
    "class_probabilities",
    "normalizer",
    "ignore_index_list",
    "double_backward",
    "compile",
    "func_grad",
    "vmap",
    "autocast",
    "uint8_target",
}


def _fused(*missing):
    def declare(function):
        claims = _OFFERED - set(missing)
        function.implementation = Implementation(
            name=function.__name__, linear_cross_entropy=function, capabilities=claims, int32_target="refused"
        )
        return function

    return declare


def _checked(hidden, linear_weight, target, weight, ignore_index, reduction, label_smoothing):
    """The mask of the positions that count, after the refusal of bad arguments."""
    if type(ignore_index) is not int:
        raise TypeError("ignore_index must be an int")
    if reduction not in ("none", "mean", "sum") or not 0 <= label_smoothing <= 1:
        raise ValueError("unknown reduction, or a smoothing outside [0, 1]")
    if not hidden.is_floating_point() or hidden.dim() != 2 or target.dtype != torch.int64:
        raise TypeError("hidden states must be (N, H) in floating point, targets int64")
    if target.shape != hidden.shape[:1] or linear_weight.shape[1:] != hidden.shape[1:]:
        raise ValueError("shapes do not fit")
    if weight is not None and (weight.shape != linear_weight.shape[:1] or not weight.is_floating_point()):
        raise ValueError("one weight per class is needed")
    keep = target != ignore_index
    if (keep & ((target < 0) | (target >= len(linear_weight)))).any():
        raise IndexError("a target is out of range")
    return keep


def _wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


@_fused()
def linear_then_loss_of_what_is_kept(
    hidden,
    linear_weight,
    target,
    *,
    linear_bias=None,
    weight=None,
    ignore_index=-100,
    reduction="mean",
    label_smoothing=0.0,
):
    """Positions are deleted by an index, and autograd does the rest."""
    keep = _checked(hidden, linear_weight, target, weight, ignore_index, reduction, label_smoothing)
    wide, rows = _wide(hidden.dtype), keep.nonzero().flatten()
    bias = None if linear_bias is None else linear_bias.to(wide)
    x = F.linear(hidden[rows].to(wide), linear_weight.to(wide), bias)
    w = torch.ones(len(linear_weight), dtype=wide) if weight is None else weight.to(wide)
    lse, t = x.logsumexp(1), target[rows]
    losses = w[t] * (lse - x.gather(1, t.unsqueeze(1)).squeeze(1)) * (1 - label_smoothing)
    if label_smoothing:
        losses = losses + label_smoothing * ((lse.unsqueeze(1) - x) * w).mean(1)
    full = losses.new_zeros(len(target)).index_put((rows,), losses)
    if reduction == "none":
        return full.to(hidden.dtype)
    return (full.sum() / (w[t].sum() if reduction == "mean" else 1)).to(hidden.dtype)


class _ByPosition(torch.autograd.Function):
    """One position after the other, each by matrix-vector products; the gradients of matrix and bias add up."""

    @staticmethod
    def forward(ctx, hidden, matrix, bias, target, keep):
        wide = _wide(hidden.dtype)
        h, v = hidden.to(wide), matrix.to(wide)
        losses, slopes = torch.zeros(len(target), dtype=wide), torch.zeros(len(target), len(v), dtype=wide)
        for n in keep.nonzero().flatten().tolist():
            x = v.mv(h[n]) if bias is None else v.mv(h[n]) + bias.to(wide)
            losses[n] = -x.log_softmax(0)[target[n]]
            slopes[n] = x.softmax(0)
        slopes[keep, target[keep]] -= 1
        ctx.save_for_backward(h, v, bias, keep, slopes)
        ctx.dtype = hidden.dtype
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        h, v, bias, keep, slopes = ctx.saved_tensors
        of_hidden, of_matrix, of_bias = torch.zeros_like(h), torch.zeros_like(v), torch.zeros_like(v[:, 0])
        for n in keep.nonzero().flatten().tolist():
            d = slopes[n] * upstream[n]
            of_hidden[n] = d @ v
            of_matrix.addr_(d, h[n])
            of_bias += d
        of_bias = None if bias is None else of_bias.to(ctx.dtype)
        return of_hidden.to(ctx.dtype), of_matrix.to(ctx.dtype), of_bias, None, None


@_fused("weight", "label_smoothing")
def linear_loss_by_position(
    hidden,
    linear_weight,
    target,
    *,
    linear_bias=None,
    ignore_index=-100,
    reduction="mean",
    weight=None,
    label_smoothing=0.0,
):
    if weight is not None or label_smoothing:
        raise NotImplementedError("class weights and smoothing are not on offer")
    keep = _checked(hidden, linear_weight, target, weight, ignore_index, reduction, label_smoothing)
    losses = _ByPosition.apply(hidden, linear_weight, linear_bias, target, keep)
    if reduction == "none":
        return losses.to(hidden.dtype)
    return (losses.sum() / (keep.sum() if reduction == "mean" else 1)).to(hidden.dtype)


class _TilesOfClasses(torch.autograd.Function):
    """A running maximum and sum over tiles of classes; logits again in the backward pass, whose operands are of the half type."""

    TILE = 5

    @staticmethod
    def tiles(matrix, bias, h):
        for c in range(0, len(matrix), _TilesOfClasses.TILE):
            v = matrix[c : c + _TilesOfClasses.TILE].to(h.dtype)
            x = h @ v.T
            yield c, v, x if bias is None else x + bias[c : c + _TilesOfClasses.TILE].to(h.dtype)

    @staticmethod
    def forward(ctx, hidden, matrix, bias, target):
        h = hidden.to(_wide(hidden.dtype))
        top, total, at = h.new_full((len(h),), -torch.inf), h.new_zeros(len(h)), h.new_zeros(len(h))
        for c, v, x in _TilesOfClasses.tiles(matrix, bias, h):
            new = torch.maximum(top, x.amax(1)) if x.numel() else top
            total = total * (top - new).exp() + (x - new.unsqueeze(1)).exp().sum(1)
            top = new
            here = (target >= c) & (target < c + len(v))
            at[here] = x[here, target[here] - c]
        lse = top + total.log()
        ctx.save_for_backward(hidden, matrix, bias, target, lse)
        return lse - at

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        hidden, matrix, bias, target, lse = ctx.saved_tensors
        h = hidden.to(lse.dtype)
        of_hidden, of_matrix, of_bias = torch.zeros_like(h), torch.zeros_like(matrix), torch.zeros_like(matrix[:, 0])
        for c, v, x in _TilesOfClasses.tiles(matrix, bias, h):
            d = (x - lse.unsqueeze(1)).exp()
            here = (target >= c) & (target < c + len(v))
            d[here, target[here] - c] -= 1
            d = (d * upstream.unsqueeze(1)).to(hidden.dtype).to(h.dtype)
            of_hidden += d @ v
            of_matrix[c : c + len(v)] = (d.T @ h).to(matrix.dtype)
            of_bias[c : c + len(v)] = d.sum(0).to(matrix.dtype)
        return of_hidden.to(hidden.dtype), of_matrix, None if bias is None else of_bias, None


@_fused("weight", "label_smoothing")
def linear_loss_over_tiles_of_classes(
    hidden,
    linear_weight,
    target,
    *,
    linear_bias=None,
    ignore_index=-100,
    reduction="mean",
    weight=None,
    label_smoothing=0.0,
):
    if weight is not None or label_smoothing:
        raise NotImplementedError("class weights and smoothing are not on offer")
    keep = _checked(hidden, linear_weight, target, weight, ignore_index, reduction, label_smoothing)
    losses = _TilesOfClasses.apply(hidden[keep], linear_weight, linear_bias, target[keep])
    if reduction == "none":
        return losses.new_zeros(len(target)).masked_scatter(keep, losses).to(hidden.dtype)
    return (losses.sum() / (keep.sum() if reduction == "mean" else 1)).to(hidden.dtype)
