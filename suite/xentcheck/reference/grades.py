"""Grades of accuracy: what an implementation may lose beyond the units of ``definition``, unless it states that it does not.

``sums: plain``. Roundings of a running sum are random at first, and grow with sqrt(n) for n terms; the units cover FEW. In a long sum they
are random no longer. There the bound of textbooks, n eps / 2, excuses more than the whole loss where 32,000 terms of 4e-8 stand beside a
1; sqrt(n) eps misses that such terms vanish one and all, and that equal terms round in the same direction. But an addition loses half a
unit in the last place of the total at most, and never more than the term that is added. The sum of these bounds holds for every order of
the terms, and in the example it is the tail itself.

``half_rounding: native``. As torch's own loss does on a CPU: the sum of exponentials, computed in float32, is rounded to the half type, and
so are its logarithm, the log-probabilities, the gradients that reach them, the sum over the positions, and its quotient. What is off by
the first of these is computed, not bounded, so that nothing else hides behind it. The logits of a linear layer are rounded, too.

``gradient_threshold`` is no grade but a claim: probabilities below it may be missing from the gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from xentcheck.reference.definition import Array, Rounding

FEW, MANY = 36, 1024


def lost_by_a_running_sum(terms: Array, f: float) -> Array:
    """What a running sum over the last axis may lose at most, in any order, in the precision f."""
    size = np.where(np.isfinite(terms), abs(terms), 0)
    return np.minimum(size, f / 2 * size.sum(axis=-1, keepdims=True)).sum(axis=-1)


def lost_by_a_half_type(x: Array, lse: Array, e: float) -> Array:
    """What lse is off by where the sum of exponentials is rounded to a type whose eps is e, (P, 1)."""
    with np.errstate(all="ignore"):
        total = np.exp((lse - x.max(axis=1, keepdims=True, initial=-np.inf)).astype(np.float64))
        fraction, exponent = np.frexp(total)
        rounded = np.ldexp(np.rint(2 / e * fraction) * e / 2, exponent)
        off = abs(np.log(rounded / total))
    return np.where(np.isfinite(off), off, 0.0)


class Slack:
    """What the units grow by for an implementation of the grades in ``answers``; a grade that is left out is the lower one.

    Bounds of the whole error are divided by the number of units that are allowed. Shapes and letters are those of ``definition``.
    rounds_often: whether a half type may be rounded to before the result is.
    """

    def __init__(self, rounding: Rounding, answers: Mapping[str, str], allowed: float) -> None:
        self._rounding, self._allowed = rounding, allowed
        self._threshold = float(answers.get("gradient_threshold", 0))
        self._is_plain = answers.get("sums") != "careful"
        self.rounds_often = rounding.e > rounding.f and answers.get("half_rounding") != "once"

    def of_sums(self, terms: Array, scale: Array | float = 1.0) -> Array:
        """Of the sums of terms over the last axis. scale: how much larger than their sum the numbers are that are rounded."""
        terms = np.asarray(terms, dtype=np.float64)
        if not self._is_plain or terms.shape[-1] <= FEW:
            return np.zeros(terms.shape[:-1])
        count = (terms != 0).sum(axis=-1)
        size = np.where(np.isfinite(terms), abs(terms), 0).sum(axis=-1)
        slack = np.maximum(np.sqrt(count / FEW) - 1, 0) * self._rounding.f * size * scale
        if terms.shape[-1] > MANY:
            slack = slack + np.where(count > MANY, lost_by_a_running_sum(terms, self._rounding.f) / self._allowed, 0)
        return slack

    def of_lse(self, p: Array, x: Array, lse: Array) -> Array:
        """Of each position's log-sum-exp, (P, 1), which may have been added up as logarithms."""
        level = np.asarray(lse, dtype=np.float64)[:, 0]
        slack = self.of_sums(p, np.maximum(1, abs(np.where(np.isfinite(level), level, 0))))[:, None]
        if self.rounds_often:
            slack = slack + lost_by_a_half_type(x, lse, self._rounding.e) / self._allowed
        return slack

    def of_losses(self, wq: Array, x: Array, lse: Array, losses: Array) -> Array:
        """Of each position's loss, beside that of its log-sum-exp."""
        slack = self.of_sums(wq * (lse - x))
        if self.rounds_often:  # products with weights and shares are rounded, too
            is_scaled = ((wq != 0) & (wq != 1)).any(axis=1)
            slack = slack + np.where(is_scaled, self._rounding.e / 2 * abs(losses), 0) / self._allowed
        return slack

    def of_total(self, total: Any) -> Any:
        """Of the sum of all losses, which a half type holds before it is divided."""
        return self._rounding.e / 2 * abs(total) / self._allowed if self.rounds_often else 0.0

    def of_gradient(self, u: Array, A: Array, p: Array, wq: Array, of_D: float) -> Array:
        """Of each position's gradient, beside that of its log-sum-exp. of_D: of the denominator."""
        size = abs(A * p - wq)
        slack = p * self.of_sums(wq)[:, None] + size * of_D
        slack = slack + np.where(p < self._threshold, abs(A) * p, 0) / self._allowed
        if self.rounds_often:
            # With one class in the target, the upstream gradient that reaches it is rounded for all classes alike.
            is_spread = (wq != 0).sum(axis=1, keepdims=True) > 1
            e = self._rounding.e / self._allowed
            slack = slack + e * size + np.where(is_spread, e / 2 * (abs(wq) + abs(A) * p), 0)
            return abs(u) * slack + e / 2 * self._rounding.tiny * size  # u may be subnormal in the half type
        return abs(u) * slack

    def of_denominator(self, weights: Array | None, D: Any) -> float:
        """Of the denominator, relative to it. weights: what it is the sum of; None where it is given."""
        return 0.0 if weights is None else float(self.of_sums(weights) / abs(D))
