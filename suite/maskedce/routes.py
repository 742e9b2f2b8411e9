"""Which way the loss of logits is computed: the first route of ``ROUTES`` whose condition holds.

Before the table, ``cross_entropy`` tries ``route_small.torch_loss_if_right``, a shorter way to the first row for calls that
need no options: looking at a table would be a noticeable part of what a small loss takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling, is_exporting

from . import buffers, route_blockwise, route_compiled_fused, route_compiled_operator, route_composed, route_small
from .call import Call
from .route_small import softmax_adds_up_few


class Route(NamedTuple):
    """One row of a table of routes."""

    name: str
    condition: Callable[..., bool]  # of a call, given that the rows above do not apply
    compute: Callable[..., Tensor]  # the loss of a call
    file: str
    cost: str  # passes over the logits, forward and backward; memory beside the logits
    why: str


def is_small_and_torch_is_right(call: Call) -> bool:
    return (
        call.is_small
        and bool(call.ignored_values)
        and route_small.torch_is_right(call.input, call.target, call.weight, call.smoothing)
    )


def is_compiled_with_many_logits(call: Call) -> bool:
    x = call.input
    return (
        _is_compiled_on_cpu(call)
        and not is_exporting()
        and ((call.wants_gradient and buffers.is_large(x.shape, x.dtype)) or not softmax_adds_up_few(x))
    )


def is_compiled_and_fuses_well(call: Call) -> bool:
    has_class_indices = not call.target.is_floating_point()
    return _is_compiled_on_cpu(call) and has_class_indices and (call.weight is None or not call.smoothing)


def triton_can_compute(call: Call) -> bool:
    if not _is_on_cuda(call.input) or call.target_wants_gradient:
        return False
    from . import route_triton  # imports triton, which takes a second

    return route_triton.kernels_can_compute(call.input, call.target)


def is_small_or_needs_plain_operations(call: Call) -> bool:
    return call.is_small or not call.values_readable or call.target_wants_gradient


def is_anything_else(call: Call) -> bool:
    return True


def _by_triton(call: Call) -> Tensor:
    from . import route_triton

    return route_triton.loss(call)


ROUTES = (
    Route(
        "small",
        is_small_and_torch_is_right,
        route_small.loss,
        "route_small.py",
        "torch's own: 1 pass and 1 to 2; log-probabilities of the logits' size, in the working dtype",
        "Python and allocation dominate: torch's one call is fastest, once what it gets wrong is put out of its way.",
    ),
    Route(
        "compiled operator",
        is_compiled_with_many_logits,
        route_compiled_operator.loss,
        "route_compiled_operator.py",
        "1 blockwise pass and 1; the gradient",
        "Over many logits, the blockwise passes beat the compiler's loops in time and accuracy: they enter the graph whole.",
    ),
    Route(
        "compiled fused",
        is_compiled_and_fuses_well,
        route_compiled_fused.loss,
        "route_compiled_fused.py",
        "2 to 3 reads and 1 read, 1 write; the gradient and single numbers for each position",
        "Operations that the compiler makes one loop of each way, and that the code around them can be fused with.",
    ),
    Route(
        "triton",
        triton_can_compute,
        _by_triton,
        "route_triton.py",
        "1 read and 1 read, 1 write; the gradient and two numbers for each position",
        "On a GPU memory traffic is all: two kernels touch the logits as seldom as possible, those of ignored positions never.",
    ),
    Route(
        "composed",
        is_small_or_needs_plain_operations,
        route_composed.loss,
        "route_composed.py",
        "6 passes and as many, fewer where compiled; 2 to 4 buffers of the logits' size",
        "Never branches on a value and can be differentiated again: torch.func, other devices, targets that learn.",
    ),
    Route(
        "blockwise",
        is_anything_else,
        route_blockwise.loss,
        "route_blockwise.py",
        "1 pass through the cache for loss and gradient, none in the backward pass but for a factor other than 1; the gradient, or nothing in place",
        "Memory dominates: logits are read once, and nothing of their size but the gradient is written.",
    ),
)


def first_that_applies(routes: tuple[Route, ...], call: NamedTuple) -> Route:
    for route in routes:
        if route.condition(call):
            return route
    raise AssertionError("the last route takes everything")


def _is_compiled_on_cpu(call: Call) -> bool:
    return (
        is_compiling()
        and call.input.is_cpu
        and not call.target_wants_gradient
        and not torch._C._are_functorch_transforms_active()
    )


def _is_on_cuda(input: Tensor) -> bool:
    return input.is_cuda
