"""The truth, against literal answers, an independent computation with 50 digits, finite differences and the deletion rule."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from xentcheck.reference import truth as truths
from xentcheck.reference.truth import relevant_conventions, truth
from xentcheck.spec.batch import Batch

INF, NAN = math.inf, math.nan
DIGITS = 50


def batch_of(logits, target, upstream=None, direction=None, dtype=torch.float64, **options):
    logits = torch.as_tensor(logits, dtype=torch.float64).to(dtype)
    upstream = None if upstream is None else torch.as_tensor(upstream, dtype=dtype)
    mode = "eager" if direction is None else "double_backward"
    return Batch(logits, torch.as_tensor(target), options, upstream, mode, direction)


def random_batch(
    seed,
    shape=(4, 5),
    dtype=torch.float64,
    reduction="mean",
    smoothing=None,
    weighted=False,
    ignored=0,
    scale=1.0,
    direction=False,
):
    """Finite logits; ``ignored`` of the positions are. The mean's upstream is one number, that of none one per position."""
    draw = np.random.default_rng(seed)
    logits = torch.from_numpy(np.asarray(draw.normal(size=shape) * scale)).to(dtype)
    axis = 0 if len(shape) == 1 else 1
    positions = shape[:axis] + shape[axis + 1 :]
    target = np.asarray(draw.integers(shape[axis], size=positions))
    target.reshape(-1)[:ignored] = -100
    options = {"reduction": reduction, "ignore_index": -100}
    if smoothing is not None:
        options["label_smoothing"] = smoothing
    if weighted:
        options["weight"] = torch.from_numpy(draw.uniform(0.25, 2, size=shape[axis])).to(dtype)
    upstream = torch.from_numpy(np.asarray(draw.normal(size=positions if reduction == "none" else ()))).to(dtype)
    v = draw.normal(size=shape) if direction else None
    return Batch(logits, torch.from_numpy(target), options, upstream, "double_backward" if direction else "eager", v)


def numbers(tensor):
    """The same values as mpmath numbers, in an array of objects of the same shape."""
    values = tensor.double().numpy() if isinstance(tensor, torch.Tensor) else np.asarray(tensor, dtype=float)
    exact = np.empty(values.shape, dtype=object)
    for where in np.ndindex(values.shape):
        exact[where] = mpmath.mpf(float(values[where]))
    return exact


def exact_losses(x, batch):
    """The loss of each position that is not ignored, element by element from the definition, and the mean's divisor."""
    axis = 0 if x.ndim == 1 else 1
    classes = x.shape[axis]
    smoothing = mpmath.mpf(batch.options.get("label_smoothing", 0.0))
    weight = batch.options.get("weight")
    losses, divisor = {}, mpmath.mpf(0)
    for where in np.ndindex(tuple(batch.target.shape)):
        t = int(batch.target[where])
        if t in batch.ignore_values:
            continue
        row = [x[(*where[:axis], c, *where[axis:])] for c in range(classes)]
        lse = mpmath.log(mpmath.fsum(mpmath.exp(value) for value in row))
        total = mpmath.mpf(0)
        for c in range(classes):
            q = smoothing / classes + (1 - smoothing if c == t else 0)
            w = mpmath.mpf(1 if weight is None else float(weight[c]))
            total += w * q * (lse - row[c])
        losses[where] = total
        divisor += mpmath.mpf(1 if weight is None else float(weight[t]))
    return losses, divisor


def exact_loss(x, batch):
    """What is returned: an array of the loss's shape."""
    losses, divisor = exact_losses(x, batch)
    if batch.reduction == "none":
        shaped = np.full(tuple(batch.target.shape), mpmath.mpf(0), dtype=object)
        for where, loss in losses.items():
            shaped[where] = loss
        return shaped
    total = mpmath.fsum(losses.values())
    return np.asarray(total / divisor if batch.reduction == "mean" else total, dtype=object)


def scalar(x, batch):
    """The loss times the upstream gradient, summed: what is differentiated."""
    loss = exact_loss(x, batch)
    upstream = np.broadcast_to(numbers(1.0 if batch.upstream is None else batch.upstream), loss.shape)
    return mpmath.fsum(loss[where] * upstream[where] for where in np.ndindex(loss.shape))


