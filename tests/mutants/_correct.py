"""The right cross entropy, cut into stages.

``loss`` runs the stages in order. A mutant calls it with one stage replaced by a wrong one, so that
the bug is all that its source says. Shapes inside: logits (P, C), one row per position; classes,
keep and losses (P,); weight (C,). Ignored positions are taken out twice, which keeps whatever their
logits hold out of both passes: ``neutral`` gives them zero logits, ``mask`` gives them zero loss.

Below ``loss`` stand the tools that several mutants build their bug with.
"""

from dataclasses import replace

import torch

from xentcheck.implementation import from_callable


def check_options(reduction, label_smoothing):
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be none, mean or sum, not {reduction!r}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1], not {label_smoothing}")


def check_logits(input):
    if not input.is_floating_point():
        raise TypeError(f"logits must be floating point, not {input.dtype}")
    if input.dim() == 0:
        raise ValueError("logits must be (C,), (N, C) or (N, C, d1, ...), not a scalar")


def check_target(input, target):
    if target.dtype not in (torch.int64, torch.uint8):
        raise TypeError(f"targets must be int64 or uint8, not {target.dtype}")
    expected = input.shape[:1] + input.shape[2:] if input.dim() > 1 else torch.Size([])
    if target.shape != expected:
        raise ValueError(f"targets must be {tuple(expected)}, not {tuple(target.shape)}")


def check_weight(input, weight):
    if weight is None:
        return
    count = class_count(input)
    if not weight.is_floating_point() or weight.shape != (count,):
        raise ValueError(f"weight must hold {count} floating point numbers")


def class_count(input):
    return input.shape[1] if input.dim() > 1 else input.shape[0]


def compute_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def to_rows(input):
    """Logits of any layout as (P, C), in the dtype to compute in."""
    batch = input if input.dim() > 1 else input.unsqueeze(0)
    rows = batch.movedim(1, -1).reshape(-1, batch.shape[1])
    return rows.to(compute_dtype(input.dtype))


def flat(target):
    return target.reshape(-1).to(torch.int64)


def ignore_values(ignore_index):
    values = ignore_index if isinstance(ignore_index, (list, tuple)) else [ignore_index]
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"ignore_index must be an int or a list of ints, not {ignore_index!r}")
    return values


def kept(classes, ignore_index):
    keep = torch.ones_like(classes, dtype=torch.bool)
    for value in ignore_values(ignore_index):
        keep = keep & (classes != value)
    return keep


def check_range(classes, keep, count):
    bad = keep & ((classes < 0) | (classes >= count))
    if bad.any():
        raise IndexError(f"target {classes[bad][0].item()} is out of range for {count} classes")


def class_weights(weight, logits):
    """The class weights in the dtype to compute in; all ones if there are none."""
    return logits.new_ones(logits.shape[1]) if weight is None else weight.to(logits.dtype)


def neutral(logits, keep):
    return torch.where(keep.unsqueeze(1), logits, 0.0)


def log_softmax(logits):
    """By the log-sum-exp: on a CPU, the backward pass of torch.log_softmax adds up the gradient of
    all classes naively, which tells with label smoothing from some 5,000 classes on."""
    return logits - torch.logsumexp(logits, dim=1, keepdim=True)


def at_target(rows, classes):
    return rows.gather(1, classes.unsqueeze(1)).squeeze(1)


def position_losses(log_p, classes, weight, smoothing):
    """``-sum_c w_c q_c log p_c``, without multiplying an infinity by a zero share of q."""
    target_term = weight[classes] * at_target(log_p, classes)
    if smoothing == 0:
        return -target_term
    uniform_term = (weight * log_p).mean(1)
    if smoothing == 1:
        return -uniform_term
    return -((1 - smoothing) * target_term + smoothing * uniform_term)


def mask(losses, keep):
    return torch.where(keep, losses, 0.0)


def denominator(classes, keep, weight):
    return mask(weight[classes], keep).sum()


def divisor(denominator, normalizer):
    """What the mean divides by: the number given from outside, if there is one."""
    return denominator if normalizer is None else normalizer


