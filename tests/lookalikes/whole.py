"""Correct losses by operations on the whole tensor."""

import torch
from _checks import (
    as_rows,
    compute_dtype,
    kept_mask,
    mixed,
    reduced,
    uniform_losses,
    weights,
)


def where_on_the_logits(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """Zero logits where ignored, log-softmax, gather."""
    keep = kept_mask(input, target, ignore_index, reduction, weight, label_smoothing)
    rows, classes, keep = as_rows(input, target, keep)
    w = weights(weight, rows)
    rows = torch.where(keep.unsqueeze(1), rows, 0)
    hard = -w[classes] * torch.log_softmax(rows, 1).gather(1, classes.unsqueeze(1)).squeeze(1)
    losses = torch.where(keep, mixed(hard, uniform_losses(rows, w), label_smoothing), 0)
    return reduced(losses, (w[classes] * keep).sum(), reduction, target, input.dtype, normalizer)


def double_where(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """A constant row where ignored, as is no class of it; masked again behind the logarithm."""
    keep = kept_mask(input, target, ignore_index, reduction, weight, label_smoothing)
    rows, classes, keep = as_rows(input, target, keep)
    w = weights(weight, rows)
    safe = rows.masked_fill(~keep.unsqueeze(1), -1.0)
    log_p = torch.log_softmax(safe, 1).masked_fill(~keep.unsqueeze(1), 0)
    picked = (w * log_p).take_along_dim(classes.unsqueeze(1), 1).squeeze(1)
    losses = -mixed(picked, (w * log_p).sum(1) / len(w), label_smoothing)
    return reduced(losses, w[classes[keep]].sum(), reduction, target, input.dtype, normalizer)


def one_hot_with_where(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Targets as one-hot vectors, with a where instead of a product."""
    keep = kept_mask(input, target, ignore_index, reduction, weight, label_smoothing)
    rows, classes, keep = as_rows(input, target, keep)
    w = weights(weight, rows)
    hot = torch.nn.functional.one_hot(classes, len(w)).bool() & keep.unsqueeze(1)
    log_p = w * torch.log_softmax(torch.where(keep.unsqueeze(1), rows, 0), 1)
    hard = -torch.where(hot, log_p, 0).sum(1)
    uniform = -torch.where(keep.unsqueeze(1), log_p, 0).mean(1)
    losses = mixed(hard, uniform, label_smoothing)
    total = torch.where(hot, w, 0).sum()
    return reduced(losses, total, reduction, target, input.dtype)


def log_sum_exp_minus_target_logit(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, normalizer=None
):
    """No log-softmax at all: the log-sum-exp less the logit of the target."""
    keep = kept_mask(input, target, ignore_index, reduction, weight, label_smoothing)
    rows, classes, keep = as_rows(input, target, keep)
    w = weights(weight, rows)
    rows = torch.where(keep.unsqueeze(1), rows, 0)
    lse = torch.logsumexp(rows, 1)
    hard = w[classes] * (lse - rows[torch.arange(len(rows)), classes])
    uniform = (w * (lse.unsqueeze(1) - rows)).mean(1)
    losses = torch.where(keep, mixed(hard, uniform, label_smoothing), 0)
    return reduced(losses, torch.where(keep, w[classes], 0).sum(), reduction, target, input.dtype, normalizer)


def exponentials_by_hand(input, target, *, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Maximum, exponential, sum and logarithm one after the other. No weights, one ignore value."""
    keep = kept_mask(input, target, ignore_index, reduction, label_smoothing=label_smoothing, lists=False)
    rows, classes, keep = as_rows(input, target, keep)
    rows = torch.where(keep.unsqueeze(1), rows, 0)
    shifted = rows - rows.detach().amax(1, keepdim=True)
    log_p = shifted - shifted.exp().sum(1, keepdim=True).log()
    hard = -log_p.gather(1, classes.unsqueeze(1)).squeeze(1)
    losses = torch.where(keep, mixed(hard, -log_p.mean(1), label_smoothing), 0)
    return reduced(losses, keep.sum(), reduction, target, input.dtype)


def classes_where_they_are(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The class dimension stays second: nothing is transposed, reshaped or flattened."""
    keep = kept_mask(input, target, ignore_index, reduction, weight, label_smoothing)
    logits = input if input.dim() > 1 else input.unsqueeze(0)
    keep = keep if input.dim() > 1 else keep.unsqueeze(0)
    classes = torch.where(keep, target.long(), 0)
    logits = torch.where(keep.unsqueeze(1), logits.to(compute_dtype(input)), 0)
    log_p = torch.log_softmax(logits, 1)
    w = logits.new_ones(logits.shape[1]) if weight is None else weight.to(logits.dtype)
    across = w.reshape(-1, *[1] * (logits.dim() - 2))
    hard = -w[classes] * log_p.gather(1, classes.unsqueeze(1)).squeeze(1)
    uniform = -(across * log_p).mean(1)
    losses = torch.where(keep, mixed(hard, uniform, label_smoothing), 0)
    total = torch.where(keep, w[classes], 0).sum()
    return reduced(losses, total, reduction, target, input.dtype)


def classes_permuted(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Classes change places inside: reversed, and moved on by a third of them."""
    keep = kept_mask(input, target, ignore_index, reduction, weight, label_smoothing)
    rows, classes, keep = as_rows(input, target, keep)
    count = rows.shape[1]
    order = torch.arange(count).flip(0).roll(count // 3)
    place = torch.argsort(order)[classes]
    w = weights(weight, rows)[order]
    log_p = torch.log_softmax(torch.where(keep.unsqueeze(1), rows[:, order], 0), 1)
    hard = -w[place] * log_p.gather(1, place.unsqueeze(1)).squeeze(1)
    losses = torch.where(keep, mixed(hard, -(w * log_p).mean(1), label_smoothing), 0)
    return reduced(losses, torch.where(keep, w[place], 0).sum(), reduction, target, input.dtype)
