"""What all lookalikes share: the refusal of bad arguments, and the shape of good ones."""

import torch


def kept_mask(input, target, ignore_index, reduction, weight=None, label_smoothing=0.0, *, lists=True):
    """Check all arguments; give the mask of the targets that count, in the shape of the targets.

    ``lists`` says whether several ignore values are supported.
    """
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"unknown reduction {reduction!r}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing {label_smoothing} is not between 0 and 1")
    if not input.is_floating_point() or input.dim() == 0:
        raise TypeError("logits must be floating point, with a dimension for the classes")
    if target.dtype not in (torch.int64, torch.uint8):
        raise TypeError(f"targets must be int64 or uint8, not {target.dtype}")
    batched = input.dim() > 1
    if target.shape != (input.shape[:1] + input.shape[2:] if batched else ()):
        raise ValueError(f"targets {tuple(target.shape)} do not fit logits {tuple(input.shape)}")
    count = input.shape[1] if batched else input.shape[0]
    if weight is not None and (weight.shape != (count,) or not weight.is_floating_point()):
        raise ValueError(f"weight must be {count} floating point numbers")

    classes = target.long()
    keep = torch.ones_like(classes, dtype=torch.bool)
    for value in _values(ignore_index, lists):
        keep &= classes != value
    if (keep & ((classes < 0) | (classes >= count))).any():
        raise IndexError(f"a target is out of range for {count} classes")
    return keep


def _values(ignore_index, lists):
    values = ignore_index if lists and isinstance(ignore_index, (list, tuple)) else [ignore_index]
    if any(type(value) is not int for value in values):
        raise TypeError(f"ignore_index must be an int{' or ints' * lists}, not {ignore_index!r}")
    return values


def compute_dtype(input):
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def as_rows(input, target, keep):
    """Logits (P, C) in the dtype to compute in, targets (P,) with 0 for ignored ones, mask (P,)."""
    batch = input if input.dim() > 1 else input.unsqueeze(0)
    rows = batch.movedim(1, -1).reshape(-1, batch.shape[1]).to(compute_dtype(input))
    keep = keep.reshape(-1)
    return rows, torch.where(keep, target.reshape(-1).long(), 0), keep


def weights(weight, rows):
    """The class weights in the dtype of the rows, ones if there are none."""
    return rows.new_ones(rows.shape[1]) if weight is None else weight.to(rows.dtype)


def uniform_losses(rows, weight):
    """The losses with respect to the uniform distribution over the classes."""
    return -(weight * torch.log_softmax(rows, 1)).mean(1)


def mixed(hard, uniform, smoothing):
    """(1 - smoothing) of the one and smoothing of the other; a share of 0 of infinity is 0."""
    if smoothing == 0:
        return hard
    return uniform if smoothing == 1 else (1 - smoothing) * hard + smoothing * uniform


def reduced(losses, total, reduction, like, dtype, normalizer=None):
    """Losses (P,), 0 where ignored, and the sum of the weights of the kept targets, which ``normalizer`` replaces.

    ``like`` has the shape of the positions.
    """
    if reduction == "none":
        return losses.reshape(like.shape).to(dtype)
    total = total if normalizer is None else normalizer
    return (losses.sum() if reduction == "sum" else losses.sum() / total).to(dtype)


def distributed(input, target, ignore_index, reduction, weight, label_smoothing, *, lists=True):
    """Check all arguments, of class indices or of class probabilities.

    Gives the logits (P, C) in the dtype to compute in, the share of each class in the target, times its weight (P, C), the mask in
    the shape of the positions, and what the mean divides by.
    """
    if target.is_floating_point():
        if target.shape != input.shape:
            raise ValueError(f"probabilities {tuple(target.shape)} do not fit logits {tuple(input.shape)}")
        positions = torch.zeros(input.shape[:1] + input.shape[2:] if input.dim() > 1 else (), dtype=torch.int64)
        if _values(ignore_index, lists) not in ([-100], (-100,)):
            raise ValueError("probabilities have no value to be ignored by")
        keep = kept_mask(input, positions, -100, reduction, weight, label_smoothing)
        rows, _, _ = as_rows(input, positions, keep)
        target = target if input.dim() > 1 else target.unsqueeze(0)
        hot = target.movedim(1, -1).reshape(rows.shape).to(rows.dtype)
        w = weights(weight, rows)
        total = len(rows)
    else:
        keep = kept_mask(input, target, ignore_index, reduction, weight, label_smoothing, lists=lists)
        rows, classes, _ = as_rows(input, target, keep)
        hot = torch.nn.functional.one_hot(classes, rows.shape[1]).to(rows.dtype)
        w = weights(weight, rows)
        total = w[classes[keep.reshape(-1)]].sum()
    return rows, w * ((1 - label_smoothing) * hot + label_smoothing / rows.shape[1]), keep, total
