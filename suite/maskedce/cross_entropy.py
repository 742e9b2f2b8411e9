"""The loss of logits, as a function and as a module. How it is computed, ``routes`` decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.compiler import is_compiling

from .arguments import as_torch_takes_it, check_options, check_tensors, ignore_values
from .call import Call
from .route_small import torch_loss_if_right, values_are_readable
from .routes import ROUTES, first_that_applies


def masked_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int | Sequence[int] | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    normalizer: Tensor | float | None = None,
    inplace: bool = False,
) -> Tensor:
    """Cross-entropy between logits and classes, or class probabilities, in which ignored positions count for nothing.

    Agrees with ``torch.nn.functional.cross_entropy`` except that

    - the logits of an ignored position, whatever they hold, reach neither loss nor gradients, and get the gradient 0;
    - the mean over no position (all ignored, or an empty batch) is 0 with a gradient of zeros, instead of NaN;
    - ``ignore_index`` may name several values;
    - float16 and bfloat16 are computed in float32 and rounded once, at the end;
    - a class of weight or probability 0 adds 0 to the loss even where its logit is -inf, instead of NaN;
    - many logits are saved as they are: autograd refuses the backward pass if they have been changed in place by then.

    As there, a target whose logit is -inf has the loss +inf and a finite gradient; a valid position that holds NaN or
    +inf or nothing but -inf has a NaN loss and gradient; a mean over positions whose weights are all 0 is 0 / 0, NaN.

    Few logits are left to torch's own loss, which adds up the classes carelessly: next to a class of probability 1 the loss may be
    3e-5 off. Where it would be more, and many logits, are added up with care.

    Args:
        input: logits, (C), (N, C) or (N, C, d1, ..., dk), with any strides; float64, float32, bfloat16 or float16.
        target: classes from 0 to C - 1 or values to ignore, (), (N) or (N, d1, ..., dk), in int64, int32 or uint8; or
            class probabilities, of the input's shape, in a floating point dtype. Any strides. Probabilities are taken as
            they are, whatever they sum to; they get a gradient if they require one, which takes more memory.
        weight: a weight per class, (C), in any floating point dtype. It gets no gradient.
        ignore_index: the value or the values that mark ignored positions, inside or outside the range of classes; -100
            if left out. To be left out with class probabilities: nothing in them could be marked.
        reduction: "none", "mean" or "sum". The mean is the sum over the sum of the weights of the valid positions'
            classes, or over the number of positions if the target holds probabilities.
        label_smoothing: the share of each target that is spread evenly over all classes, from 0 to 1.
        normalizer: what "mean" divides the sum by instead: a number, or a tensor of shape (), such as the count of valid
            positions in all the batches that make one step. It gets no gradient. Where no position is valid, the loss
            and its gradient are 0 whatever it is.
        inplace: whether the gradient may overwrite the logits, so that it takes no memory. They must not be used after
            the call; where the backward pass of another operation needs them, autograd raises an error. Not for logits
            that are a leaf of the graph (a view of a leaf is taken at its word: the leaf's values are lost), and
            without second derivatives; of logits that are a view, the gradient reaches what they were made of, but
            cannot be asked for itself. Nothing is overwritten where no gradient is wanted, where logits overlap, as
            expanded ones do, on other devices than the CPU, and under torch.func and torch.compile.

    Returns:
        The loss in the dtype of ``input``, under autocast in float32 if that is a half type: a scalar, or of the shape of
        the positions for "none". It can be differentiated any number of times; the first gradient takes one buffer of
        the input's size.

    Raises:
        TypeError: a dtype other than the above.
        ValueError: shapes or devices that do not match; an unknown reduction; a smoothing outside [0, 1]; a weight or
            normaliser that requires a gradient; a number as normaliser that is negative, or one without reduction="mean"; an ignored
            value beside class probabilities; ``inplace`` with a leaf.
        IndexError: a target that is neither a class nor ignored. Where values cannot be looked at, that is on devices
            other than the CPU and under torch.func and torch.compile, torch's own check of an index has to do.
    """
    has_options = weight is not None or label_smoothing != 0 or normalizer is not None or inplace
    value = -100 if ignore_index is None else ignore_index
    if not has_options and type(value) is int and not is_compiling():
        loss = torch_loss_if_right(input, target, value, reduction)
        if loss is not None:
            return loss
    values_readable = not is_compiling() and values_are_readable(input)
    check_options(reduction, label_smoothing, normalizer)
    label_smoothing, normalizer = float(label_smoothing), as_torch_takes_it(normalizer)
    values = ignore_values(ignore_index)
    check_tensors(input, target, weight, ignore_index, inplace and values_readable)
    is_unbatched = input.dim() == 1
    if is_unbatched:
        input, target = input.unsqueeze(0), target.unsqueeze(0)
    call = Call.of(input, target, values, weight, label_smoothing, reduction, normalizer, values_readable, inplace)
    loss = first_that_applies(ROUTES, call).compute(call)
    return loss.squeeze(0) if is_unbatched and reduction == "none" else loss


class MaskedCrossEntropyLoss(nn.Module):
    """``masked_cross_entropy`` as a module: same arguments; ``weight`` is a buffer, as in torch's module."""

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int | Sequence[int] | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        inplace: bool = False,
    ) -> None:
        super().__init__()
        check_options(reduction, label_smoothing)
        ignore_values(ignore_index)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.inplace = inplace

    def forward(self, input: Tensor, target: Tensor, *, normalizer: Tensor | float | None = None) -> Tensor:
        """The loss of one batch, and of its normaliser if it has one of its own."""
        return masked_cross_entropy(input, target, weight=self.weight, normalizer=normalizer, **self._options())

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._options().items())

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("ignore_index", "reduction", "label_smoothing", "inplace")}
