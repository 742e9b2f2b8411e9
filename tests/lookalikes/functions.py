"""Correct losses with a backward pass of their own, which cannot be differentiated again."""

import numpy
import torch
from _checks import as_rows, kept_mask, mixed, reduced, weights
from torch.autograd.function import once_differentiable


def _shares(classes, weight, smoothing):
    """What each class has of the loss of each position: weight times target distribution."""
    shares = (smoothing / len(weight) * weight).repeat(len(classes), 1)
    hard = (1 - smoothing) * weight[classes]
    return shares.scatter_add_(1, classes.unsqueeze(1), hard.unsqueeze(1))


def _scaled(upstream, gradients, keep):
    """Gradients of the positions times that of their losses, which may be infinite if ignored."""
    return torch.where(keep.unsqueeze(1), upstream.unsqueeze(1) * gradients, 0)


class _GradientFirst(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, classes, keep, weight, smoothing):
        log_p = torch.log_softmax(rows, 1)
        shares = _shares(classes, weight, smoothing)
        gradients = log_p.exp() * shares.sum(1, keepdim=True) - shares
        ctx.save_for_backward(gradients, keep)
        hard = -weight[classes] * log_p.gather(1, classes.unsqueeze(1)).squeeze(1)
        return torch.where(keep, mixed(hard, -(weight * log_p).mean(1), smoothing), 0)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        return _scaled(upstream, *ctx.saved_tensors), None, None, None, None


