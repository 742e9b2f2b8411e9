"""The truth of large batches, block by block.

``truth`` needs some twenty float64 arrays of the logits' size, gigabytes for a language model's batch. Here the same definition is
evaluated in float64 for a few positions at a time. Batches of a fused linear loss are smaller, because its matrix products take most of
the time; their blocks are computed by ``truth``. Batches are those of a training step: finite logits, with or without class weights and
smoothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xentcheck.reference import definition
from xentcheck.reference.linear import ParameterGradients
from xentcheck.reference.truth import (
    Array,
    Truth,
    added_up_to_the_denominator,
    class_weights,
    rounding_of,
    slack_of,
    truth,
    unit_of_reduced,
    upstream,
)
from xentcheck.spec.batch import Batch

BLOCK = 2**16  # logits; a float64 block of them fits into a processor's cache
LINEAR_BLOCK = 2**20  # logits; larger, since each block adds to the whole gradient of the matrix


@dataclass(frozen=True)
class Expected:
    """The expected values of a batch whose positions are flattened to (P, C).

    losses, units: of each position, (P,), 0 where ignored. denominator: of the reduction. lse: the log-sum-exps (P,), from which
    ``gradient_blocks`` computes the gradient. gradients: for a fused linear loss, the gradients and their units, by argument.
    """

    losses: Array
    units: Array
    denominator: float
    lse: Array | None = None
    gradients: Mapping[str, tuple[Array, Array]] | None = None


def expected(batch: Batch) -> Expected:
    """The losses, and what the gradient is computed from. Takes some 10 MB in addition to the batch, and 20 ns per logit."""
    w, valid = class_weights(batch), batch.valid
    t = batch.target.reshape(-1).numpy()[valid].astype(np.int64)
    D = float(definition.denominator(batch.reduction, batch.options.get("normalizer"), w, t, len(valid)))
    if batch.is_linear:
        return _expected_of_linear(batch, D)
    losses, units, lses = np.zeros((3, len(valid)))
    slack = slack_of(batch, {})
    for here, x in _blocks(batch):
        lse = definition.log_sum_exp(x)
        wq, wanted = _wanted(batch, here, w, x)
        lse_slack = slack.of_lse(definition.softmax(x, lse), x, lse)
        losses[here] = definition.losses(wq, wanted, lse)
        units[here] = definition.loss_units(wq, wanted, lse, losses[here], rounding_of(batch), lse_slack)
        units[here] += slack.of_losses(wq, wanted, lse, losses[here])
        lses[here] = lse[:, 0]
    return Expected(losses, units, D, lses)


def reduced(batch: Batch, right: Expected) -> tuple[Array, Array]:
    """What is returned for the losses of the positions, (P,) or, with reduction sum and mean, (), and its unit."""
    if batch.reduction == "none":
        return right.losses, right.units
    slack, D = slack_of(batch, {}), right.denominator or 1.0
    of_D = slack.of_denominator(added_up_to_the_denominator(batch), D)
    unit = unit_of_reduced(right.losses, right.units, D, slack, of_D)
    return np.asarray(right.losses.sum() / D), np.asarray(unit)


def gradient_blocks(batch: Batch, right: Expected) -> Iterator[tuple[Array, Array, Array]]:
    """Some of the positions that count, and the gradient and its units there, (positions, C)."""
    assert right.lse is not None
    w, u, slack = class_weights(batch), upstream(batch) / (right.denominator or 1.0), slack_of(batch, {})
    of_D = slack.of_denominator(added_up_to_the_denominator(batch), right.denominator or 1.0)
    for here, x in _blocks(batch):
        lse, u_here = right.lse[here, None], u[here, None]
        wq = w * _target_distribution(batch, here)
        A, p = wq.sum(axis=1, keepdims=True), definition.softmax(x, lse)
        lse_slack = slack.of_lse(p, x, lse)
        units = definition.gradient_units(A, p, wq, x, lse, u_here, rounding_of(batch), lse_slack)
        units += slack.of_gradient(u_here, A, p, wq, of_D)
        yield here, u_here * definition.gradient(A, p, wq), units


def exact(batch: Batch, positions: Array, denominator: float) -> Truth:
    """The truth of some positions, in the precision of ``truth``."""
    above = torch.from_numpy(upstream(batch)[positions] / denominator)
    target = batch.target.reshape(-1)[positions]
    found = truth(Batch(flat(batch.input)[positions], target, _each(batch), above, "eager"), {})
    of_D = slack_of(batch, {}).of_denominator(added_up_to_the_denominator(batch), denominator)
    return replace(found, gradient_unit=found.gradient_unit + abs(found.gradient) * of_D)


def flat(values: Tensor) -> Tensor:
    """(N, C, d1, ...) as (P, C)."""
    return values.detach().movedim(1, -1).reshape(-1, values.shape[1])


def position_blocks(chosen: Array, classes: int) -> Iterator[Array]:
    """The numbers of the chosen positions, as many at a time as a block holds."""
    positions, step = np.flatnonzero(chosen), max(BLOCK // max(classes, 1), 1)
    for start in range(0, len(positions), step):
        yield positions[start : start + step]


def _blocks(batch: Batch) -> Iterator[tuple[Array, Array]]:
    """The positions that count, with their logits."""
    rows = flat(batch.input)
    for here in position_blocks(batch.valid, batch.classes):
        yield here, rows[here].double().numpy()


def _wanted(batch: Batch, here: Array, w: Array, x: Array) -> tuple[Array, Array]:
    """The weighted target distribution and the logits, of the classes with a weight in it: only the target's unless it is smoothed."""
    if batch.options.get("label_smoothing"):
        return w * _target_distribution(batch, here), x
    t = _classes(batch, here)
    return w[t], np.take_along_axis(x, t, axis=1)


def _target_distribution(batch: Batch, here: Array) -> Array:
    one_hot = definition.one_hot(_classes(batch, here)[:, 0], batch.classes)
    return definition.smoothed(one_hot, batch.options.get("label_smoothing", 0.0))


def _classes(batch: Batch, here: Array) -> Array:
    return batch.target.reshape(-1)[here].numpy().astype(np.int64)[:, None]


def _expected_of_linear(batch: Batch, denominator: float) -> Expected:
    above = torch.from_numpy(upstream(batch) / (denominator or 1.0))
    parameters = ParameterGradients(entries=sum(argument.numel() for argument in batch.differentiated.values()))
    step = max(LINEAR_BLOCK // batch.classes, 1)
    blocks = []
    for start in range(0, len(batch.target), step):
        here = slice(start, start + step)
        some = replace(
            batch, input=batch.input[here], target=batch.target[here], options=_each(batch), upstream=above[here]
        )
        blocks.append(truth(some, {}, parameters))

    def all_of(name: str) -> Array:
        return np.concatenate([getattr(block, name) for block in blocks])

    gradients = {"input": (all_of("gradient"), all_of("gradient_unit")), **parameters.gradients(rounding_of(batch))}
    return Expected(all_of("loss"), all_of("loss_unit"), denominator, gradients=gradients)


def _each(batch: Batch) -> dict[str, Any]:
    """The options for some of the positions, whose upstream gradients include the reduction."""
    return {name: option for name, option in batch.options.items() if name != "normalizer"} | {"reduction": "none"}
