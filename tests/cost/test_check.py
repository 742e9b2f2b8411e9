"""Answers to large batches: what is right passes, and what is wrong is found."""

import numpy as np
import pytest
import torch

import fakes
from block_bodies import BODIES, LINEAR
from maskedce import masked_cross_entropy
from xentcheck.cost import check as cost_check
from xentcheck.cost import timing
from xentcheck.implementation import Implementation
from xentcheck.reference import blockwise
from xentcheck.reference.truth import truth
from xentcheck.run.verdict import describe
from xentcheck.spec.batch import build

pytestmark = pytest.mark.usefixtures("small_blocks")


def answer(function, batch):
    one = timing.step(Implementation(name="f", cross_entropy=function), batch)
    loss = one.forward()
    return loss, one.backward(loss)


@pytest.mark.parametrize("body", BODIES)
def test_a_right_answer_has_no_problem(case, body):
    batch = build(case(body))
    assert cost_check.examine(batch, blockwise.expected(batch), *answer(fakes.right, batch)).faults == {}


@pytest.mark.parametrize(
    "body", [body for body in BODIES if "bfloat16" not in body]
)  # a thousandth is within its rounding
@pytest.mark.parametrize(
    ("function", "about"),
    [
        (fakes.off_by_a_thousandth, "loss"),
        (fakes.gradient_off_by_a_thousandth, "gradient"),
        (fakes.nan_loss, "loss"),
        (fakes.zero_gradient, "gradient"),
        (fakes.wrong_shape, "shape"),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_a_wrong_answer_is_found(case, body, function, about):
    batch = build(case(body))
    loss, gradients = answer(function, batch) if function is not fakes.wrong_shape else (torch.ones(3), (batch.input,))
    fault = cost_check.examine(batch, blockwise.expected(batch), loss, gradients).faults[about][0]
    assert fault.quantity == (about if about != "shape" else "loss")
    assert (fault.kind == "shape") == (about == "shape")


def test_a_single_wrong_entry_is_named(case):
    batch = build(case(BODIES[0]))
    right = blockwise.expected(batch)
    loss, (gradient,) = answer(fakes.right, batch)
    valid = int((batch.target != -100).nonzero()[-1])
    ignored = int((batch.target == -100).nonzero()[-1])

    def fault(position, label, value):
        wrong = gradient.clone()
        wrong[position, label] = value
        found = cost_check.examine(batch, right, loss, (wrong,))
        assert list(found.faults) == ["gradient"]
        return found.faults["gradient"][0]

    slightly = fault(valid, 49, gradient[valid, 49] * 1.0001)
    assert (slightly.kind, slightly.index, slightly.allowed_units) == ("value", (valid, 49), 3)
    assert 10 < slightly.units == slightly.worst_units < 1000
    assert f" at [{valid}, 49], off by " in describe(slightly)
    for value, kind in ((1e-30, "nonzero"), (torch.nan, "nan"), (torch.inf, "inf")):
        found = fault(ignored, 3, value)
        assert (found.kind, found.index, found.is_ignored, found.units) == (kind, (ignored, 3), True, None)
    for value, kind in ((torch.nan, "nan"), (-torch.inf, "inf")):
        found = fault(valid, 0, value)
        assert (found.kind, found.index, found.is_ignored, found.units) == (kind, (valid, 0), False, None)
        np.testing.assert_equal(found.found, value)


def test_an_index_is_that_of_the_argument(case):
    """(N, C, d1, d2): the class stands second."""
    batch = build(case(BODIES[3]))
    right = blockwise.expected(batch)
    loss, (gradient,) = answer(fakes.right, batch)
    target = batch.target.clone()
    target[target != 255] = 0
    for place, ignored in ((target.nonzero()[-1], True), ((target == 0).nonzero()[-1], False)):
        sample, *rest = place.tolist()
        wrong = gradient.clone()
        wrong[(sample, 6, *rest)] += 1
        fault = cost_check.examine(batch, right, loss, (wrong,)).faults["gradient"][0]
        assert (fault.index, fault.is_ignored) == ((sample, 6, *rest), ignored)
        assert fault.found == wrong[fault.index].item()


@pytest.mark.parametrize("body", [BODIES[0], "logits: {shape: [30, 20]}, linear: {features: 6}"])
def test_a_wrong_loss_hides_no_wrong_gradient(case, body):
    batch = build(case(body))
    loss, (gradient, *others) = fused_answer(fakes.fused, batch) if batch.is_linear else answer(fakes.right, batch)
    found = cost_check.examine(batch, blockwise.expected(batch), loss * 1.001, (gradient * 1.001, *others))
    assert list(found.faults) == ["loss", "gradient"]


def test_of_many_wrong_positions_the_worst_is_named(case):
    """Also where more are wrong than are left to ``truth``."""
    batch = build(case("logits: {shape: [200, 50]}, target: {ignore: none}"))
    loss, (gradient,) = answer(fakes.right, batch)
    gradient = gradient * 1.001
    gradient[150, 3] *= 2
    found = cost_check.examine(batch, blockwise.expected(batch), loss, (gradient,))
    assert found.faults["gradient"][0].index == (150, 3)
    assert found.faults["gradient"][0].units > 1e5


def test_another_dtype_is_no_wrong_value(case):
    batch = build(case(BODIES[0]))
    loss, (gradient,) = answer(fakes.right, batch)
    found = cost_check.examine(batch, blockwise.expected(batch), loss, (gradient.double(),))
    assert (list(found.faults), found.faults["shape"][0].kind) == (["shape"], "dtype")
    assert describe(found.faults["shape"][0]) == "expected a gradient of dtype torch.float32; found torch.float64"


def test_a_loss_of_another_kind_of_number_is_a_wrong_value(case):
    batch = build(case(BODIES[0]))
    loss, gradients = answer(fakes.right, batch)
    assert list(cost_check.examine(batch, blockwise.expected(batch), loss.long(), gradients).faults) == ["loss"]


def test_what_is_found_wrong_is_left_to_the_truth(case, monkeypatch):
    batch = build(case("logits: {shape: [40, 50], scale: 20}"))
    exact = truth(batch, {})
    asked = []
    monkeypatch.setattr(blockwise, "truth", lambda *a: asked.append(1) or truth(*a))
    right, loss = blockwise.expected(batch), torch.tensor(float(exact.loss))
    for units, wrong in ((2.8, False), (3.3, True)):
        off = torch.from_numpy((exact.gradient + units * exact.gradient_unit).astype(np.float32))
        assert bool(cost_check.examine(batch, right, loss, (off,)).faults) == bool(asked) == wrong


def test_rounding_in_a_half_type_hides_nothing(case):
    """As in torch, the gradient of log-probabilities rounded to bfloat16; the target's entry of the last positions is wrong."""
    batch = build(case("logits: {shape: [300, 1000], scale: 3}, target: {ignore: none}, dtype: bfloat16"))
    loss, (gradient,) = answer(fakes.right, batch)
    rows = torch.arange(284, 300)
    gradient[rows, batch.target[rows]] *= 1.05
    fault = cost_check.examine(batch, blockwise.expected(batch), loss, (gradient,)).faults["gradient"][0]
    assert fault.index[0] >= 284


@pytest.mark.parametrize(
    "body",
    [
        "logits: {shape: [40, 50]}, normalizer: 100",
        "logits: {shape: [40, 50], scale: 3000}, dtype: float16, reduction: sum",
        "logits: {shape: [40, 50]}, target: {ignore: all}",
        "logits: {shape: [40, 50]}, target: {ignore: all}, normalizer: 3",
    ],
)
def test_odd_batches_are_judged_too(case, body):
    batch = build(case(body))
    right = blockwise.expected(batch)
    loss, (gradient,) = answer(masked_cross_entropy, batch)
    assert cost_check.examine(batch, right, loss, (gradient,)).faults == {}
    assert list(cost_check.examine(batch, right, loss, (gradient + 1,)).faults) == ["gradient"]
    assert list(cost_check.examine(batch, right, loss, (gradient * torch.nan,)).faults) == ["gradient"]


def test_the_largest_errors_are_measured(case):
    batch = build(case("logits: {shape: [40, 50], scale: 5}"))
    exact = truth(batch, {})
    loss = torch.tensor(float(exact.loss + 1.5 * exact.loss_unit), dtype=torch.float64)
    gradient = torch.from_numpy((exact.gradient + 0.7 * exact.gradient_unit).astype(np.float32))
    found = cost_check.examine(batch, blockwise.expected(batch), loss, (gradient,))
    assert found.faults == {}
    assert found.loss_units == pytest.approx(1.5, rel=0.1)
    assert 0.7 <= found.gradient_units <= 3


# --- a fused linear loss


def fused_answer(function, batch):
    one = timing.step(Implementation(name="f", linear_cross_entropy=function), batch)
    loss = one.forward()
    return loss, one.backward(loss)


@pytest.mark.parametrize("body", LINEAR)
def test_a_right_fused_loss_has_no_problem(case, body):
    batch = build(case(body))
    found = cost_check.examine(batch, blockwise.expected(batch), *fused_answer(fakes.fused, batch))
    assert found.faults == {}
    assert 0 < found.gradient_units <= 3


@pytest.mark.parametrize("name", ["input", "linear_weight", "linear_bias"])
@pytest.mark.parametrize("value", [1e-3, float("nan")])
def test_a_wrong_entry_of_any_gradient_is_named(case, name, value):
    batch = build(case(LINEAR[0]))
    right = blockwise.expected(batch)
    loss, gradients = fused_answer(fakes.fused, batch)
    wrong = {n: g.clone() for n, g in zip(batch.differentiated, gradients, strict=True)}
    wrong[name].view(-1)[-1] += value
    fault = cost_check.examine(batch, right, loss, tuple(wrong.values())).faults["gradient"][0]
    assert fault.quantity == ("gradient" if name == "input" else f"gradient of {name}")
    assert fault.index == tuple(n - 1 for n in wrong[name].shape)
    assert fault.kind == ("value" if value == value else "nan")


def test_the_hidden_state_of_an_ignored_position_has_the_gradient_zero(case):
    batch = build(case(LINEAR[0]))
    loss, (first, *others) = fused_answer(fakes.fused, batch)
    at = int((batch.target == -100).nonzero()[0])
    first = first.clone()
    first[at, 2] = 1e-30
    fault = cost_check.examine(batch, blockwise.expected(batch), loss, (first, *others)).faults["gradient"][0]
    assert (fault.kind, fault.units, fault.index, fault.is_ignored) == ("nonzero", None, (at, 2), True)


def test_of_several_wrong_gradients_each_is_named_the_worst_first(case):
    batch = build(case(LINEAR[0]))
    loss, gradients = fused_answer(fakes.fused, batch)
    wrong = [gradient.clone() for gradient in gradients]
    wrong[0].view(-1)[-1] += 1e-4
    wrong[1].view(-1)[-1] += 1
    found = cost_check.examine(batch, blockwise.expected(batch), loss, wrong)
    assert [fault.quantity for fault in found.faults["gradient"]] == ["gradient of linear_weight", "gradient"]
    assert found.faults["gradient"][0].index == (19, 5)
    assert found.faults["gradient"][0].units == found.gradient_units > 1e4


def test_a_gradient_where_none_is_asked_for_is_not_looked_for(case):
    batch = build(case("logits: {shape: [40, 50]}, mode: no_grad"))
    one = timing.step(Implementation(name="f", cross_entropy=fakes.right), batch)
    assert (one.backward, one.alone) == (None, "forward")
    assert cost_check.examine(batch, blockwise.expected(batch), one.forward(), ()).faults == {}
    wrong = cost_check.examine(batch, blockwise.expected(batch), one.forward() * 1.001, ()).faults["loss"][0]
    assert (wrong.quantity, wrong.kind) == ("loss", "value")