def gradient_in_the_forward_pass(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """The forward pass works out the gradient, the backward pass scales it."""
    keep = kept_mask(input, target, ignore_index, reduction, weight, label_smoothing)
    rows, classes, keep = as_rows(input, target, keep)
    w = weights(weight, rows)
    losses = _GradientFirst.apply(rows, classes, keep, w, label_smoothing)
    return reduced(losses, torch.where(keep, w[classes], 0).sum(), reduction, target, input.dtype, normalizer)


class _Recomputed(torch.autograd.Function):
    """The reduced loss of the logits as given; what is saved is those and the log-sum-exp."""

    @staticmethod
    def forward(ctx, input, target, keep, weight, reduction, smoothing):
        rows, classes, keep_rows = as_rows(input, target, keep)
        w = weights(weight, rows)
        rows = rows.masked_fill(~keep_rows.unsqueeze(1), 0)
        lse = torch.logsumexp(rows, 1, keepdim=True)
        total = torch.where(keep_rows, w[classes], 0).sum()
        ctx.save_for_backward(input, target, keep, w, lse, total)
        ctx.reduction, ctx.smoothing = reduction, smoothing
        hard = w[classes] * (lse - rows.gather(1, classes.unsqueeze(1))).squeeze(1)
        uniform = (w * (lse - rows)).mean(1)
        losses = torch.where(keep_rows, mixed(hard, uniform, smoothing), 0)
        return reduced(losses, total, reduction, target, input.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        input, target, keep, w, lse, total = ctx.saved_tensors
        rows, classes, keep_rows = as_rows(input, target, keep)
        shares = _shares(classes, w, ctx.smoothing)
        gradients = (rows - lse).exp() * shares.sum(1, keepdim=True) - shares
        upstream = upstream.to(rows.dtype).reshape(-1).expand(len(rows))
        if ctx.reduction == "mean":
            upstream = upstream / total
        gradients = _scaled(upstream, gradients, keep_rows).to(input.dtype)
        batch = input if input.dim() > 1 else input.unsqueeze(0)
        shape = (batch.shape[0], *batch.shape[2:], batch.shape[1])
        result = gradients.reshape(shape).movedim(-1, 1).reshape(input.shape)
        return result, None, None, None, None, None


def gradient_recomputed_in_the_backward_pass(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The backward pass starts from the logits again, and knows the reduction."""
    keep = kept_mask(input, target, ignore_index, reduction, weight, label_smoothing)
    return _Recomputed.apply(input, target, keep, weight, reduction, label_smoothing)


class _InNumpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, classes, keep, weight, smoothing):
        x, chosen, valid, w = (t.numpy() for t in (rows.detach(), classes, keep, weight.detach()))
        x = numpy.where(valid[:, None], x, x.dtype.type(0))
        with numpy.errstate(all="ignore"):
            shifted = x - x.max(1, keepdims=True)
            exponentials = numpy.exp(shifted)
            totals = exponentials.sum(1, keepdims=True)
            shares = numpy.tile(w * x.dtype.type(smoothing / len(w)), (len(x), 1))
            shares[numpy.arange(len(x)), chosen] += w[chosen] * x.dtype.type(1 - smoothing)
            surprise = numpy.log(totals) - shifted
            hard = w[chosen] * surprise[numpy.arange(len(x)), chosen]
            losses = mixed(hard, (w * surprise).mean(1), smoothing)
            gradients = exponentials / totals * shares.sum(1, keepdims=True) - shares
        ctx.save_for_backward(torch.from_numpy(gradients), keep)
        return torch.from_numpy(numpy.where(valid, losses, 0).astype(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        return _scaled(upstream, *ctx.saved_tensors), None, None, None, None


def numpy_inside(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """Losses and gradients by numpy, in its float32 or float64."""
    keep = kept_mask(input, target, ignore_index, reduction, weight, label_smoothing)
    rows, classes, keep = as_rows(input, target, keep)
    w = weights(weight, rows)
    losses = _InNumpy.apply(rows, classes, keep, w, label_smoothing)
    return reduced(losses, torch.where(keep, w[classes], 0).sum(), reduction, target, input.dtype, normalizer)


class _InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, classes, keep, weight, smoothing):
        work = torch.where(keep.unsqueeze(1), rows, 0)
        work -= work.amax(1, keepdim=True)
        target_logits = work.gather(1, classes.unsqueeze(1)).squeeze(1)
        weighted_logits = (weight * work).sum(1) if smoothing > 0 else 0
        work.exp_()
        totals = work.sum(1, keepdim=True)
        lse = totals.log().squeeze(1)
        work.div_(totals)
        shares = _shares(classes, weight, smoothing)
        work.mul_(shares.sum(1, keepdim=True)).sub_(shares)
        ctx.save_for_backward(work, keep)
        hard = weight[classes] * (lse - target_logits)
        uniform = (weight.sum() * lse - weighted_logits) / len(weight)
        return torch.where(keep, mixed(hard, uniform, smoothing), 0)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        return _scaled(upstream, *ctx.saved_tensors), None, None, None, None


def in_place_on_a_private_copy(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Logits become shifted logits, exponentials, probabilities and gradients in one buffer."""
    keep = kept_mask(input, target, ignore_index, reduction, weight, label_smoothing)
    rows, classes, keep = as_rows(input, target, keep)
    w = weights(weight, rows)
    losses = _InPlace.apply(rows, classes, keep, w, label_smoothing)
    return reduced(losses, torch.where(keep, w[classes], 0).sum(), reduction, target, input.dtype)


class _Margins(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, classes, keep):
        rows = torch.where(keep.unsqueeze(1), rows, 0)
        target_logits = rows.gather(1, classes.unsqueeze(1))
        ctx.save_for_backward(rows, classes, keep)
        by_margins = torch.logsumexp(rows - target_logits, 1)
        by_logits = torch.logsumexp(rows, 1) - target_logits.squeeze(1)
        return torch.where(target_logits.squeeze(1).isinf(), by_logits, by_margins)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        rows, classes, keep = ctx.saved_tensors
        gradients = torch.softmax(rows, 1)
        gradients[torch.arange(len(rows)), classes] -= 1
        return _scaled(upstream, gradients, keep), None, None


def margins_to_the_target(input, target, *, ignore_index=-100, reduction="mean"):
    """The log-sum-exp of the differences to the logit of the target, more accurate where that is
    the largest by far. No weights, no smoothing, one ignore value."""
    keep = kept_mask(input, target, ignore_index, reduction, lists=False)
    rows, classes, keep = as_rows(input, target, keep)
    losses = torch.where(keep, _Margins.apply(rows, classes, keep), 0)
    return reduced(losses, keep.sum(), reduction, target, input.dtype)
