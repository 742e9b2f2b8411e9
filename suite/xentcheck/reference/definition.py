"""The definition of cross entropy, as formulas on NumPy arrays. Everything that computes a right answer uses these functions.

With x the logits of a position, q its target distribution (one-hot or given, then smoothed: q_c = s/C + (1 - s) [c = t]), w the
class weights and lse = log sum_c exp(x_c):

    loss of a position     l = sum_c w_c q_c (lse - x_c)        over the classes with w_c q_c != 0
    sum, mean              the sum of the losses; that sum over D, the sum of w_t over the valid positions; of given
                           probabilities, the number of positions; or what the case gives as the normalizer
    gradient               u / D (A p_j - w_j q_j)              with p = softmax(x), A = sum_c w_c q_c, u the upstream gradient
    its derivative along v u A / D p_j (v_j - sum_k p_k v_k)

as in the documentation of torch.nn.CrossEntropyLoss and, for smoothing, Szegedy et al. 2016 (arXiv:1512.00567). Ignored positions
are deleted before anything is computed. No autograd, and no code of any implementation.

Shapes: P positions that count, C classes; x, p, q and wq = w q are (P, C), lse and A (P, 1), losses and their units (P,).
exp and log are passed where the numbers are not NumPy's own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray


def one_hot(t: Array, classes: int) -> Array:
    """(P, C): 1 at each position's target class t, 0 elsewhere."""
    return (np.arange(classes) == t[:, None]).astype(np.float64)


def smoothed(wanted: Array, s: Any) -> Array:
    """The target distribution q: the wanted one, with a share s spread evenly over the classes."""
    return s / max(wanted.shape[1], 1) + wanted * (1 - s)


def log_sum_exp(x: Array, exp: Any = np.exp, log: Any = np.log) -> Array:
    top = x.max(axis=1, keepdims=True, initial=-np.inf)
    return np.where(top == np.inf, top, top + log(exp(x - top).sum(axis=1, keepdims=True)))


def softmax(x: Array, lse: Array, exp: Any = np.exp) -> Array:
    return exp(x - lse)


def losses(wq: Array, x: Array, lse: Array) -> Array:
    """The loss of each position. A class of weight 0 contributes nothing, even where its logit is infinite."""
    return np.where(wq != 0, wq * (lse - x), 0).sum(axis=1)


def denominator(reduction: str, normalizer: Any, w: Array, t: Array | None, positions: int) -> Any:
    """What the sum of the losses is divided by. t: the target classes, None where probabilities are given."""
    if reduction != "mean":
        return 1.0
    if normalizer is not None:
        return float(normalizer)
    return float(positions) if t is None else w[t].sum()


def gradient(A: Array, p: Array, wq: Array) -> Array:
    """The gradient of each position's loss with respect to its logits."""
    return A * p - wq


def second_derivative(uA: Array, p: Array, v: Array) -> Array:
    """The derivative of u times that gradient along v."""
    return uA * p * (v - (p * v).sum(axis=1, keepdims=True))


def scatter(values: Array, valid: Array) -> Array:
    """The values of the valid positions among zeros for the others."""
    full = np.zeros((len(valid), *values.shape[1:]), dtype=values.dtype)
    full[valid] = values
    return full


def linear(hidden: Array, matrix: Array, bias: Array | None) -> Array:
    """The logits (P, C) of a linear layer from hidden states (P, H), with a matrix (C, H) and perhaps a bias (C,)."""
    product = hidden @ matrix.T
    return product if bias is None else product + bias


def linear_gradients(d: Array, hidden: Array, matrix: Array) -> dict[str, tuple[Array, Array]]:
    """The chain rule: from d, the gradient of the logits, that of each argument of ``linear``, as two factors to be multiplied."""
    ones = np.ones((len(d), 1), dtype=d.dtype)
    return {"input": (d, matrix), "linear_weight": (d.T, hidden), "linear_bias": (d.T, ones)}


# --- units: the rounding error of a good implementation, which computes in float32 (float64 for float64) and rounds its result once

# How many units of error an answer may have, calibrated on correct implementations written in different ways.
ALLOWED_UNITS = {"float64": 3.0, "float32": 3.0, "bfloat16": 1.0, "float16": 1.0}


class Rounding(NamedTuple):
    """e: the eps of what the result is rounded to. f: the eps computed in. tiny: the smallest normal number of the result's dtype.
    products: the eps of the type that matrix products may round their operands to, over the units that are allowed; 0 if they do not."""

    e: float
    f: float
    tiny: float
    products: float = 0.0


def loss_units(
    wq: Array, x: Array, lse: Array, losses: Array, rounding: Rounding, lse_slack: Array | float = 0.0
) -> Array:
    """e |l| + f sum_c w_c q_c max(1, |lse|, |x_c|) + A (what the grade lets lse be off by) + tiny

    The 1: the sum of exponentials, at least 1 after the largest is taken out, is rounded before its logarithm is taken.
    """
    e, f, tiny, _ = rounding
    wq = abs(wq)
    size = np.where(wq != 0, wq * (f * np.maximum(_size(x, lse), 1) + lse_slack), 0)
    return e * abs(losses) + size.sum(axis=1) + tiny


def gradient_units(
    A: Array, p: Array, wq: Array, x: Array, lse: Array, u: Array, rounding: Rounding, lse_slack: Array | float = 0.0
) -> Array:
    """|u| / D (e (|A p_j - w_j q_j| + A p_j |log p_j|) + f (A p_j (1 + max(|x_j|, |lse|)) + w_j q_j) + A p_j (that of lse)) + tiny

    u: the upstream gradient over the denominator, (P, 1).
    """
    e, f, tiny, _ = rounding
    p_log_p = np.where(p > 0, p * abs(x - lse), 0)
    p_size = np.where(p > 0, p * (1 + _size(x, lse)), 0)
    A_size = abs(A)
    units = e * (abs(A * p - wq) + A_size * p_log_p) + f * (A_size * p_size + abs(wq)) + A_size * p * lse_slack
    return abs(u) * units + tiny


def second_units(uA: Array, p: Array, x: Array, lse: Array, v: Array, rounding: Rounding) -> Array:
    """Units of the second derivative: each product and the sum may be rounded, and p has the error of lse."""
    size = np.where(p > 0, p * (2 + np.maximum(abs(x), abs(lse))), 0)
    return abs(uA) * rounding.e * size * (abs(v) + (p * abs(v)).sum(axis=1, keepdims=True)) + rounding.tiny


def _size(x: Array, lse: Array) -> Array:
    size = np.maximum(abs(lse), abs(x))
    return np.where(np.isfinite(np.asarray(size, dtype=np.float64)), size, 0)
