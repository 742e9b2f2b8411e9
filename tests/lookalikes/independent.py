"""Twenty correct cross-entropy losses, each written in a different way.
Every one follows torch.nn.functional.cross_entropy; an option it has no parameter for is not offered."""

from functools import wraps

import torch
import torch.nn.functional as F

_HALF_TYPES = (torch.float16, torch.bfloat16)


def _checked(loss):
    """Refuses logits that are no floating point numbers, and a weight for another number of classes."""

    @wraps(loss)
    def checked(input, target, **options):
        if not input.is_floating_point():
            raise TypeError(f"Expected floating point logits, got {input.dtype}.")
        weight, classes = options.get("weight"), input.shape[min(1, input.dim() - 1)]
        if weight is not None and weight.shape != (classes,):
            raise ValueError(f"Expected {classes} class weights, got {tuple(weight.shape)}.")
        return loss(input, target, **options)

    return checked


def _upcast(tensor):
    """Half types to float32, anything else as it is."""
    return tensor.float() if tensor.dtype in _HALF_TYPES else tensor


def _check_options(reduction="mean", label_smoothing=0.0):
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{reduction} is not a valid value for reduction")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be between 0 and 1, got {label_smoothing}")


def _check_indices(input, target):
    """Refuse targets that are no class indices or do not fit the shape of the input; return them as int64."""
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"expected integer class indices, got a target of {target.dtype}")
    if input.dim() == 0:
        raise ValueError("expected an input of at least one dimension")
    expected = input.shape[:1] + input.shape[2:] if input.dim() > 1 else torch.Size()
    if target.shape != expected:
        raise ValueError(f"expected a target of shape {tuple(expected)}, got {tuple(target.shape)}")
    return target.long()


def _check_range(target, classes, ignore_index):
    """Return the mask of the positions that count; raise if one of those has a target out of range."""
    keep = target != ignore_index
    wrong = keep & ((target < 0) | (target >= classes))
    if wrong.any():
        raise IndexError(f"Target {target[wrong][0].item()} is out of bounds.")
    return keep


def _class_last(input):
    """(C,), (N, C) or (N, C, d1, ...) to (rows, C)."""
    if input.dim() == 1:
        return input.unsqueeze(0)
    moved = input.movedim(1, -1)
    return moved.reshape(moved.shape[:-1].numel(), moved.shape[-1])


def _prepare(input, target, ignore_index):
    """Logits as (rows, C), targets as (rows,), and which rows count; ignored rows are logits 0 and target 0."""
    target = _check_indices(input, target).reshape(-1)
    logits = _class_last(_upcast(input))
    keep = _check_range(target, logits.shape[1], ignore_index)
    return logits.masked_fill(~keep.unsqueeze(1), 0.0), target.masked_fill(~keep, 0), keep


def _row_weights(weight, target, keep, dtype):
    """The weight of each row: that of its class, one without class weights, zero where ignored."""
    if weight is None:
        return keep.to(dtype)
    return weight.to(dtype)[target].masked_fill(~keep, 0.0)


def _reduce(losses, row_weights, like, reduction):
    """Reduce weighted losses of rows; the shape of the unreduced loss and the dtype are those of `like`."""
    if reduction == "none":
        shape = like.shape[:1] + like.shape[2:] if like.dim() > 1 else ()
        return losses.reshape(shape).to(like.dtype)
    total = losses.sum()
    if reduction == "mean":
        total = total / row_weights.sum()
    return total.to(like.dtype)


def _pick(rows, target):
    return rows.gather(1, target.unsqueeze(1)).squeeze(1)


@_checked
def log_softmax_nll(input, target, weight=None, ignore_index=-100, reduction="mean"):
    """The textbook pair log_softmax and nll_loss, in the shape given, after zeroing the ignored logits."""
    target = _check_indices(input, target)
    dim = 0 if input.dim() == 1 else 1
    dtype = torch.float32 if input.dtype in _HALF_TYPES else input.dtype
    logits = input.masked_fill((target == ignore_index).unsqueeze(dim), 0.0)
    log_probs = F.log_softmax(logits, dim=dim, dtype=dtype)
    if weight is not None:
        weight = weight.to(dtype)
    loss = F.nll_loss(log_probs, target, weight=weight, ignore_index=ignore_index, reduction=reduction)
    return loss.to(input.dtype)


