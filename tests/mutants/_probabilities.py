"""The right cross entropy with class probabilities as targets, cut into stages like ``_correct``.

Shapes inside: logits, shares (P, C), one row per position; losses (P,); weight (C,).
"""

import _correct
import torch
from _correct import check_logits, check_options, check_weight, class_weights, log_softmax, reduce, to_rows


def check_probabilities(input, target):
    if target.shape != input.shape:
        raise ValueError(f"probabilities must be {tuple(input.shape)}, not {tuple(target.shape)}")


def check_ignore_index(ignore_index):
    if not isinstance(ignore_index, int) or ignore_index >= 0:
        raise ValueError("no position of class probabilities can be ignored by its value")


def smoothed(shares, smoothing):
    return (1 - smoothing) * shares + smoothing / shares.shape[1] if smoothing else shares


def terms(shares, weight, log_p):
    """``q_c w_c log p_c``, without multiplying an infinity by zero."""
    return torch.where(shares == 0, 0.0, shares * weight * log_p)


def losses_of(logits, shares, weight, smoothing, *, smoothed=smoothed, log_softmax=log_softmax, terms=terms):
    return -terms(smoothed(shares, smoothing), weight, log_softmax(logits)).sum(1)


def count(shares, weight):
    """What the mean divides by: the number of positions, whatever their weights are."""
    return shares.new_tensor(len(shares))


def positions(input):
    return input.shape[:1] + input.shape[2:] if input.dim() > 1 else torch.Size([])


def loss(
    input,
    target,
    weight,
    ignore_index,
    reduction,
    label_smoothing,
    normalizer=None,
    *,
    check_probabilities=check_probabilities,
    check_ignore_index=check_ignore_index,
    shares_of=to_rows,
    class_weights=class_weights,
    losses_of=losses_of,
    count=count,
    reduce=reduce,
):
    """With class indices, the loss of ``_correct``; with numbers in a dimension for the classes, this one."""
    if not target.is_floating_point() or target.dim() != input.dim():
        return _correct.loss(input, target, weight, ignore_index, reduction, label_smoothing, normalizer)
    check_options(reduction, label_smoothing)
    check_logits(input)
    check_probabilities(input, target)
    check_weight(input, weight)
    check_ignore_index(ignore_index)
    logits, shares = to_rows(input), shares_of(target)
    weight = class_weights(weight, logits)
    losses = losses_of(logits, shares, weight, label_smoothing)
    total = count(shares, weight) if normalizer is None else normalizer
    return reduce(losses, total, reduction, positions(input)).to(input.dtype)
