"""Memory read or written in the wrong order."""

from functools import partial

import torch
from _correct import (
    class_count,
    class_weights,
    compute_dtype,
    flat,
    kept,
    loss,
    read_as_contiguous,
    to_rows,
    with_gradient,
    with_value,
)


def logits_read_as_contiguous(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The strides of the logits are taken to be those of a contiguous tensor.

    Link: https://github.com/NVIDIA/TransformerEngine/issues/2734
    """

    def read(input):
        return to_rows(with_value(input, read_as_contiguous(input)))

    wrong = partial(loss, to_rows=read)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def targets_read_as_contiguous(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The strides of the targets are taken to be those of a contiguous tensor.

    Link: https://github.com/pytorch/pytorch/issues/67167
    """
    wrong = partial(loss, flat=lambda target: flat(read_as_contiguous(target)))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def weights_read_as_contiguous(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The stride of the class weights is taken to be 1."""

    def read(weight, logits):
        return class_weights(None if weight is None else read_as_contiguous(weight), logits)

    wrong = partial(loss, class_weights=read)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def storage_offset_is_ignored(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The logits are read from the start of their storage, even where they start further on."""

    def read(input):
        return to_rows(with_value(input, input.detach().as_strided(input.shape, input.stride(), 0)))

    wrong = partial(loss, to_rows=read)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def views_instead_of_reshaping(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Logits that are not contiguous are an error.

    Link: https://github.com/unslothai/unsloth-zoo/pull/591
    """
    wrong = partial(loss, to_rows=lambda input: to_rows(input.view(-1).view(input.shape)))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def gradient_written_in_contiguous_order(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The gradient gets the strides of the logits, but is written as if they were contiguous."""

    def written(gradient):
        result = torch.empty_like(input)
        torch.as_strided(result, (result.numel(),), (1,)).copy_(gradient.reshape(-1))
        return result

    wrong = partial(loss, to_rows=lambda input: to_rows(with_gradient(input, written)))
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def reshapes_without_moving_the_class_axis(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Logits of shape (N, C, d1, ...) are reshaped to rows of C as they lie."""

    def rows(input):
        return input.reshape(-1, class_count(input)).to(compute_dtype(input.dtype))

    wrong = partial(loss, to_rows=rows)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def height_and_width_are_swapped(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The last two of several position dimensions are swapped in the targets, not in the logits."""

    def swapped(target):
        return flat(target.transpose(-1, -2) if target.dim() > 2 else target)

    wrong = partial(loss, flat=swapped)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def byte_targets_are_read_as_signed(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Targets of dtype uint8 are negative from 128 on."""

    def signed(target):
        return flat(target.view(torch.int8) if target.dtype == torch.uint8 else target)

    wrong = partial(loss, flat=signed)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def targets_are_shifted_again(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """In a batch of sequences, a position is compared with the target of the next one, although
    targets are already what the position is to predict.

    Link: https://github.com/huggingface/transformers/issues/47394
    """

    def shifted(target):
        return flat(target.roll(-1, 1) if target.dim() == 2 else target)

    wrong = partial(loss, flat=shifted)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def last_of_each_sequence_is_dropped(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """In a batch of sequences, the last position of each is ignored.

    Link: https://github.com/huggingface/transformers/pull/36607
    """

    def but_the_last(classes, ignore_index):
        keep = kept(classes, ignore_index).reshape(target.shape).clone()
        if target.dim() == 2:
            keep[:, -1:] = False
        return keep.reshape(-1)

    wrong = partial(loss, kept=but_the_last)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)
