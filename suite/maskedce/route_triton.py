"""Route of logits on a CUDA device, by two Triton kernels: one pass that gives loss and log-sum-exp, one more for the gradient.

Together they read the logits twice and write the gradient once; nothing else of the logits' size is made or read. Logits of ignored
positions are not read at all. Sums are in float32 (float64 for float64), addresses in 64 bits, strides whatever they are.

A tile of positions x classes belongs to each step of a program; a program goes along the classes of its positions. With
``TRITON_INTERPRET=1`` in the environment the same kernels run on the CPU, slowly, as a check of their arithmetic.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import thresholds
from .arguments import check_options, check_range, check_tensors, expected, ignore_values
from .call import Call
from .formula import Objective, reduced, working_dtype
from .route_composed import composed, composed_gradient

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def _why_not() -> str:
    if triton is None:
        return "triton is not installed (pip install triton)"
    if not INTERPRETED and not torch.cuda.is_available():
        return "there is no CUDA device (TRITON_INTERPRET=1 runs the kernels on the CPU)"
    return ""


UNAVAILABLE = _why_not()  # why the kernels cannot run here; empty if they can


def triton_masked_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int | Sequence[int] | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    normalizer: Tensor | float | None = None,
) -> Tensor:
    """``masked_cross_entropy`` by these kernels and nothing else, to test them where they are interpreted, on the CPU.

    On CUDA devices ``masked_cross_entropy`` itself comes here, where the kernels can do what is asked: classes, not class
    probabilities; no second derivative, torch.func or torch.compile.

    Raises: what ``masked_cross_entropy`` does; RuntimeError where the kernels cannot run (see ``UNAVAILABLE``).
    """
    if UNAVAILABLE:
        raise RuntimeError(UNAVAILABLE)
    check_options(reduction, label_smoothing, normalizer)
    values = ignore_values(ignore_index)
    check_tensors(input, target, weight, ignore_index)
    if not INTERPRETED and not input.is_cuda:
        raise ValueError(expected("device of input", "a CUDA device", input.device))
    unbatched = input.dim() == 1
    if unbatched:
        input, target = input.unsqueeze(0), target.unsqueeze(0)
    objective = Objective.of(
        input, target, values, weight, label_smoothing, reduction, normalizer, values_readable=False
    )
    if kernels_can_compute(input, target):
        if not input.is_cuda:
            check_range(objective.target.squeeze(1), input.shape[1], values)
        value = kernel_loss(input, objective)
    else:
        value = composed(input, objective)
    return value.squeeze(0) if unbatched and reduction == "none" else value


def loss(call: Call) -> Tensor:
    return kernel_loss(call.input, call.objective())


def kernels_can_compute(input: Tensor, target: Tensor) -> bool:
    return (
        not UNAVAILABLE
        and not target.is_floating_point()
        and input.numel() > 0
        and type(input) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
    )


def kernel_loss(input: Tensor, objective: Objective) -> Tensor:
    """The loss. No value is waited for: on a device a target out of range is an assertion there, as in torch's own loss."""
    if input.is_cuda:
        torch._assert_async(((objective.target >= 0) & (objective.target < input.shape[1])).all())
    return reduced(_Kernels.apply(input, objective), objective).to(objective.dtype)