def difference_gradient(x, batch, h):
    """Central differences of the loss; with 50 digits their error is that of the formula, about h squared."""
    gradient = np.empty(x.shape, dtype=object)
    for where in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[where] += h
        down[where] -= h
        gradient[where] = (scalar(up, batch) - scalar(down, batch)) / (2 * h)
    return gradient


def units_off(found, exact, unit):
    """The largest distance between two arrays in units, computed with 50 digits."""
    pairs = zip(numbers_of(found), numbers_of(exact), np.asarray(unit, dtype=float).reshape(-1), strict=True)
    return max((float(abs(a - b) / u) if u else float(a != b) for a, b, u in pairs), default=0.0)


def numbers_of(array):
    return [long_number(v) for v in np.asarray(array).reshape(-1)]


def long_number(value):
    """Long double has no lossless way into mpmath but this one."""
    if isinstance(value, mpmath.mpf):
        return value
    high = float(value)
    return mpmath.mpf(high) + mpmath.mpf(float(value - np.longdouble(high)))


def assert_is(found, literal, tolerance=1e-15):
    np.testing.assert_allclose(np.asarray(found, dtype=float), literal, rtol=tolerance, atol=tolerance)


LOG2, LOG3 = math.log(2), math.log(3)


@pytest.mark.parametrize(
    ("reduction", "loss", "gradient"),
    [
        ("none", [LOG2, 0, math.log(4)], [[0.5, -0.5], [0, 0], [-0.75, 0.75]]),
        ("sum", 3 * LOG2, [[0.5, -0.5], [0, 0], [-0.75, 0.75]]),
        ("mean", 1.5 * LOG2, [[0.25, -0.25], [0, 0], [-0.375, 0.375]]),
    ],
)
def test_by_hand_with_one_position_ignored(reduction, loss, gradient):
    batch = batch_of([[0, 0], [7, 9], [0, LOG3]], [1, -100, 0], reduction=reduction)
    right = truth(batch, {})
    assert_is(right.loss, loss)
    assert_is(right.gradient, gradient)
    assert right.ignored.tolist() == [[False, False], [True, True], [False, False]]


def test_by_hand_with_weights():
    """Softmax (1/4, 3/4); losses 2 log 4 and 3 log 4/3; the mean divides by the weights of the targets, 5."""
    batch = batch_of([[0, LOG3], [0, LOG3]], [0, 1], weight=torch.tensor([2.0, 3.0]))
    right = truth(batch, {})
    assert_is(right.loss, (2 * math.log(4) + 3 * math.log(4 / 3)) / 5)
    assert_is(right.gradient, [[-1.5 / 5, 1.5 / 5], [0.75 / 5, -0.75 / 5]])


def test_by_hand_with_smoothing_and_weights():
    """q = (0.6, 0.4), A = 2 * 0.6 + 1 * 0.4 = 1.6; the divisor is w_t, whatever the smoothing."""
    batch = batch_of([[0, LOG3]], [0], weight=torch.tensor([2.0, 1.0]), label_smoothing=0.8)
    right = truth(batch, {})
    assert_is(right.loss, (1.2 * math.log(4) + 0.4 * math.log(4 / 3)) / 2)
    assert_is(right.gradient, [[(1.6 * 0.25 - 1.2) / 2, (1.6 * 0.75 - 0.4) / 2]])


def test_by_hand_unbatched_and_k_dimensional():
    assert_is(truth(batch_of([0, LOG3], 0), {}).gradient, [-0.75, 0.75])
    right = truth(batch_of([[[0, 5, 0], [LOG3, 5, 0]]], [[1, 0, -100]], reduction="none"), {})
    assert_is(right.loss, [[math.log(4 / 3), LOG2, 0]])
    assert_is(right.gradient, [[[0.25, -0.5, 0], [-0.25, 0.5, 0]]])


def test_by_hand_upstream_scales_each_position():
    batch = batch_of([[0, 0], [0, 0]], [0, 1], upstream=[4.0, 0.0], reduction="none")
    right = truth(batch, {})
    assert_is(right.loss, [LOG2, LOG2])
    assert_is(right.gradient, [[-2, 2], [0, 0]])


