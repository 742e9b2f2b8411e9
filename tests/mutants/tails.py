"""Blocks, tiles and indices that do not fit: the ends of things."""

from functools import partial

import torch
from _correct import (
    at_target,
    kept,
    log_softmax_from,
    loss,
    mask,
    position_losses,
    to_rows,
    with_gradient,
)


def _log_sum_exp_of(count):
    """A log-sum-exp over the first ``count(C)`` classes only."""
    return lambda logits: torch.logsumexp(logits[:, : count(logits.shape[1])], 1, keepdim=True)


def _losses_at(index):
    """Position losses that take the class ``index(classes, C)`` for the target."""

    def losses(log_p, classes, weight, smoothing):
        return position_losses(log_p, index(classes, len(weight)), weight, smoothing)

    return losses


def _log_sum_exp_over_tiles(logits, tile):
    """The online log-sum-exp as usually written: a tile of -inf in the lead gives -inf - -inf."""
    top = logits.new_full((len(logits), 1), float("-inf"))
    total = torch.zeros_like(top)
    for part in logits.split(tile, dim=1):
        new_top = torch.maximum(top, part.detach().amax(1, keepdim=True))
        total = total * (top - new_top).exp() + (part - new_top).exp().sum(1, keepdim=True)
        top = new_top
    return top + total.log()