@_checked
def log_softmax_gather(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """log_softmax in the type of the input, gather, masked sum; smoothing as (1 - s) * nll + s / C * sum."""
    _check_options(reduction, label_smoothing)
    target = _check_indices(input, target)
    dim = 0 if input.dim() == 1 else 1
    classes = input.shape[dim]
    pad_mask = ~_check_range(target, classes, ignore_index)
    log_probs = F.log_softmax(input.masked_fill(pad_mask.unsqueeze(dim), 0.0), dim=dim)
    index = target.masked_fill(pad_mask, 0)

    loss = -log_probs.gather(dim, index.unsqueeze(dim)).squeeze(dim)
    sum_type = torch.float32 if input.dtype in _HALF_TYPES else input.dtype
    if weight is None:
        denominator = (~pad_mask).sum()
    else:
        picked = weight[index].masked_fill(pad_mask, 0)
        denominator = picked.sum(dtype=sum_type)
        loss = loss * picked
    if label_smoothing > 0:
        if weight is not None:
            log_probs = log_probs * weight.reshape((-1,) + (1,) * (input.dim() - dim - 1))
        smooth = -log_probs.sum(dim, dtype=sum_type)
        loss = (1 - label_smoothing) * loss + label_smoothing / classes * smooth
    loss = loss.masked_fill(pad_mask, 0)

    if reduction == "mean":
        loss = loss.sum(dtype=sum_type) / denominator
    elif reduction == "sum":
        loss = loss.sum(dtype=sum_type)
    return loss.to(input.dtype)


@_checked
def logsumexp_minus_target(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """torch.logsumexp over the classes minus the logit of the target."""
    _check_options(reduction, label_smoothing)
    logits, index, keep = _prepare(input, target, ignore_index)
    normalizer = torch.logsumexp(logits, dim=1)
    w = _row_weights(weight, index, keep, logits.dtype)
    losses = (normalizer - _pick(logits, index)) * w
    if label_smoothing > 0:
        all_losses = normalizer.unsqueeze(1) - logits
        if weight is not None:
            all_losses = all_losses * weight.to(logits.dtype)
        uniform = all_losses.mean(dim=1).masked_fill(~keep, 0.0)
        losses = (1 - label_smoothing) * losses + label_smoothing * uniform
    return _reduce(losses, w, input, reduction)


@_checked
def one_hot_times_log_softmax(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """A (smoothed) one-hot matrix, or class probabilities as given, times log_softmax, summed over the classes."""
    _check_options(reduction, label_smoothing)
    if target.is_floating_point():
        if target.shape != input.shape or ignore_index >= 0:
            raise ValueError("class probabilities must have the shape of the input and allow no ignore_index")
        log_probs = F.log_softmax(_class_last(_upcast(input)), dim=1)
        soft = _class_last(target.to(log_probs.dtype))
        row_weights = torch.ones_like(log_probs[:, 0])
    else:
        logits, index, keep = _prepare(input, target, ignore_index)
        log_probs = F.log_softmax(logits, dim=1)
        soft = F.one_hot(index, logits.shape[1]).to(logits.dtype)
        row_weights = _row_weights(weight, index, keep, logits.dtype)
    if label_smoothing > 0:
        soft = soft * (1 - label_smoothing) + label_smoothing / soft.shape[1]
    if not target.is_floating_point():
        soft = soft * keep.unsqueeze(1)
        # a class of no mass does not count even if its log-probability is -inf
        log_probs = log_probs.masked_fill(soft == 0, 0.0)
    terms = soft * log_probs
    if weight is not None:
        terms = terms * weight.to(terms.dtype)
    return _reduce(-terms.sum(dim=1), row_weights, input, reduction)


@_checked
def online_softmax(input, target, weight=None, ignore_index=-100, reduction="mean"):
    """One pass over blocks of classes with a running maximum and a running sum that is rescaled."""
    _check_options(reduction)
    logits, index, keep = _prepare(input, target, ignore_index)
    running_max = logits.new_full((logits.shape[0],), float("-inf"))
    running_sum = logits.new_zeros(logits.shape[0])
    for block in logits.split(64, dim=1):
        new_max = torch.maximum(running_max, block.detach().amax(dim=1))
        # nothing but -inf so far: any finite shift will do
        shift = new_max.masked_fill(new_max == float("-inf"), 0.0)
        running_sum = running_sum * torch.exp(running_max - shift) + torch.exp(block - shift.unsqueeze(1)).sum(dim=1)
        running_max = new_max
    losses = torch.log(running_sum) - (_pick(logits, index) - running_max)
    w = _row_weights(weight, index, keep, logits.dtype)
    return _reduce(losses * w, w, input, reduction)


@_checked
def where_two_pass(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Maximum first, then the sum of plain exponentials; every selection is a torch.where."""
    _check_options(reduction, label_smoothing)
    target = _check_indices(input, target).reshape(-1, 1)
    x = _class_last(_upcast(input))
    classes = x.shape[1]
    valid = _check_range(target, classes, ignore_index)
    zero = torch.zeros((), dtype=x.dtype, device=x.device)

    x = torch.where(valid, x, zero)
    x = x - x.detach().max(dim=1, keepdim=True).values
    log_z = torch.log(torch.exp(x).sum(dim=1, keepdim=True))
    class_losses = log_z - x
    is_target = target == torch.arange(classes, device=x.device)
    w = torch.ones_like(x[:1]) if weight is None else weight.to(x.dtype).unsqueeze(0)

    losses = torch.where(is_target & valid, class_losses * w, zero).sum(dim=1)
    if label_smoothing > 0:
        spread = torch.where(valid, class_losses * w, zero).sum(dim=1) / classes
        losses = (1 - label_smoothing) * losses + label_smoothing * spread
    row_weights = torch.where(is_target & valid, w, zero).sum(dim=1)
    return _reduce(losses, row_weights, input, reduction)


@_checked
def chunked_running_sum(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Positions in chunks, so that only one chunk is normalised at a time; chunk losses are added up in a loop."""
    _check_options(reduction, label_smoothing)
    logits, index, keep = _prepare(input, target, ignore_index)
    classes = logits.shape[1]
    class_weights = logits.new_ones(classes) if weight is None else weight.to(logits.dtype)
    total, total_weight, pieces = 0.0, 0.0, []
    for chunk, labels, mask in zip(logits.split(32), index.split(32), keep.split(32), strict=True):
        nll = -torch.log_softmax(chunk, dim=-1)
        w = class_weights[labels] * mask
        loss = _pick(nll, labels) * w
        if label_smoothing > 0:
            smooth = (nll * class_weights).sum(dim=-1) * mask
            loss = (1.0 - label_smoothing) * loss + (label_smoothing / classes) * smooth
        if reduction == "none":
            pieces.append(loss)
        else:
            total = total + loss.sum()
            total_weight = total_weight + w.sum()
    if reduction == "none":
        return torch.cat(pieces).reshape(target.shape).to(input.dtype)
    if reduction == "mean":
        total = total / total_weight
    return total.to(input.dtype)


class _SavedSoftmax(torch.autograd.Function):
    """Losses of rows; the probabilities are kept for the backward pass."""

    @staticmethod
    def forward(ctx, logits, target, keep):
        shifted = logits - logits.amax(dim=1, keepdim=True)
        exps = shifted.exp()
        sums = exps.sum(dim=1, keepdim=True)
        ctx.save_for_backward(exps / sums, target, keep)
        losses = sums.log().squeeze(1) - _pick(shifted, target)
        return torch.where(keep, losses, torch.zeros_like(losses))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_losses):
        probs, target, keep = ctx.saved_tensors
        grad = probs.clone()
        grad[torch.arange(grad.shape[0], device=grad.device), target] -= 1
        grad = grad * grad_losses.unsqueeze(1)
        return grad.masked_fill(~keep.unsqueeze(1), 0.0), None, None


@_checked
def saved_softmax_function(input, target, weight=None, ignore_index=-100, reduction="mean"):
    """An autograd.Function that stores the softmax and returns p - onehot times the upstream gradient."""
    _check_options(reduction)
    logits, index, keep = _prepare(input, target, ignore_index)
    losses = _SavedSoftmax.apply(logits, index, keep)
    w = _row_weights(weight, index, keep, logits.dtype)
    return _reduce(losses * w, w, input, reduction)


class _Recomputed(torch.autograd.Function):
    """Losses of rows; only the logits and one normaliser per row are kept, the softmax is computed again."""

    @staticmethod
    def forward(ctx, logits, target, keep, smoothing):
        x = _upcast(logits).masked_fill(~keep.unsqueeze(1), 0.0)
        log_z = torch.logsumexp(x, dim=1)
        aim = _pick(x, target)
        if smoothing > 0:
            aim = (1 - smoothing) * aim + smoothing * x.mean(dim=1)
        ctx.save_for_backward(logits, target, keep, log_z)
        ctx.smoothing = smoothing
        return (log_z - aim).masked_fill(~keep, 0.0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_losses):
        logits, target, keep, log_z = ctx.saved_tensors
        grad = torch.exp(_upcast(logits) - log_z.unsqueeze(1))
        if ctx.smoothing > 0:
            grad -= ctx.smoothing / grad.shape[1]
        hit = torch.full_like(grad[:, :1], ctx.smoothing - 1)
        grad.scatter_add_(1, target.unsqueeze(1), hit)
        grad *= grad_losses.unsqueeze(1)
        grad.masked_fill_(~keep.unsqueeze(1), 0.0)
        return grad.to(logits.dtype), None, None, None


@_checked
def recompute_function(input, target, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """An autograd.Function that keeps no probabilities but computes them again in the backward pass."""
    _check_options(reduction, label_smoothing)
    index = _check_indices(input, target).reshape(-1)
    logits = _class_last(input)
    keep = _check_range(index, logits.shape[1], ignore_index)
    losses = _Recomputed.apply(logits, index.masked_fill(~keep, 0), keep, label_smoothing)
    return _reduce(losses, keep, input, reduction)


class _GradInForward(torch.autograd.Function):
    """The whole loss; the gradient of the logits is formed in the forward pass and only scaled afterwards."""

    @staticmethod
    def forward(ctx, logits, target, row_weights, keep, reduction):
        log_probs = torch.log_softmax(logits, dim=1)
        losses = -_pick(log_probs, target) * row_weights
        grad = log_probs.exp()
        grad.scatter_add_(1, target.unsqueeze(1), torch.full_like(grad[:, :1], -1.0))
        grad *= row_weights.unsqueeze(1)
        if reduction == "none":
            loss = losses
        else:
            divisor = row_weights.sum() if reduction == "mean" else 1.0
            loss = losses.sum() / divisor
            grad /= divisor
        ctx.save_for_backward(grad, keep)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        grad, keep = ctx.saved_tensors
        scaled = grad * (upstream.unsqueeze(1) if upstream.dim() else upstream)
        return scaled.masked_fill(~keep.unsqueeze(1), 0.0), None, None, None, None


@_checked
def grad_in_forward_function(input, target, weight=None, ignore_index=-100, reduction="mean"):
    """An autograd.Function as in fused kernels: the gradient is ready after the forward pass, backward scales it."""
    _check_options(reduction)
    logits, index, keep = _prepare(input, target, ignore_index)
    row_weights = _row_weights(weight, index, keep, logits.dtype)
    loss = _GradInForward.apply(logits, index, row_weights, keep, reduction)
    return loss.reshape(target.shape if reduction == "none" else ()).to(input.dtype)


@_checked
def categorical_on_selected_rows(input, target, weight=None, ignore_index=-100, reduction="mean"):
    """index_select of the rows that count, log_prob of a Categorical, and a scatter back if unreduced."""
    _check_options(reduction)
    labels = _check_indices(input, target).reshape(-1)
    rows = _class_last(input)
    keep = _check_range(labels, rows.shape[1], ignore_index)
    where = keep.nonzero().squeeze(1)
    rows = _upcast(rows.index_select(0, where))
    labels = labels.index_select(0, where)
    losses = -torch.distributions.Categorical(logits=rows, validate_args=False).log_prob(labels)
    w = torch.ones_like(losses) if weight is None else weight.to(losses.dtype)[labels]
    losses = losses * w
    if reduction == "none":
        full = losses.new_zeros(keep.shape[0]).scatter(0, where, losses)
        return full.reshape(target.shape).to(input.dtype)
    return _reduce(losses, w, input, reduction)


@torch.autocast("cpu", enabled=False)  # whose products are in bfloat16
@_checked
def einsum_contraction(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """A matrix of coefficients (one-hot, smoothing and class weights) contracted with log_softmax by einsum."""
    _check_options(reduction, label_smoothing)
    logits, index, keep = _prepare(input, target, ignore_index)
    rows, classes = logits.shape
    coefficients = logits.new_full((rows, classes), label_smoothing / classes)
    coefficients.scatter_add_(1, index.unsqueeze(1), logits.new_full((rows, 1), 1.0 - label_smoothing))
    class_weights = logits.new_ones(classes) if weight is None else weight.to(logits.dtype)
    coefficients = torch.einsum("nc,c,n->nc", coefficients, class_weights, keep.to(logits.dtype))
    log_probs = torch.log_softmax(logits, dim=1).masked_fill(coefficients == 0, 0.0)
    losses = -torch.einsum("nc,nc->n", coefficients, log_probs)
    return _reduce(losses, _row_weights(weight, index, keep, logits.dtype), input, reduction)


@_checked
def sorted_logcumsumexp(input, target, weight=None, ignore_index=-100, reduction="mean"):
    """As a ranking loss does it: logits in falling order, torch.logcumsumexp, whose last entry normalises."""
    _check_options(reduction)
    logits, index, keep = _prepare(input, target, ignore_index)
    ranked = logits.sort(dim=1, descending=True).values
    normalizer = torch.logcumsumexp(ranked, dim=1)[:, -1]
    w = _row_weights(weight, index, keep, logits.dtype)
    return _reduce((normalizer - _pick(logits, index)) * w, w, input, reduction)


def _logaddexp(a, b):
    """torch.logaddexp whose gradient is zero, not nan, where both are -inf."""
    empty = (a == float("-inf")) & (b == float("-inf"))
    return torch.logaddexp(a.masked_fill(empty, 0.0), b.masked_fill(empty, 0.0)).masked_fill(empty, float("-inf"))


@_checked
def tree_logaddexp(input, target, weight=None, ignore_index=-100, reduction="mean"):
    """The normaliser by a binary tree of logaddexp: the classes are halved until one column is left."""
    _check_options(reduction)
    logits, index, keep = _prepare(input, target, ignore_index)
    level = logits
    while level.shape[1] > 1:
        half = level.shape[1] // 2
        joined = _logaddexp(level[:, :half], level[:, half : 2 * half])
        level = torch.cat([joined, level[:, 2 * half :]], dim=1)
    losses = level.squeeze(1) - _pick(logits, index)
    w = _row_weights(weight, index, keep, logits.dtype)
    return _reduce(losses * w, w, input, reduction)


@_checked
def log_odds(input, target, weight=None, ignore_index=-100, reduction="mean"):
    """-logsigmoid of the margin by which the target leads the logsumexp of all other classes."""
    _check_options(reduction)
    logits, index, keep = _prepare(input, target, ignore_index)
    others = logits.scatter(1, index.unsqueeze(1), float("-inf"))
    # without any rival the lead is infinite, and no gradient is left
    alone = (others == float("-inf")).all(dim=1) & (_pick(logits, index) != float("-inf"))
    rivals = torch.logsumexp(others.masked_fill(alone.unsqueeze(1), 0.0), dim=1)
    margin = (_pick(logits, index) - rivals).masked_fill(alone, float("inf"))
    w = _row_weights(weight, index, keep, logits.dtype)
    return _reduce(-F.logsigmoid(margin) * w, w, input, reduction)


def _single_position(row, label, class_weights, label_smoothing):
    log_probs = row - row.logsumexp(dim=0)
    loss = -(log_probs * class_weights).gather(0, label.unsqueeze(0)).squeeze(0)
    if label_smoothing > 0:
        loss = (1 - label_smoothing) * loss - label_smoothing * (log_probs * class_weights).mean()
    return loss


@_checked
def vmap_single_position(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The loss of one position written for a vector, spread over all positions by torch.vmap."""
    _check_options(reduction, label_smoothing)
    logits, index, keep = _prepare(input, target, ignore_index)
    class_weights = logits.new_ones(logits.shape[1]) if weight is None else weight.to(logits.dtype)
    if logits.shape[0] == 0:
        losses = logits.sum(dim=1)
    else:
        losses = torch.vmap(_single_position, in_dims=(0, 0, None, None))(logits, index, class_weights, label_smoothing)
    losses = torch.where(keep, losses, torch.zeros_like(losses))
    return _reduce(losses, _row_weights(weight, index, keep, logits.dtype), input, reduction)


@_checked
def kl_divergence(input, target, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """F.kl_div from the (smoothed) one-hot distribution plus the entropy of that distribution."""
    _check_options(reduction, label_smoothing)
    logits, index, keep = _prepare(input, target, ignore_index)
    classes = logits.shape[1]
    with torch.no_grad():
        dist = torch.full_like(logits, label_smoothing / classes)
        dist.scatter_(1, index.unsqueeze(1), 1 - label_smoothing + label_smoothing / classes)
        entropy = torch.special.entr(dist).sum(dim=1)
    log_probs = F.log_softmax(logits, dim=1).masked_fill(dist == 0, 0.0)
    losses = F.kl_div(log_probs, dist, reduction="none").sum(dim=1) + entropy
    losses = losses.masked_fill(~keep, 0.0)
    return _reduce(losses, keep, input, reduction)


@_checked
def incremental_mean(input, target, weight=None, ignore_index=-100):
    """The mean alone, updated after every few positions by their deviation from the mean so far."""
    logits, index, keep = _prepare(input, target, ignore_index)
    losses = -_pick(torch.log_softmax(logits, dim=1), index)
    weights = _row_weights(weight, index, keep, logits.dtype)
    mean = logits.new_zeros(())
    seen = 0.0
    for values, w in zip(losses.split(16), weights.split(16), strict=True):
        seen += w.sum().item()
        mean = mean + ((values - mean) * w).sum() / (seen or 1.0)
    return mean.to(input.dtype)


@torch.autocast("cpu", enabled=False)
@_checked
def matmul_with_ones(input, target, weight=None, ignore_index=-100, reduction="mean"):
    """Every sum is a matrix product: exponentials times a vector of ones, losses times the vector of weights."""
    _check_options(reduction)
    logits, index, keep = _prepare(input, target, ignore_index)
    rows, classes = logits.shape
    shifted = logits - logits.detach().amax(dim=1, keepdim=True)
    losses = torch.log(torch.exp(shifted) @ logits.new_ones(classes)) - _pick(shifted, index)
    w = _row_weights(weight, index, keep, logits.dtype)
    if reduction == "none":
        return (losses * w).reshape(target.shape).to(input.dtype)
    total = losses @ w
    if reduction == "mean":
        total = total / (w @ logits.new_ones(rows))
    return total.to(input.dtype)


@_checked
def vocab_shards(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """As in tensor-parallel training: each shard of classes gives its maximum, its sum and its share of the target."""
    _check_options(reduction, label_smoothing)
    logits, index, keep = _prepare(input, target, ignore_index)
    classes = logits.shape[1]
    shards = logits.chunk(4, dim=1)
    global_max = torch.stack([shard.detach().amax(dim=1) for shard in shards]).amax(dim=0)
    class_weights = logits.new_ones(classes) if weight is None else weight.to(logits.dtype)

    start, sums, predicted, shifted_shards = 0, [], [], []
    for shard in shards:
        size = shard.shape[1]
        shifted = shard - global_max.unsqueeze(1)
        elsewhere = (index < start) | (index >= start + size)
        local = (index - start).masked_fill(elsewhere, 0)
        predicted.append(_pick(shifted, local).masked_fill(elsewhere, 0.0))
        sums.append(shifted.exp().sum(dim=1))
        shifted_shards.append(shifted)
        start += size
    log_z = torch.stack(sums).sum(dim=0).log()

    w = _row_weights(weight, index, keep, logits.dtype)
    losses = (log_z - torch.stack(predicted).sum(dim=0)) * w
    if label_smoothing > 0:
        parts = zip(shifted_shards, class_weights.chunk(4), strict=True)
        spread = torch.stack([((log_z.unsqueeze(1) - shard) * cw).sum(dim=1) for shard, cw in parts]).sum(dim=0)
        losses = (1 - label_smoothing) * losses + label_smoothing * (spread / classes).masked_fill(~keep, 0.0)
    return _reduce(losses, w, input, reduction)