def test_by_hand_second_derivative():
    """p (v - sum p v) with p = (1/4, 3/4) and v = (1, 0)."""
    batch = batch_of([[0, LOG3]], [0], direction=np.array([[1.0, 0.0]]), reduction="sum")
    assert_is(truth(batch, {}).second, [[3 / 16, -3 / 16]])


def test_units_by_hand():
    """Two equal logits in float32: |loss| and lse are log 2, p is 1/2, everything is computed in float32, and no error of a logarithm
    is counted for less than 1."""
    e, tiny = 2.0**-23, 2.0**-126
    right = truth(batch_of([[0, 0]], [0], dtype=torch.float32), {})
    assert_is(right.loss_unit, e * (LOG2 + 1) + tiny)
    target, other = e * (0.5 + 0.5 * LOG2 + 0.5 * (1 + LOG2) + 1), e * (0.5 + 0.5 * LOG2 + 0.5 * (1 + LOG2))
    np.testing.assert_allclose(right.gradient_unit.astype(float), [[target + tiny, other + tiny]], rtol=1e-14)


def test_a_logarithm_near_zero_is_not_asked_for_more_than_its_sum_can_hold():
    """log(1 + exp(-12)): in float32 the sum is the next number above 1, and its logarithm is off by half of an eps."""
    right = truth(batch_of([[0, -12]], [0], dtype=torch.float32), {})
    found = float(torch.log(torch.tensor([0.0, -12.0]).exp().sum()))
    assert abs(found - float(right.loss)) > 0.1 * 2.0**-23
    assert abs(found - float(right.loss)) < float(right.loss_unit)


def test_units_of_half_types_hold_one_rounding_of_the_result_and_float32_inside():
    e, f, tiny = 2.0**-7, 2.0**-23, 2.0**-126
    right = truth(batch_of([[0, 0]], [0], dtype=torch.bfloat16), {"half_rounding": "once"})
    np.testing.assert_allclose(float(right.loss_unit), e * LOG2 + f + tiny, rtol=1e-14)