def leading_tile_of_64_at_minus_inf(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """An online softmax over tiles of 64 classes gives NaN if the first tile is all -inf.

    Link: https://github.com/Dao-AILab/flash-attention/issues/1930
    """
    wrong = partial(loss, log_softmax=log_softmax_from(lambda x: _log_sum_exp_over_tiles(x, 64)))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def leading_tile_of_1024_at_minus_inf(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """An online softmax over tiles of 1024 classes gives NaN if the first tile is all -inf.

    Link: https://github.com/Dao-AILab/flash-attention/issues/1930
    """
    wrong = partial(loss, log_softmax=log_softmax_from(lambda x: _log_sum_exp_over_tiles(x, 1024)))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def leading_tile_of_4096_at_minus_inf(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """An online softmax over tiles of 4096 classes gives NaN if the first tile is all -inf.

    Link: https://github.com/Dao-AILab/flash-attention/issues/1930
    """
    wrong = partial(loss, log_softmax=log_softmax_from(lambda x: _log_sum_exp_over_tiles(x, 4096)))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def running_sum_is_not_rescaled(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """An online softmax over tiles of 128 classes keeps its sum when a tile raises the maximum."""

    def log_sum_exp(logits):
        top, total = logits.new_full((len(logits), 1), float("-inf")), 0
        for part in logits.split(128, dim=1):
            top = torch.maximum(top, part.detach().amax(1, keepdim=True))
            total = total + (part - top).exp().sum(1, keepdim=True)
        return top + total.log()

    wrong = partial(loss, log_softmax=log_softmax_from(log_sum_exp))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def maximum_of_the_first_tile_only(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The maximum that is subtracted is that of the first 128 classes."""

    def log_sum_exp(logits):
        top = logits[:, :128].detach().amax(1, keepdim=True)
        return top + (logits - top).exp().sum(1, keepdim=True).log()

    wrong = partial(loss, log_softmax=log_softmax_from(log_sum_exp))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def last_class_is_not_counted(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The last class is missing from the softmax."""
    log_sum_exp = _log_sum_exp_of(lambda count: max(count - 1, 1))
    wrong = partial(loss, log_softmax=log_softmax_from(log_sum_exp))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def last_class_is_taken_for_ignored(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """A target in the last class is ignored."""

    def below_the_last(classes, ignore_index):
        return kept(classes, ignore_index) & (classes != to_rows(input).shape[1] - 1)

    wrong = partial(loss, kept=below_the_last)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def last_partial_tile_is_dropped(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Beyond 64 classes, those after the last full tile of 64 are missing from the softmax."""
    log_sum_exp = _log_sum_exp_of(lambda count: count if count < 64 else count // 64 * 64)
    wrong = partial(loss, log_softmax=log_softmax_from(log_sum_exp))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def partial_tile_is_padded_with_zeros(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The classes are padded to a power of two with logits of 0 instead of -inf."""

    def log_sum_exp(logits):
        count = logits.shape[1]
        missing = (1 << (count - 1).bit_length()) - count
        padded = torch.nn.functional.pad(logits, (0, missing))
        return torch.logsumexp(padded, 1, keepdim=True)

    wrong = partial(loss, log_softmax=log_softmax_from(log_sum_exp))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def classes_beyond_65536_are_not_read(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """One block holds the whole row, and is cut at 65,536 classes."""
    log_sum_exp = _log_sum_exp_of(lambda count: 65536)
    wrong = partial(loss, log_softmax=log_softmax_from(log_sum_exp))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def target_in_the_last_tile_is_missed(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """A target in a partial last tile of 64 classes is not found there: its logit counts as 0."""

    def missed(log_p, classes, weight, smoothing):
        losses = position_losses(log_p, classes, weight, smoothing)
        logit = at_target(to_rows(input), classes)
        in_last = (classes >= len(weight) // 64 * 64) & (len(weight) > 64)
        return losses + torch.where(in_last, (1 - smoothing) * weight[classes] * logit, 0)

    wrong = partial(loss, position_losses=missed)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def gradient_misses_the_last_partial_vector(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The backward pass writes classes four at a time and leaves the remainder at zero."""

    def whole_vectors(gradient):
        count = gradient.shape[1]
        full = count // 4 * 4 or count
        return torch.where(torch.arange(count) < full, gradient, 0)

    wrong = partial(loss, to_rows=lambda input: with_gradient(to_rows(input), whole_vectors))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def last_partial_block_of_positions_is_skipped(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Beyond 32 positions, those after the last full block of 32 cost nothing."""

    def full_blocks(losses, keep):
        full = len(keep) // 32 * 32 or len(keep)
        return mask(losses, keep & (torch.arange(len(keep)) < full))

    wrong = partial(loss, mask=full_blocks)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def mask_of_the_first_block_is_reused(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """What is ignored among the first 64 positions is ignored in every block of 64.

    Link: https://github.com/linkedin/Liger-Kernel/pull/330
    """

    def first_block(losses, keep):
        return mask(losses, keep[torch.arange(len(keep)) % 64])

    wrong = partial(loss, mask=first_block)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def grid_stops_at_65535_positions(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Positions beyond the 65,535th are never computed.

    Link: https://github.com/pytorch/pytorch/issues/111484
    """

    def in_the_grid(losses, keep):
        return mask(losses, keep & (torch.arange(len(keep)) < 65535))

    wrong = partial(loss, mask=in_the_grid)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def offsets_overflow_at_65536(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The target logit is looked up at an offset of 16 bits; of the reported overflow at 32 bits
    this is the small twin.

    Link: https://github.com/pytorch/pytorch/issues/85005
    """

    def losses(log_p, classes, weight, smoothing):
        offsets = torch.arange(len(log_p)) * log_p.shape[1] + classes
        difference = at_target(log_p, classes) - log_p.reshape(-1)[offsets & 65535]
        share = torch.where(offsets < 65536, 0.0, (1 - smoothing) * weight[classes] * difference)
        return position_losses(log_p, classes, weight, smoothing) + share

    wrong = partial(loss, position_losses=losses)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def class_index_in_8_bits(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Beyond class 255, the target counts from 0 again."""
    wrong = partial(loss, position_losses=_losses_at(lambda classes, count: classes & 255))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def class_index_in_16_bits(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Beyond class 65535, the target counts from 0 again."""
    wrong = partial(loss, position_losses=_losses_at(lambda classes, count: classes & 65535))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def class_index_in_16_bits_with_sign(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Beyond class 32767, the target is negative and counts from the last class."""

    def wrapped(classes, count):
        return classes.to(torch.int16).to(torch.int64) % count

    wrong = partial(loss, position_losses=_losses_at(wrapped))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def class_index_in_bfloat16(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The target goes through bfloat16, which has no odd numbers beyond 256."""

    def rounded(classes, count):
        return classes.to(torch.bfloat16).to(torch.int64).clamp(max=count - 1)

    wrong = partial(loss, position_losses=_losses_at(rounded))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def offsets_wrap_at_32_bits(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Offsets of 32 bits wrap around, and samples that begin beyond 2^31 logits are never reached.

    ``offsets_overflow_at_65536`` is its small twin. Link: https://github.com/intel/torch-xpu-ops/pull/4725
    """
    reached = 2**31 // max(input[0].numel(), 1) if input.dim() > 1 and len(input) else 1
    if len(input) <= reached or input.dim() == 1:
        return loss(input, target, weight, ignore_index, reduction, label_smoothing)
    counted = (target[:reached].reshape(reached, -1) != ignore_index).any(1).nonzero().squeeze(1)
    result = loss(input[counted], target[counted], weight, ignore_index, reduction, label_smoothing)
    if reduction != "none":
        return result
    return result.new_zeros(target.shape).index_put((counted,), result)
