"""The truth of a fused linear loss: logits from hidden states h (N, H), matrix V (C, H) and bias b (C), and the gradients of these three.

By definition x = h V^T + b, and with d the gradient of the logits, the chain rule gives

    gradient of h = d V,    of V = d^T h,    of b = the sum of d over the positions

An implementation's rounding, beside that of a loss of given logits (``reference``; e, f, A, p, q, w, u, D as there):

- a sum of n products in the precision f, one after the other, is off by up to r_n f times the sum of their magnitudes, with
  r_n = 1 + sqrt(n) / 2 (Higham and Mary 2019, doi:10.1137/18M1226312: roundings are independent, so they grow with sqrt(n));
- so each logit is off by s_c = r_H f (sum_k |h_k V_ck| + |b_c|), which moves the loss by sum_c |A p_c - w_c q_c| s_c, and d_j by
  |u| / D A p_j (s_j + sum_c p_c s_c);
- the sums of the gradients, of terms d_i y_i, add up the errors of the d_i times |y_i|, and their own;
- matrix units take operands of the case's dtype: where that is a half type, each d_i may be rounded to it, to multiples of the
  smallest subnormal number at least. Independent again, this adds e sqrt(sum_i (d_i y_i)^2), five standard deviations; among
  millions of entries some are further off (``Sums``);
- the result is rounded once: e |sum|.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from xentcheck.batch import Batch

Array = np.ndarray


class Parts:
    """Hidden states of the valid positions, matrix and bias, in the precision that ``convert`` brings them to."""

    def __init__(self, batch: Batch, valid: Array, convert: Callable[[Array], Array]) -> None:
        def converted(tensor: Any) -> Array:
            return convert(tensor.detach().double().cpu().numpy())

        self.hidden = converted(batch.input)[valid]
        self.matrix = converted(batch.options["linear_weight"])
        bias = batch.options.get("linear_bias")
        self.bias = None if bias is None else converted(bias)

    def logits(self) -> Array:
        with np.errstate(all="ignore"):
            product = self.hidden @ self.matrix.T
            return product if self.bias is None else product + self.bias

    def units(self, f: float, p: Array, A: Array, wq: Array) -> tuple[Array, Array]:
        """What the rounding of the logits adds to the units of each position's loss, and of d for u / D = 1."""
        s = (
            f
            * _growth(self.hidden.shape[1])
            * (abs(self.hidden) @ abs(self.matrix).T + (0 if self.bias is None else _finite(abs(self.bias))))
        )
        along = (p * s).sum(axis=1, keepdims=True)
        return (abs(A * p - wq) * s).sum(axis=1), abs(A) * p * (s + along)

    def gradient(self, d: Array, d_unit: Array, e: float, f: float, tiny: float, spread: float) -> tuple[Array, Array]:
        """The gradient of the hidden states of the valid positions, and its units."""
        return _Sum().add(d, d_unit, self.matrix).result(e, f, tiny, spread)


class Sums:
    """The gradients of matrix and bias, to which some positions after the other are added.

    entries: how many numbers all gradients have together, if so many that some of them are further off than five standard deviations:
    the largest of n normal ones is beyond sqrt(2 ln(1000 n)) only once in a thousand times (by the bound exp(-z^2 / 2) for each).
    """

    def __init__(self, entries: int = 1) -> None:
        self._sums: dict[str, _Sum] = {}
        self.spread = max(1.0, math.sqrt(2 * math.log(1000 * entries)) / 5)

    def add(self, parts: Parts, d: Array, d_unit: Array) -> None:
        others = {"linear_weight": parts.hidden}
        if parts.bias is not None:
            others["linear_bias"] = np.ones((len(d), 1), dtype=d.dtype)
        for name, other in others.items():
            self._sums.setdefault(name, _Sum()).add(d.T, d_unit.T, other)

    def gradients(self, e: float, f: float, tiny: float) -> dict[str, tuple[Array, Array]]:
        """By argument, with their units."""
        found = {name: one.result(e, f, tiny, self.spread) for name, one in self._sums.items()}
        if "linear_bias" in found:
            value, unit = found["linear_bias"]
            found["linear_bias"] = value[:, 0], unit[:, 0]
        return found


class _Sum:
    """A product of two matrices, whose inner dimension may come in parts, and its unit."""

    def __init__(self) -> None:
        self.value = self.from_left = self.sizes = self.squares = self.magnitudes = 0.0
        self.terms = 0

    def add(self, left: Array, left_unit: Array, right: Array) -> _Sum:
        self.value = self.value + left @ right
        self.from_left = self.from_left + left_unit @ abs(right)
        self.sizes = self.sizes + abs(left) @ abs(right)
        self.squares = self.squares + (left * left) @ (right * right)
        self.magnitudes = self.magnitudes + abs(right).sum(axis=0)
        self.terms += len(right)
        return self

    def result(self, e: float, f: float, tiny: float, spread: float) -> tuple[Array, Array]:
        unit = e * abs(self.value) + self.from_left + f * _growth(self.terms) * self.sizes + tiny
        if e > f:
            unit = unit + spread * e * np.sqrt(self.squares) + e * tiny * self.magnitudes
        return self.value, unit


def _growth(terms: int) -> float:
    return 1 + math.sqrt(terms) / 2


def _finite(values: Array) -> Array:
    return np.where(np.isfinite(values.astype(np.float64)), values, 0)