GRID = list(itertools.product(["mean", "sum", "none"], [None, 0.1, 1.0], [False, True]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_agrees_with_fifty_digits(dtype):
    with mpmath.workdps(DIGITS):
        for seed, (reduction, smoothing, weighted) in enumerate(GRID):
            batch = random_batch(seed, (3, 4), dtype, reduction, smoothing, weighted, ignored=1, scale=3)
            x, right = numbers(batch.input), truth(batch, {})
            assert units_off(right.loss, exact_loss(x, batch), right.loss_unit) < 0.01
            exact = difference_gradient(x, batch, mpmath.mpf(10) ** -16)
            assert units_off(right.gradient, exact, right.gradient_unit) < 0.01


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from([(3,), (1, 1), (2, 7), (5, 3), (2, 3, 2), (1, 2, 2, 3)]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    smoothing=st.sampled_from([None, 0.0, 0.3, 1.0]),
    weighted=st.booleans(),
    scale=st.sampled_from([0.0, 1.0, 30.0, 300.0]),
)
def test_any_shape_and_option_agrees_with_fifty_digits(seed, shape, dtype, reduction, smoothing, weighted, scale):
    batch = random_batch(
        seed, shape, dtype, reduction, smoothing, weighted, ignored=1 if math.prod(shape) > 6 else 0, scale=scale
    )
    right = truth(batch, {})
    with mpmath.workdps(DIGITS if scale < 30 else 400):
        x = numbers(batch.input)
        assert units_off(right.loss, exact_loss(x, batch), right.loss_unit) < 0.01
        exact = difference_gradient(x, batch, mpmath.mpf(10) ** -16)
        assert units_off(right.gradient, exact, right.gradient_unit) < 0.01


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_second_derivative_is_that_of_the_gradient(dtype):
    with mpmath.workdps(DIGITS):
        for seed, (reduction, smoothing, weighted) in enumerate(GRID[::4]):
            batch = random_batch(seed, (3, 3), dtype, reduction, smoothing, weighted, ignored=1, direction=True)
            x, v, h = numbers(batch.input), numbers(batch.direction), mpmath.mpf(10) ** -10
            step = mpmath.mpf(10) ** -20
            exact = (difference_gradient(x + h * v, batch, step) - difference_gradient(x - h * v, batch, step)) / (
                2 * h
            )
            right = truth(batch, {})
            assert units_off(right.second, exact, right.second_unit) < 0.01


def test_no_second_derivative_unless_asked():
    assert truth(random_batch(0), {}).second is None


ALL_IGNORED = {"logits": [[1.0, 2.0], [NAN, INF]], "target": [-100, -100]}


@pytest.mark.parametrize(("answer", "loss"), [("nan", NAN), ("zero", 0.0)])
def test_mean_over_no_position_is_the_convention_and_its_gradient_zero(answer, loss):
    batch = batch_of(**ALL_IGNORED)
    assert relevant_conventions(batch) == {"empty_mean"}
    right = truth(batch, {"empty_mean": answer})
    np.testing.assert_equal(np.asarray(right.loss, dtype=float), loss)
    assert right.gradient.tolist() == [[0, 0], [0, 0]]
    assert right.ignored.all()


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_sum_and_none_over_no_position_follow_no_convention(reduction):
    batch = batch_of(**ALL_IGNORED, reduction=reduction)
    assert not relevant_conventions(batch)
    assert not truth(batch, {}).loss.any()


@pytest.mark.parametrize("shape", [(0, 5), (2, 5, 0), (0, 0)])
def test_empty_batch_is_a_mean_over_no_position(shape):
    batch = batch_of(torch.zeros(shape), torch.zeros(shape[:1] + shape[2:], dtype=torch.long))
    assert relevant_conventions(batch) == {"empty_mean"}
    assert truth(batch, {}).gradient.shape == shape


@pytest.mark.parametrize(("answer", "loss"), [("nan", NAN), ("inf", INF)])
def test_valid_row_with_plus_infinity_follows_the_convention(answer, loss):
    batch = batch_of([[INF, 1.0], [0.0, 0.0]], [1, 0], reduction="none")
    assert relevant_conventions(batch) == {"infinite_row"}
    right = truth(batch, {"infinite_row": answer})
    np.testing.assert_equal(right.loss.astype(float), [loss, np.log(np.longdouble(2)).astype(float)])
    assert np.isnan(right.gradient[0].astype(float)).all(), "no definition says what it is"
    assert_is(right.gradient[1], [-0.5, 0.5])


def test_row_with_plus_infinity_and_nan_is_nan_under_every_convention():
    batch = batch_of([[INF, NAN], [0.0, 0.0]], [1, 0], reduction="none")
    assert not relevant_conventions(batch)
    assert np.isnan(float(truth(batch, {}).loss[0]))


@pytest.mark.parametrize(("answer", "loss"), [("nan", NAN), ("zero", 0.0)])
def test_infinite_term_under_a_zero_weight_follows_the_convention(answer, loss):
    batch = batch_of(
        [[-INF, 1.0, 0.0], [0.0, 0.0, 0.0]], [0, 2], weight=torch.tensor([0.0, 1.0, 1.0]), reduction="none"
    )
    assert relevant_conventions(batch) == {"zero_times_infinity"}
    right = truth(batch, {"zero_times_infinity": answer})
    np.testing.assert_equal(float(right.loss[0]), loss)
    assert_is(right.loss[1], LOG3)


@pytest.mark.parametrize(
    ("target", "options", "relevant"),
    [
        (1, {}, set()),
        (1, {"label_smoothing": 0.1}, {"zero_times_infinity"}),
        (1, {"label_smoothing": 0.0}, set()),
        (-100, {"reduction": "sum", "label_smoothing": 0.1}, set()),
    ],
)
def test_zero_weight_matters_only_where_the_loss_asks_for_the_class(target, options, relevant):
    batch = batch_of([[-INF, 1.0]], [target], weight=torch.tensor([0.0, 1.0]), **options)
    assert relevant_conventions(batch) == relevant


def test_minus_infinity_takes_a_class_out():
    right = truth(batch_of([[-INF, 0.0, 0.0], [-INF, 0.0, 0.0], [-INF, -INF, -INF]], [1, 0, 1], reduction="none"), {})
    np.testing.assert_allclose(right.loss.astype(float), [LOG2, INF, NAN])
    np.testing.assert_allclose(right.gradient.astype(float), [[0, -0.5, 0.5], [-1, 0.5, 0.5], [NAN] * 3])


def test_smoothing_over_a_class_at_minus_infinity_is_infinite():
    right = truth(batch_of([[-INF, 0.0, 0.0]], [1], label_smoothing=0.3), {})
    assert float(right.loss) == INF
    assert_is(right.gradient, [[-0.1, 0.5 - 0.8, 0.5 - 0.1]])


def test_mean_is_nan_where_a_valid_row_is_and_other_rows_keep_their_gradient():
    right = truth(batch_of([[NAN, 0.0], [0.0, 0.0]], [0, 0]), {})
    assert np.isnan(float(right.loss))
    np.testing.assert_allclose(right.gradient.astype(float), [[NAN, NAN], [-0.25, 0.25]])


def test_ignored_rows_that_hold_anything_give_what_deleting_them_gives():
    whole = random_batch(3, (6, 4), smoothing=0.2, weighted=True, reduction="none")
    for dtype, reduction in itertools.product([torch.float64, torch.bfloat16], ["mean", "sum", "none"]):
        logits, target, upstream = whole.input.to(dtype), whole.target.clone(), whole.upstream.to(dtype)
        target[[1, 4, 5]] = -100
        for row, filler in ((1, NAN), (4, INF), (5, -INF)):
            logits[row] = filler
        kept = [0, 2, 3]
        options = {**whole.options, "weight": whole.options["weight"].to(dtype), "reduction": reduction}
        above, above_kept = (upstream, upstream[kept]) if reduction == "none" else (None, None)
        full = truth(Batch(logits, target, options, above, "eager"), {})
        less = truth(Batch(logits[kept], target[kept], options, above_kept, "eager"), {})
        assert np.array_equal(full.loss[kept] if reduction == "none" else full.loss, less.loss)
        assert np.array_equal(full.gradient[kept], less.gradient)
        assert np.array_equal(full.gradient_unit[kept], less.gradient_unit)
        assert not full.gradient[[1, 4, 5]].any()
        assert full.ignored[[1, 4, 5]].all()
        assert not full.ignored[kept].any()


def test_several_ignore_values_are_all_ignored():
    batch = batch_of([[0.0, 0.0], [1.0, 5.0], [1.0, 5.0]], [0, 1, -7], ignore_index=[1, -7], reduction="sum")
    right = truth(batch, {})
    assert_is(right.loss, LOG2)
    assert right.ignored[:, 0].tolist() == [False, True, True]


CORNERS = [
    batch_of([[-INF, 0.0, 0.0], [0.0, 1.0, 2.0]], [0, 1], reduction="none"),
    batch_of([[-INF, -INF], [0.0, 1.0]], [0, 1], reduction="none"),
    batch_of([[INF, 0.0], [0.0, 1.0]], [0, 1]),
    batch_of([[NAN, 0.0], [0.0, 1.0]], [0, 1]),
    batch_of(**ALL_IGNORED),
    batch_of(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)),
    batch_of([[-INF, 1.0]], [0], weight=torch.tensor([0.0, 1.0]), reduction="sum"),
    batch_of([[2.0, 1.0]], [0], weight=torch.tensor([0.0, 1.0])),
]


@pytest.mark.parametrize("index", range(len(CORNERS) + 6))
def test_without_extended_long_double_mpmath_gives_the_same(monkeypatch, index):
    if index < len(CORNERS):
        batch = CORNERS[index]
    else:
        reduction, smoothing, weighted = GRID[index - len(CORNERS)]
        batch = random_batch(
            index, (4, 5), torch.float64, reduction, smoothing, weighted, ignored=1, scale=20, direction=True
        )
    answers = dict.fromkeys(relevant_conventions(batch), "nan")
    extended = truth(batch, answers)
    monkeypatch.setattr(truths, "longdouble_is_extended", lambda: False)
    with mpmath.workprec(mpmath.mp.prec):
        fallback = truth(batch, answers)
    for name in ("loss", "gradient", "second", "loss_unit", "gradient_unit", "second_unit"):
        one, two = getattr(extended, name), getattr(fallback, name)
        if one is not None:
            np.testing.assert_allclose(
                np.asarray(two, dtype=float), np.asarray(one, dtype=float), rtol=1e-15, atol=1e-18
            )


def test_truth_leaves_the_precision_of_mpmath_alone(monkeypatch):
    monkeypatch.setattr(truths, "longdouble_is_extended", lambda: False)
    with mpmath.workprec(53):
        truth(random_batch(0), {})
        assert mpmath.mp.prec == 53


def worst_units(function, batch):
    """The largest error of a loss and of its gradient in units; infinite where they are not finite."""
    x = batch.input.clone().requires_grad_()
    loss = function(x, batch.target, **batch.options)
    loss.backward(batch.upstream)
    right = truth(batch, {})
    worst = 0.0
    for found, expected, unit in ((loss, right.loss, right.loss_unit), (x.grad, right.gradient, right.gradient_unit)):
        difference = abs(found.detach().double().numpy() - expected)
        errors = np.divide(
            difference, unit, out=np.zeros(difference.shape), where=np.asarray(unit) > 0, casting="unsafe"
        )
        worst = max(worst, float(np.nan_to_num(errors, nan=INF, posinf=INF).max()))
    return worst


def some_batches(dtype=torch.float32):
    seeds = itertools.count()
    for shape, scale, (reduction, smoothing, weighted) in itertools.product(
        [(6, 5), (24, 100)], [1, 10, 50, 100], GRID[::3]
    ):
        yield random_batch(next(seeds), shape, dtype, reduction, smoothing, weighted, ignored=2, scale=scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_good_implementation_stays_within_three_units(dtype):
    assert max(worst_units(F.cross_entropy, batch) for batch in some_batches(dtype)) <= 3


def from_probabilities(log_probabilities):
    """A loss over all reductions that spoils only how the log-probabilities are computed."""

    def loss(x, target, ignore_index=-100, reduction="mean", weight=None, label_smoothing=0.0):
        kept = target != ignore_index
        w = torch.ones(x.shape[1], dtype=x.dtype) if weight is None else weight
        q = F.one_hot(target[kept], x.shape[1]).to(x.dtype) * (1 - label_smoothing) + label_smoothing / x.shape[1]
        losses = torch.zeros(target.shape, dtype=x.dtype)
        losses[kept] = -(w * q * log_probabilities(x[kept])).sum(1)
        return losses if reduction == "none" else losses.sum() / (w[target[kept]].sum() if reduction == "mean" else 1)

    return loss


def test_the_frame_of_the_wrong_ones_is_right():
    assert max(worst_units(from_probabilities(lambda x: x.log_softmax(1)), b) for b in some_batches()) <= 3


@pytest.mark.parametrize(
    ("log_probabilities", "scale"),
    [
        pytest.param(lambda x: (x.softmax(1) + 1e-8).log(), 10, id="epsilon in the logarithm"),
        pytest.param(lambda x: x - x.exp().sum(1, keepdim=True).log(), 100, id="no maximum subtracted"),
        pytest.param(lambda x: x.bfloat16().log_softmax(1).float(), 1, id="computed in bfloat16"),
        pytest.param(
            lambda x: x - (x.max() + (x - x.max()).bfloat16().exp().sum(1, keepdim=True).float().log()),
            1,
            id="summed in bfloat16",
        ),
        pytest.param(lambda x: x.softmax(1).clamp_min(1e-7).log(), 30, id="clamped probabilities"),
    ],
)
def test_a_wrong_implementation_does_not(log_probabilities, scale):
    for reduction in ("mean", "sum", "none"):
        batch = random_batch(5, (20, 30), torch.float32, reduction, scale=scale)
        assert worst_units(from_probabilities(log_probabilities), batch) > 3


def test_zero_is_far_from_a_tiny_gradient():
    """With float32's usual atol a gradient of zeros would pass here."""
    batch = random_batch(6, (4096, 50), torch.float32)
    assert abs(truth(batch, {}).gradient).max() < 1e-2
    assert worst_units(lambda x, t, **o: F.cross_entropy(x, t, **o).detach() + 0 * x.sum(), batch) > 1000