def reduce(losses, denominator, reduction, shape):
    if reduction == "none":
        return losses.reshape(shape)
    return losses.sum() if reduction == "sum" else losses.sum() / denominator


def loss(
    input,
    target,
    weight,
    ignore_index,
    reduction,
    label_smoothing,
    normalizer=None,
    *,
    check_options=check_options,
    check_logits=check_logits,
    check_target=check_target,
    check_weight=check_weight,
    to_rows=to_rows,
    flat=flat,
    kept=kept,
    check_range=check_range,
    class_weights=class_weights,
    neutral=neutral,
    log_softmax=log_softmax,
    position_losses=position_losses,
    mask=mask,
    denominator=denominator,
    divisor=divisor,
    reduce=reduce,
):
    """Cross entropy as torch documents it, out of reach of ignored logits; no targets: mean NaN."""
    check_options(reduction, label_smoothing)
    check_logits(input)
    check_target(input, target)
    check_weight(input, weight)
    logits, classes = to_rows(input), flat(target)
    keep = kept(classes, ignore_index)
    check_range(classes, keep, logits.shape[1])
    weight = class_weights(weight, logits)
    classes = torch.where(keep, classes, 0)
    log_p = log_softmax(neutral(logits, keep))
    losses = mask(position_losses(log_p, classes, weight, label_smoothing), keep)
    total = divisor(denominator(classes, keep, weight), normalizer)
    return reduce(losses, total, reduction, target.shape).to(input.dtype)


# Tools to build a bug with.


def claims(*capabilities, **conventions):
    """For a mutant with a bug in what a bare callable is not asked about: it says that it offers these, too."""

    def state(function):
        bare = from_callable(function, function.__name__)
        offered = (bare.capabilities - {"class_probabilities"}) | set(capabilities)
        function.implementation = replace(bare, capabilities=offered, tentative=frozenset(), **conventions)
        return function

    return state


def states(**conventions):
    """For a mutant that is right unless it states these."""

    def state(function):
        function.implementation = replace(from_callable(function, function.__name__), **conventions)
        return function

    return state


class _Altered(torch.autograd.Function):
    @staticmethod
    def forward(tensor, value, change):
        return value.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.change = inputs[2]

    @staticmethod
    def backward(ctx, gradient):
        return ctx.change(gradient), None, None


def with_gradient(tensor, change):
    """The same values; what flows back through them is ``change(gradient)``."""
    return _Altered.apply(tensor, tensor.detach(), change)


def with_value(tensor, value):
    """Other values of the same shape and dtype; what flows back is what would have."""
    return _Altered.apply(tensor, value.detach(), lambda gradient: gradient)


class _LogSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(logits, backward):
        return torch.log_softmax(logits, dim=1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.formula = inputs[1]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, gradient):
        (log_p,) = ctx.saved_tensors
        return ctx.formula(gradient, log_p.exp()), None


def log_softmax_with_backward(formula):
    """A log-softmax whose gradient is ``formula(gradient, p)``.

    The right formula is ``gradient - p * gradient.sum(1, keepdim=True)``.
    """
    return lambda logits: _LogSoftmax.apply(logits, formula)


def log_softmax_from(log_sum_exp):
    """A log-softmax with another log-sum-exp, a function from (P, C) to (P, 1)."""
    return lambda logits: logits - log_sum_exp(logits)


def read_as_contiguous(tensor, start=None):
    """What a kernel reads that takes the memory of a tensor to be contiguous.

    Beyond the end of that memory it finds NaN, or 0 in integers.
    """
    start = tensor.storage_offset() if start is None else start
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    memory = torch.as_strided(tensor.detach(), (size,), (1,), 0)[start:][: tensor.numel()]
    beyond = float("nan") if tensor.is_floating_point() else 0
    read = tensor.new_full((tensor.numel(),), beyond)
    read[: memory.numel()] = memory
    return read.reshape(tensor.shape)


def truncate(tensor, bits):
    """Float32 numbers cut to ``bits`` bits of mantissa, as float32."""
    keep = -1 << (23 - bits)
    return (tensor.float().contiguous().view(torch.int32) & keep).view(torch.float32)
