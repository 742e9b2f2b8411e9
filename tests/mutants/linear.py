"""Fused linear losses with one bug each. Where a bug was found in the wild, its source says where."""

import torch
from _correct import (
    kept,
    position_losses,
    read_as_contiguous,
    with_gradient,
)
from _linear import fused, gradients, hide, loss, product

CHUNK = 32


def _options(linear_bias=None, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    return linear_bias, weight, ignore_index, reduction, label_smoothing


@fused
def linear_mean_over_all_positions(hidden, linear_weight, target, **options):
    """https://github.com/NVIDIA/TransformerEngine/pull/2476"""
    everywhere = lambda classes, keep, w: w[classes].sum()  # noqa: E731
    return loss(hidden, linear_weight, target, *_options(**options), denominator=everywhere)


@fused
def linear_none_is_summed(hidden, linear_weight, target, **options):
    """https://github.com/linkedin/Liger-Kernel/issues/488"""
    bias, weight, ignore_index, reduction, smoothing = _options(**options)
    reduction = "sum" if reduction == "none" else reduction
    return loss(hidden, linear_weight, target, bias, weight, ignore_index, reduction, smoothing)


@fused
def linear_bias_is_dropped(hidden, linear_weight, target, *, linear_bias=None, **options):
    if linear_bias is not None:
        linear_bias = linear_bias * 0
    return loss(hidden, linear_weight, target, *_options(linear_bias, **options))


@fused
def linear_bias_misses_the_target_logit(hidden, linear_weight, target, *, linear_bias=None, **options):
    """https://github.com/apple/ml-cross-entropy/issues/52: losses far too low, even negative."""

    def losses_of(log_p, classes, w, smoothing):
        right = position_losses(log_p, classes, w, smoothing)
        return right if linear_bias is None else right + w[classes] * linear_bias.to(w.dtype)[classes]

    return loss(hidden, linear_weight, target, *_options(linear_bias, **options), position_losses=losses_of)


@fused
def linear_bias_has_no_gradient(hidden, linear_weight, target, *, linear_bias=None, **options):
    linear_bias = None if linear_bias is None else linear_bias.detach()
    return loss(hidden, linear_weight, target, *_options(linear_bias, **options))


@fused
def linear_bias_gradient_counts_ignored(hidden, linear_weight, target, *, linear_bias=None, **options):
    """The sum over the positions of a chunk goes on over those whose gradient was only masked afterwards."""
    kept_mask = kept(target, options.get("ignore_index", -100))

    def formula(d, h, v, unit, upstream):
        ones = torch.where(kept_mask, upstream, upstream[kept_mask].mean() if kept_mask.any() else 0)
        return *gradients(d, h, v)[:2], (unit * ones.unsqueeze(1)).sum(0)

    return loss(hidden, linear_weight, target, *_options(linear_bias, **options), formula=formula)


@fused
def linear_smoothing_is_not_forwarded(hidden, linear_weight, target, *, label_smoothing=0.0, **options):
    """https://github.com/linkedin/Liger-Kernel/issues/243"""
    return loss(hidden, linear_weight, target, *_options(**options))


@fused
def linear_class_weights_miss_the_denominator(hidden, linear_weight, target, **options):
    """https://github.com/linkedin/Liger-Kernel/pull/420"""
    count = lambda classes, keep, w: keep.sum()  # noqa: E731
    return loss(hidden, linear_weight, target, *_options(**options), denominator=count)


@fused
def linear_knows_only_minus_100(hidden, linear_weight, target, *, ignore_index=-100, **options):
    """https://github.com/Dao-AILab/flash-attention renamed the option; what was passed under the other name had no effect."""
    taken = torch.where(target == -100, target, target % len(linear_weight))
    return loss(hidden, linear_weight, taken, *_options(**options))


@fused
def linear_matrix_gradient_in_the_first_chunk_only(hidden, linear_weight, target, **options):
    def formula(d, h, v, unit, upstream):
        few = slice(0, min(CHUNK, (len(h) + 1) // 2))
        return d @ v, d[few].T @ h[few], d.sum(0)

    return loss(hidden, linear_weight, target, *_options(**options), formula=formula)


@fused
def linear_logits_rounded_to_bfloat16(hidden, linear_weight, target, **options):
    rounded = lambda h, v, b: product(h, v, b).bfloat16().to(product(h, v, b).dtype)  # noqa: E731
    return loss(hidden, linear_weight, target, *_options(**options), product=rounded)


@fused
def linear_takes_the_matrix_as_contiguous(hidden, linear_weight, target, **options):
    read = linear_weight + (read_as_contiguous(linear_weight) - linear_weight).detach()
    return loss(hidden, read, target, *_options(**options))


@fused
def linear_backward_scales_what_it_saved(hidden, linear_weight, target, **options):
    kept_for_later = []

    def formula(d, h, v, unit, upstream):
        kept_for_later[:] = kept_for_later or [unit.clone()]
        kept_for_later[0].mul_(upstream.unsqueeze(1))
        return gradients(kept_for_later[0], h, v)

    return loss(hidden, linear_weight, target, *_options(**options), formula=formula)


@fused
def linear_target_row_has_the_wrong_sign(hidden, linear_weight, target, **options):
    """The row of the matrix that belongs to the target is added to the gradient of the hidden state, not taken off."""

    def formula(d, h, v, unit, upstream):
        return d.abs() @ v, d.T @ h, d.sum(0)

    return loss(hidden, linear_weight, target, *_options(**options), formula=formula)


@fused
def linear_masks_the_logits_only(hidden, linear_weight, target, **options):
    """Zero logits keep NaN out of the loss; 0 * NaN brings it back in the product for the matrix."""
    keep = kept(target, options.get("ignore_index", -100)).unsqueeze(1)
    masked = lambda h, v, b: torch.where(keep, product(h, v, b), 0.0)  # noqa: E731
    return loss(hidden, linear_weight, target, *_options(**options), hide=lambda h, k: h, product=masked)


@fused
def linear_masks_the_loss_only(hidden, linear_weight, target, **options):
    return loss(hidden, linear_weight, target, *_options(**options), hide=lambda h, k: h)


@fused
def linear_all_ignored_has_no_graph(hidden, linear_weight, target, **options):
    """https://github.com/huggingface/trl/pull/5826"""
    if not kept(target, options.get("ignore_index", -100)).any():
        return torch.zeros(target.shape if options.get("reduction") == "none" else (), dtype=hidden.dtype)
    return loss(hidden, linear_weight, target, *_options(**options))


@fused
def linear_ignored_states_get_a_gradient(hidden, linear_weight, target, **options):
    """The gradient of the logits is not masked; hidden states are."""
    keep = kept(target, options.get("ignore_index", -100)).unsqueeze(1)

    def formula(d, h, v, unit, upstream):
        above = upstream[keep.flatten()].mean() if keep.any() else 0
        return torch.where(keep, d, unit * above) @ v, d.T @ h, d.sum(0)

    leaky = lambda h, k: with_gradient(hide(h, k), lambda g: g) + (h - h.detach()).nan_to_num() * ~keep  # noqa: E731
    return loss(hidden, linear_weight, target, *_options(**options), formula=formula, hide=leaky)


@fused
def linear_upstream_taken_as_one(hidden, linear_weight, target, **options):
    result = loss(hidden, linear_weight, target, *_options(**options))
    return with_gradient(result, torch.ones_like)


@fused
def linear_upstream_misses_the_matrix(hidden, linear_weight, target, **options):
    """Gradients made in the forward pass, of which the backward pass scales only that of the hidden states."""
    seen = {}
    matrix = with_gradient(linear_weight, lambda g: g / seen["upstream"])

    def note(gradient):
        seen["upstream"] = gradient.mean() if gradient.mean() else 1
        return gradient

    return with_gradient(loss(hidden, matrix, target, *_options(**options)), note)


@fused
def linear_upstream_of_none_is_averaged(hidden, linear_weight, target, **options):
    """A gradient of the matrix that was made in the forward pass can only be scaled as a whole."""

    def formula(d, h, v, unit, upstream):
        counted = upstream[upstream != 0]
        return d @ v, (unit * counted.mean()).T @ h if len(counted) else d.T @ h, d.sum(0)

    return loss(hidden, linear_weight, target, *_options(**options), formula=formula)


def _in_chunks(hidden, linear_weight, target, options, combine):
    bias, weight, ignore_index, reduction, smoothing = _options(**options)
    parts = [slice(n, n + CHUNK) for n in range(0, len(target), CHUNK)]
    return combine(
        [
            loss(hidden[part], linear_weight, target[part], bias, weight, ignore_index, reduction, smoothing)
            for part in parts
        ]
    )


@fused
def linear_mean_of_chunk_means(hidden, linear_weight, target, **options):
    if options.get("reduction", "mean") != "mean":
        return loss(hidden, linear_weight, target, *_options(**options))
    return _in_chunks(hidden, linear_weight, target, options, lambda losses: torch.stack(losses).mean())


@fused
def linear_target_of_the_wrong_chunk(hidden, linear_weight, target, **options):
    """https://github.com/linkedin/Liger-Kernel/pull/330: the mask of ignored positions is that of the first chunk, in every chunk."""
    bias, weight, ignore_index, reduction, smoothing = _options(**options)

    def first_chunk(classes, values):
        keep = kept(classes, values)
        return keep & keep[torch.arange(len(keep)) % CHUNK]

    return loss(hidden, linear_weight, target, bias, weight, ignore_index, reduction, smoothing, kept=first_chunk)


@fused
def linear_drops_the_last_partial_chunk(hidden, linear_weight, target, **options):
    def formula(d, h, v, unit, upstream):
        whole = len(h) - len(h) % CHUNK if len(h) > CHUNK else len(h)
        return d @ v, d[:whole].T @ h[:whole], d[:whole].sum(0)

    return loss(hidden, linear_weight, target, *_options(**options), formula=formula)


@fused
def linear_matrix_gradient_adds_up_in_bfloat16(hidden, linear_weight, target, **options):
    dtype = torch.bfloat16 if hidden.dtype.itemsize == 2 else hidden.dtype

    def formula(d, h, v, unit, upstream):
        total = torch.zeros(v.shape, dtype=dtype)
        for n in range(0, len(h), 4):
            total += (d[n : n + 4].T @ h[n : n + 4]).to(dtype)
        return d @ v, total, d.sum(0)

    return loss(hidden, linear_weight, target, *_options(**options), formula=formula)
