"""Cross-entropy of a linear layer's output that never holds the logits. How it is computed, ``linear_routes`` decides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .arguments import as_torch_takes_it, check_linear_tensors, check_options, ignore_values
from .formula import dtype_of_loss
from .linear_chunks import LinearCall, Options, without_autocast
from .linear_routes import LINEAR_ROUTES
from .routes import first_that_applies


def linear_masked_cross_entropy(
    hidden: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int | Sequence[int] = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    normalizer: int | float | Tensor | None = None,
) -> Tensor:
    """``masked_cross_entropy(linear(hidden, linear_weight, linear_bias), target, ...)`` in a fraction of its memory.

    The hidden state of an ignored position, whatever it holds, reaches neither the loss nor the gradient of anything, and gets
    the gradient 0. Logits are sums in float32 (float64 for float64), also where the operands are of a half type, and are not
    rounded to it. The gradients of hidden states, matrix and bias are computed along with the loss, but for "none" and, in half
    types, for an upstream gradient other than 1: then the logits are computed again in the backward pass.

    What is held at a time are the logits of a sixth of the valid positions, or their hidden states where these are wider; more
    where that is fewer than eight million numbers, and no more than those of 512 positions, or sixteen million.

    Args:
        hidden: hidden states, (H) or (N, ..., H): classes of the output stand last, not second; float64, float32, bfloat16 or
            float16.
        linear_weight: the matrix, (C, H), in the dtype of ``hidden`` (in any dtype under ``torch.autocast``).
        target: classes from 0 to C - 1 or values to ignore, of the shape of ``hidden`` without its last dimension; int64, int32
            or uint8.
        linear_bias: (C), in the dtype of ``linear_weight``.
        weight: a weight per class, (C), in any floating point dtype. It gets no gradient.
        ignore_index: the value or the values that mark ignored positions, inside or outside the range of classes.
        reduction: "none", "mean" or "sum".
        label_smoothing: the share of each target that is spread evenly over all classes, from 0 to 1.
        normalizer: what the mean divides the sum of the losses by, in place of the sum of the weights of the valid positions: a
            number or a tensor of shape (), for instance the count of valid positions over several batches. It gets no gradient.

    Returns:
        The loss in the dtype of ``hidden``, under autocast in float32 if that is a half type: a scalar, or of the target's shape
        for "none". It can be differentiated any number of times, under torch.compile once; from the second derivative on, under
        torch.func and for tensor subclasses, all logits are held, and under torch.compile up to two million of them.

    Raises:
        TypeError: a dtype other than the above.
        ValueError: shapes, dtypes or devices that do not match; an unknown reduction; a smoothing outside [0, 1]; a weight or
            normalizer that requires a gradient; a normalizer for another reduction than "mean".
        IndexError: a target that is neither a class nor ignored.
    """
    check_options(reduction, label_smoothing, normalizer)
    values = ignore_values(ignore_index)
    if hidden.device.type != "meta" and torch.is_autocast_enabled(hidden.device.type):
        linear_weight = linear_weight.to(hidden.dtype)
        linear_bias = None if linear_bias is None else linear_bias.to(hidden.dtype)
    check_linear_tensors(hidden, linear_weight, target, linear_bias, weight)
    normalizer = as_torch_takes_it(normalizer)
    if isinstance(normalizer, Tensor):
        normalizer = normalizer.detach().clone()  # a running count may go on before the backward pass
    options = Options(values, reduction, float(label_smoothing), normalizer, dtype_of_loss(hidden))
    rows, flat = hidden.reshape(target.numel(), hidden.shape[-1]), target.reshape(-1).long()
    call = LinearCall(rows, linear_weight, linear_bias, flat, weight, options)
    with without_autocast(hidden):
        loss = first_that_applies(LINEAR_ROUTES, call).compute(call)
    return loss.reshape(target.shape) if reduction == "none" else loss
