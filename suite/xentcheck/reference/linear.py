"""The truth of a fused linear loss: logits from hidden states h (N, H), matrix V (C, H) and bias b (C), and the gradients of these three.

By definition x = h V^T + b, and with d the gradient of the logits, the chain rule gives

    gradient of h = d V,    of V = d^T h,    of b = the sum of d over the positions

An implementation's rounding, in addition to that of a loss of given logits (``definition``; e, f, A, p, q, w, u, D as there):

- a sum of n products in the precision f, one after the other, is off by up to r_n f times the sum of their magnitudes, with
  r_n = 1 + sqrt(n) / 2 (Higham and Mary 2019, doi:10.1137/18M1226312: roundings are independent, so they grow with sqrt(n));
- so each logit is off by s_c = r_H f (sum_k |h_k V_ck| + |b_c|), which moves the loss by sum_c |A p_c - w_c q_c| s_c, and d_j by
  |u| / D A p_j (s_j + sum_c p_c s_c);
- the sums of the gradients, of terms d_i y_i, add up the errors of the d_i times |y_i|, and their own;
- matrix units take operands of the case's dtype: where that is a half type, each d_i may be rounded to it, to multiples of the
  smallest subnormal number at least. Independent again, this adds e sqrt(sum_i (d_i y_i)^2), five standard deviations; among
  millions of entries some are further off (``ParameterGradients``);
- an implementation may state that it rounds the operands of products to a shorter type, with an eps of e_p (``PRODUCTS``). Both are
  rounded, independently, which moves each logit by 2 e_p sqrt(sum_k (h_k V_ck)^2), and the sums of the gradients likewise;
- the result is rounded once: e |sum|; in the grade ``half_rounding: native`` each logit may be rounded, too, by e / 2 |x_c|.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from xentcheck.reference import definition
from xentcheck.reference.definition import Rounding
from xentcheck.spec.batch import Batch

Array = np.ndarray

# The eps of the types that products may round their operands to, by what an implementation says it computes in.
PRODUCTS = {"tf32": 2.0**-10, "bfloat16": 2.0**-7}


class Layer:
    """Hidden states of the valid positions, matrix and bias, in the precision that ``convert`` gives them."""

    def __init__(self, batch: Batch, valid: Array, convert: Callable[[Array], Array]) -> None:
        def converted(tensor: Any) -> Array:
            return convert(tensor.detach().double().cpu().numpy())

        self.hidden = converted(batch.input)[valid]
        self.matrix = converted(batch.options["linear_weight"])
        bias = batch.options.get("linear_bias")
        self.bias = None if bias is None else converted(bias)

    def logits(self) -> Array:
        return definition.linear(self.hidden, self.matrix, self.bias)

    def units(
        self, rounding: Rounding, p: Array, A: Array, wq: Array, x: Array, are_rounded: bool
    ) -> tuple[Array, Array]:
        """What the rounding of the logits adds to the units of each position's loss, and of d for u / D = 1.

        are_rounded: whether the logits may be rounded to the case's dtype.
        """
        magnitudes = abs(self.hidden) @ abs(self.matrix).T
        if self.bias is not None:
            magnitudes = magnitudes + np.where(np.isfinite(self.bias.astype(np.float64)), abs(self.bias), 0)
        squares = (self.hidden * self.hidden) @ (self.matrix * self.matrix).T
        s = rounding.f * _growth(self.hidden.shape[1]) * magnitudes + (rounding.e / 2 * abs(x) if are_rounded else 0)
        s = s + 2 * rounding.products * np.sqrt(squares.astype(np.float64))
        along = (p * s).sum(axis=1, keepdims=True)
        return (abs(A * p - wq) * s).sum(axis=1), abs(A) * p * (s + along)

    def factors(self, d: Array, d_unit: Array) -> dict[str, tuple[Array, Array, Array]]:
        """For each argument's gradient its first factor, the unit of that, and its second factor."""
        units = definition.linear_gradients(d_unit, self.hidden, self.matrix)
        factors = definition.linear_gradients(d, self.hidden, self.matrix)
        return {name: (left, units[name][0], right) for name, (left, right) in factors.items()}

    def gradient(self, d: Array, d_unit: Array, rounding: Rounding, spread: float) -> tuple[Array, Array]:
        """The gradient of the hidden states of the valid positions, and its units."""
        return _Product().add(*self.factors(d, d_unit)["input"]).result(rounding, spread)


class ParameterGradients:
    """The gradients of matrix and bias, to which blocks of positions are added one after the other.

    entries: how many numbers all gradients have together. Among very many, some are off by more than five standard deviations: the largest
    of n normal ones exceeds sqrt(2 ln(1000 n)) only once in a thousand times (by the bound exp(-z^2 / 2) for each).
    """

    def __init__(self, entries: int = 1) -> None:
        self._products: dict[str, _Product] = {}
        self.spread = max(1.0, math.sqrt(2 * math.log(1000 * entries)) / 5)

    def add(self, layer: Layer, d: Array, d_unit: Array) -> None:
        names = ("linear_weight",) if layer.bias is None else ("linear_weight", "linear_bias")
        factors = layer.factors(d, d_unit)
        for name in names:
            self._products.setdefault(name, _Product()).add(*factors[name])

    def gradients(self, rounding: Rounding) -> dict[str, tuple[Array, Array]]:
        """By argument, with their units."""
        found = {name: product.result(rounding, self.spread) for name, product in self._products.items()}
        if "linear_bias" in found:
            value, unit = found["linear_bias"]
            found["linear_bias"] = value[:, 0], unit[:, 0]
        return found


class _Product:
    """A product of two matrices, added up over parts of the inner dimension, and its unit."""

    def __init__(self) -> None:
        self.value = self.from_left = self.sizes = self.squares = self.magnitudes = np.zeros(())
        self.terms = 0

    def add(self, left: Array, left_unit: Array, right: Array) -> _Product:
        self.value = self.value + left @ right
        self.from_left = self.from_left + left_unit @ abs(right)
        self.sizes = self.sizes + abs(left) @ abs(right)
        self.squares = self.squares + (left * left) @ (right * right)
        self.magnitudes = self.magnitudes + abs(right).sum(axis=0)
        self.terms += len(right)
        return self

    def result(self, rounding: Rounding, spread: float) -> tuple[Array, Array]:
        e, f, tiny, products = rounding
        unit = e * abs(self.value) + self.from_left + f * _growth(self.terms) * self.sizes + tiny
        operands = max(e if e > f else 0, 2 * products)
        if operands:
            unit = unit + spread * operands * np.sqrt(self.squares) + operands * tiny * self.magnitudes
        return self.value, unit


def _growth(terms: int) -> float:
    return 1 + math.sqrt(terms) / 2