class _Kernels(torch.autograd.Function):
    """The losses of all positions, (N, 1, d1, ..., dk) in the working dtype, 0 where ignored."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, objective: Objective) -> Tensor:
        work = _Work(input, objective)
        losses = torch.zeros(objective.target.shape, dtype=work.dtype, device=input.device)
        top, log_sum = torch.empty(2, losses.numel(), dtype=work.dtype, device=input.device)
        work.launch(_losses_kernel, losses.view(-1), top, log_sum)
        ctx.save_for_backward(input, top, log_sum, *objective[:3])
        ctx.smoothing = objective.smoothing
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        input, top, log_sum, target, ignored, weight = ctx.saved_tensors
        objective = Objective(target, ignored, weight, 1.0, ctx.smoothing, "none", working_dtype(input), True)
        if torch.is_grad_enabled() or not torch._C._has_storage(upstream):  # create_graph; a wrapper of vmap
            return composed_gradient(input, upstream.squeeze(1), objective), None
        work = _Work(input, objective)
        gradient = torch.empty_like(work.x)
        upstream = upstream.reshape(-1)  # its stride may be 0
        work.launch(_gradient_kernel, gradient, *gradient.stride(), top, log_sum, upstream, upstream.stride(0))
        return gradient.view(input.shape), None


class _Work:
    """Logits as (N, C, S), S being all positions of a sample, and what the kernels share."""

    def __init__(self, input: Tensor, objective: Objective) -> None:
        self.dtype = working_dtype(input)
        self.x = input.unsqueeze(2) if input.dim() == 2 else input.flatten(2)
        valid = objective.target if objective.ignored is None else objective.target.masked_fill(objective.ignored, -1)
        self.valid = valid.reshape(-1)
        weight = objective.weight
        self.weight = None if weight is None else weight.contiguous()
        self.smoothing = s = objective.smoothing
        mean = torch.ones((), dtype=self.dtype, device=input.device) if weight is None else weight.mean()
        # As a tensor, for a number would reach the kernel in float32: 1 - s, s / C, and what smoothing adds to A.
        of_all = mean * s if s else torch.zeros_like(mean)  # not inf * 0
        self.shares = torch.stack([torch.full_like(mean, 1 - s), torch.full_like(mean, s / input.shape[1]), of_all])

    def launch(self, kernel: Any, *arguments: Any) -> None:
        """The kernel, with its own arguments behind those of both."""
        x, classes = self.x, self.x.shape[1]
        along_classes = x.stride(1) == 1 or x.shape[2] == 1
        block = min(triton.next_power_of_2(classes), thresholds.TILE if along_classes else thresholds.TILE_ACROSS)
        together = max(1, thresholds.TILE // block)
        kernel[(triton.cdiv(self.valid.numel(), together),)](
            x,
            *x.stride(),
            self.valid,
            self.weight,
            self.shares,
            self.valid.numel(),
            x.shape[2],
            classes,
            *arguments,
            ACCURATE=tl.float64 if self.dtype == torch.float64 else tl.float32,
            SMOOTH=self.smoothing > 0,
            TOGETHER=together,
            BLOCK=block,
        )


if triton is not None:

    @triton.jit
    def _positions(valid_ptr, count, spread, TOGETHER: tl.constexpr):
        """The positions of this program: their numbers, targets (-1: ignored, or beyond the end), sample and place in it."""
        at = tl.program_id(0).to(tl.int64) * TOGETHER + tl.arange(0, TOGETHER)
        inside = at < count
        target = tl.load(valid_ptr + at, mask=inside, other=-1)
        return at, inside, target, at // spread, at % spread

    @triton.jit
    def _shares(target, weight_ptr, shares_ptr, ACCURATE: tl.constexpr):
        """w_t (1 - s) and A."""
        if weight_ptr is None:
            w = tl.full(target.shape, 1.0, ACCURATE)
        else:
            w = tl.load(weight_ptr + target, mask=target >= 0, other=0.0)
        of_target = w * tl.load(shares_ptr)
        return of_target, of_target + tl.load(shares_ptr + 2)

    @triton.jit
    def _losses_kernel(
        x_ptr,
        stride_n,
        stride_c,
        stride_s,
        valid_ptr,
        weight_ptr,
        shares_ptr,
        count,
        spread,
        classes,
        losses_ptr,
        top_ptr,
        log_sum_ptr,
        ACCURATE: tl.constexpr,
        SMOOTH: tl.constexpr,
        TOGETHER: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        at, _, target, n, s = _positions(valid_ptr, count, spread, TOGETHER)
        counts = target >= 0
        if tl.max(counts.to(tl.int32), 0) > 0:
            start = x_ptr + n * stride_n + s * stride_s
            top = tl.full((TOGETHER,), float("-inf"), ACCURATE)
            total = tl.zeros((TOGETHER,), ACCURATE)
            lost = tl.zeros((TOGETHER,), ACCURATE)  # what rounding took from total (Neumaier's sum)
            weighed = tl.zeros((TOGETHER,), ACCURATE)  # sum_c w_c (x_c - top), all of one sign; and sum_c w_c
            seen = tl.zeros((TOGETHER,), ACCURATE)
            for first in range(0, classes, BLOCK):
                c = first + tl.arange(0, BLOCK).to(tl.int64)
                read = counts[:, None] & (c < classes)[None, :]
                x = tl.load(start[:, None] + (c * stride_c)[None, :], mask=read, other=float("-inf")).to(ACCURATE)
                higher = tl.maximum(top, tl.max(x, 1))
                base = tl.where(higher == float("-inf"), 0.0, higher)  # as long as all is -inf
                before = total * tl.exp(top - base)
                tile = tl.sum(tl.exp(x - base[:, None]), 1)
                total = before + tile
                lost = lost * tl.exp(top - base) + (tl.maximum(before, tile) - total + tl.minimum(before, tile))
                if SMOOTH:
                    lower = tl.where(top == float("-inf"), 0.0, top)
                    weighed += tl.where(lower == base, 0.0, seen * (lower - base))
                    below = x - base[:, None]
                    if weight_ptr is None:
                        weighed += tl.sum(tl.where(read, below, 0.0), 1)
                        seen += tl.sum(read.to(ACCURATE), 1)
                    else:
                        w = tl.load(weight_ptr + c, mask=c < classes, other=0.0)[None, :]
                        weighed += tl.sum(tl.where(read & (w != 0) & (below != 0), w * below, 0.0), 1)
                        seen += tl.sum(tl.where(read, w, 0.0), 1)
                top = higher
            log_sum = tl.log(total + lost)
            of_target, _ = _shares(target, weight_ptr, shares_ptr, ACCURATE)
            x = tl.load(start + target * stride_c, mask=counts, other=0.0).to(ACCURATE)
            nll = (top - x) + log_sum
            losses = tl.where((of_target == 0) & (nll == float("inf")), 0.0, nll * of_target)
            if SMOOTH:
                losses += tl.load(shares_ptr + 2) * log_sum - weighed * tl.load(shares_ptr + 1)
            tl.store(losses_ptr + at, losses, mask=counts)
            tl.store(top_ptr + at, top, mask=counts)
            tl.store(log_sum_ptr + at, log_sum, mask=counts)

    @triton.jit
    def _gradient_kernel(
        x_ptr,
        stride_n,
        stride_c,
        stride_s,
        valid_ptr,
        weight_ptr,
        shares_ptr,
        count,
        spread,
        classes,
        gradient_ptr,
        gradient_stride_n,
        gradient_stride_c,
        gradient_stride_s,
        top_ptr,
        log_sum_ptr,
        scale_ptr,
        scale_stride,
        ACCURATE: tl.constexpr,
        SMOOTH: tl.constexpr,
        TOGETHER: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        at, inside, target, n, s = _positions(valid_ptr, count, spread, TOGETHER)
        counts = target >= 0
        of_target, whole = _shares(target, weight_ptr, shares_ptr, ACCURATE)
        top = tl.load(top_ptr + at, mask=counts, other=0.0)[:, None]
        log_sum = tl.load(log_sum_ptr + at, mask=counts, other=0.0)[:, None]
        scale = tl.load(scale_ptr + at * scale_stride, mask=counts, other=0.0).to(ACCURATE)[:, None]
        start = x_ptr + n * stride_n + s * stride_s
        out = gradient_ptr + n * gradient_stride_n + s * gradient_stride_s
        for first in range(0, classes, BLOCK):
            c = first + tl.arange(0, BLOCK).to(tl.int64)
            there = inside[:, None] & (c < classes)[None, :]
            x = tl.load(start[:, None] + (c * stride_c)[None, :], mask=there & counts[:, None], other=float("-inf")).to(
                ACCURATE
            )
            d = whole[:, None] * tl.exp((x - top) - log_sum)
            d -= tl.where(c[None, :] == target[:, None], of_target[:, None], 0.0)
            if SMOOTH:
                if weight_ptr is None:
                    d -= tl.load(shares_ptr + 1)
                else:
                    d -= tl.load(weight_ptr + c, mask=c < classes, other=0.0)[None, :] * tl.load(shares_ptr + 1)
            d = tl.where(counts[:, None], d * scale, 0.0)
            tl.store(out[:, None] + (c * gradient_stride_c)[None, :], d.to(gradient_ptr.dtype.element_ty), mask=there)
