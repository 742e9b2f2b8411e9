"""Answers to large batches: what the definition in blocks says is what ``reference`` says, and what is wrong is found."""

import numpy as np
import pytest
import torch

import fakes
from maskedce import masked_cross_entropy
from xentcheck import large, timing
from xentcheck.batch import build
from xentcheck.implementation import Implementation
from xentcheck.linear import Sums
from xentcheck.reference import truth

BODIES = [
    "logits: {shape: [40, 50]}, target: {ignore: {fraction: 0.3}}",
    "logits: {shape: [40, 50], scale: 10}, reduction: sum, dtype: bfloat16",
    "logits: {shape: [40, 50]}, reduction: none, upstream: per-position, target: {ignore: {every: 3}}",
    "logits: {shape: [2, 7, 5, 4]}, weight: random, ignore_index: 255, target: {ignore: {suffix: 9}}",
    "logits: {shape: [40, 50]}, label_smoothing: 0.1, weight: random, target: {ignore: first}",
    "logits: {shape: [40, 50], scale: 30}, dtype: float64, upstream: -3, reduction: sum",
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(large, "BLOCK", 170)


def answer(function, batch):
    one = timing.step(Implementation(name="f", cross_entropy=function), batch)
    loss = one.forward()
    return loss, one.backward(loss)


@pytest.mark.parametrize("body", BODIES)
def test_the_losses_and_their_units_are_the_references(case, body):
    batch = build(case(body))
    whole, exact = large.expected(batch), truth(batch, {})
    sums = {"none": lambda v: v.reshape(exact.loss.shape)}.get(batch.reduction, lambda v: v.sum() / whole.denominator)
    info = torch.finfo(batch.input.dtype)
    np.testing.assert_allclose(sums(whole.losses), exact.loss.astype(float), rtol=1e-12, atol=1e-12)
    # the reference adds the rounding of a mean or sum itself
    assert (sums(whole.units) <= exact.loss_unit.astype(float) * 1.0001 + info.smallest_normal).all()


@pytest.mark.parametrize("body", BODIES)
def test_a_right_answer_has_no_problem(case, body):
    batch = build(case(body))
    assert large.examine(batch, large.expected(batch), *answer(fakes.right, batch)).faults == {}


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
    fault = large.examine(batch, large.expected(batch), loss, gradients).faults[about][0]
    assert f"expected a {about if about != 'shape' else 'loss of shape'}" in fault.message


def test_a_single_wrong_entry_is_named(case):
    batch = build(case(BODIES[0]))
    right = large.expected(batch)
    loss, (gradient,) = answer(fakes.right, batch)
    valid = int((batch.target != -100).nonzero()[-1])
    ignored = int((batch.target == -100).nonzero()[-1])

    def fault(position, label, value):
        wrong = gradient.clone()
        wrong[position, label] = value
        found = large.examine(batch, right, loss, (wrong,))
        assert list(found.faults) == ["gradient"]
        return found.faults["gradient"][0]

    slightly = fault(valid, 49, gradient[valid, 49] * 1.0001)
    assert f"at position {valid}, class 49, " in slightly.message
    assert f"{slightly.units:.3g} units where 3 are allowed" in slightly.message
    assert slightly.kind == "value"
    for value, kind in ((1e-30, "nonzero"), (torch.nan, "nan"), (torch.inf, "inf")):
        assert f"at position {ignored}, class 3, an ignored" in fault(ignored, 3, value).message
        assert fault(ignored, 3, value).kind == kind
    for value, kind in ((torch.nan, "nan"), (-torch.inf, "inf")):
        assert f"found {float(value)} at position {valid}, class 0" in fault(valid, 0, value).message
        assert (fault(valid, 0, value).kind, fault(valid, 0, value).units) == (kind, None)


@pytest.mark.parametrize("body", [BODIES[0], "logits: {shape: [30, 20]}, linear: {features: 6}"])
def test_a_wrong_loss_hides_no_wrong_gradient(case, body):
    batch = build(case(body))
    loss, (gradient, *others) = fused_answer(fakes.fused, batch) if batch.is_linear else answer(fakes.right, batch)
    found = large.examine(batch, large.expected(batch), loss * 1.001, (gradient * 1.001, *others))
    assert list(found.faults) == ["loss", "gradient"]


def test_of_many_wrong_positions_the_worst_is_named(case):
    """Also where more are wrong than are put to the reference."""
    batch = build(case("logits: {shape: [200, 50]}, target: {ignore: none}"))
    loss, (gradient,) = answer(fakes.right, batch)
    gradient = gradient * 1.001
    gradient[150, 3] *= 2
    found = large.examine(batch, large.expected(batch), loss, (gradient,))
    assert "at position 150, class 3" in found.faults["gradient"][0].message
    assert found.faults["gradient"][0].units > 1e5


def test_another_dtype_is_no_wrong_value(case):
    batch = build(case(BODIES[0]))
    loss, (gradient,) = answer(fakes.right, batch)
    found = large.examine(batch, large.expected(batch), loss, (gradient.double(),))
    assert (list(found.faults), found.faults["shape"][0].kind) == (["shape"], "dtype")
    assert "torch.float32; found (40, 50) in torch.float64" in found.faults["shape"][0].message


def test_a_loss_of_another_kind_of_number_is_a_wrong_value(case):
    batch = build(case(BODIES[0]))
    loss, gradients = answer(fakes.right, batch)
    assert list(large.examine(batch, large.expected(batch), loss.long(), gradients).faults) == ["loss"]


def test_what_is_found_wrong_is_put_to_the_reference(case, monkeypatch):
    batch = build(case("logits: {shape: [40, 50], scale: 20}"))
    exact = truth(batch, {})
    asked = []
    monkeypatch.setattr(large, "truth", lambda *a: asked.append(1) or truth(*a))
    right, loss = large.expected(batch), torch.tensor(float(exact.loss))
    for units, wrong in ((2.8, False), (3.3, True)):
        off = torch.from_numpy((exact.gradient + units * exact.gradient_unit).astype(np.float32))
        assert bool(large.examine(batch, right, loss, (off,)).faults) == bool(asked) == wrong


def test_rounding_in_a_half_type_hides_nothing(case):
    """As in torch, the gradient of log-probabilities rounded to bfloat16; the target's entry of the last positions is wrong."""
    batch = build(case("logits: {shape: [300, 1000], scale: 3}, target: {ignore: none}, dtype: bfloat16"))
    loss, (gradient,) = answer(fakes.right, batch)
    rows = torch.arange(284, 300)
    gradient[rows, batch.target[rows]] *= 1.05
    fault = large.examine(batch, large.expected(batch), loss, (gradient,)).faults["gradient"][0]
    assert int(fault.message.split("at position ")[1].split(",")[0]) >= 284


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
    right = large.expected(batch)
    loss, (gradient,) = answer(masked_cross_entropy, batch)
    assert large.examine(batch, right, loss, (gradient,)).faults == {}
    assert list(large.examine(batch, right, loss, (gradient + 1,)).faults) == ["gradient"]
    assert list(large.examine(batch, right, loss, (gradient * torch.nan,)).faults) == ["gradient"]


def test_the_units_of_the_error_are_told(case):
    batch = build(case("logits: {shape: [40, 50], scale: 5}"))
    exact = truth(batch, {})
    loss = torch.tensor(float(exact.loss + 1.5 * exact.loss_unit), dtype=torch.float64)
    gradient = torch.from_numpy((exact.gradient + 0.7 * exact.gradient_unit).astype(np.float32))
    found = large.examine(batch, large.expected(batch), loss, (gradient,))
    assert found.faults == {}
    assert found.loss_units == pytest.approx(1.5, rel=0.1)
    assert 0.7 <= found.gradient_units <= 3


# --- a fused linear loss

LINEAR = [
    "logits: {shape: [30, 20], scale: 2}, linear: {features: 6, bias: true}, target: {ignore: {fraction: 0.3}}",
    "logits: {shape: [30, 20]}, linear: {features: 6}, reduction: none, upstream: per-position, target: {ignore: {every: 3}}",
    "logits: {shape: [30, 20]}, linear: {features: 6}, weight: random, label_smoothing: 0.1, dtype: bfloat16",
]


def fused_answer(function, batch):
    one = timing.step(Implementation(name="f", linear_cross_entropy=function), batch)
    loss = one.forward()
    return loss, one.backward(loss)


@pytest.mark.parametrize("body", LINEAR)
def test_a_linear_layer_in_blocks_is_the_references(case, body):
    batch = build(case(body))
    blocks, exact = large.expected(batch), truth(batch, {})
    wanted = {"input": (exact.gradient, exact.gradient_unit), **exact.others}
    assert list(blocks.gradients) == list(wanted) == list(batch.differentiated)
    spread = Sums(entries=sum(t.numel() for t in batch.differentiated.values())).spread
    assert 1 < spread < 1.1
    for name, (gradient, unit) in wanted.items():
        np.testing.assert_allclose(blocks.gradients[name][0], gradient, rtol=1e-9, atol=1e-15)
        assert (blocks.gradients[name][1] >= unit * 0.9999).all()
        assert (blocks.gradients[name][1] <= unit * (spread + 1e-4)).all()
    whole = blocks.losses if batch.reduction == "none" else blocks.losses.sum() / blocks.denominator
    np.testing.assert_allclose(whole, exact.loss, rtol=1e-9)


@pytest.mark.parametrize("body", LINEAR)
def test_a_right_fused_loss_has_no_problem(case, body):
    batch = build(case(body))
    found = large.examine(batch, large.expected(batch), *fused_answer(fakes.fused, batch))
    assert found.faults == {}
    assert 0 < found.gradient_units <= 3


@pytest.mark.parametrize("name", ["input", "linear_weight", "linear_bias"])
@pytest.mark.parametrize("value", [1e-3, float("nan")])
def test_a_wrong_entry_of_any_gradient_is_named(case, name, value):
    batch = build(case(LINEAR[0]))
    right = large.expected(batch)
    loss, gradients = fused_answer(fakes.fused, batch)
    wrong = {n: g.clone() for n, g in zip(batch.differentiated, gradients, strict=True)}
    wrong[name].view(-1)[-1] += value
    place = ", ".join(str(n - 1) for n in wrong[name].shape)
    fault = large.examine(batch, right, loss, tuple(wrong.values())).faults["gradient"][0]
    assert f"at {name}[{place}]" in fault.message
    assert "expected a gradient of" in fault.message
    assert fault.kind == ("value" if value == value else "nan")


def test_the_hidden_state_of_an_ignored_position_has_the_gradient_zero(case):
    batch = build(case(LINEAR[0]))
    loss, (first, *others) = fused_answer(fakes.fused, batch)
    at = int((batch.target == -100).nonzero()[0])
    first = first.clone()
    first[at, 2] = 1e-30
    fault = large.examine(batch, large.expected(batch), loss, (first, *others)).faults["gradient"][0]
    assert (fault.kind, fault.units) == ("nonzero", None)
    assert f"at input[{at}, 2], an ignored position" in fault.message


def test_of_several_wrong_gradients_each_is_named_the_worst_first(case):
    batch = build(case(LINEAR[0]))
    loss, gradients = fused_answer(fakes.fused, batch)
    wrong = [gradient.clone() for gradient in gradients]
    wrong[0].view(-1)[-1] += 1e-4
    wrong[1].view(-1)[-1] += 1
    found = large.examine(batch, large.expected(batch), loss, wrong)
    assert [fault.message.split(" at ")[1].split("[")[0] for fault in found.faults["gradient"]] == [
        "linear_weight",
        "input",
    ]
    assert "at linear_weight[19, 5], " in found.faults["gradient"][0].message
    assert found.faults["gradient"][0].units == found.gradient_units > 1e4


def test_a_gradient_where_none_is_asked_for_is_not_looked_for(case):
    batch = build(case("logits: {shape: [40, 50]}, mode: no_grad"))
    one = timing.step(Implementation(name="f", cross_entropy=fakes.right), batch)
    assert (one.backward, one.alone) == (None, "forward")
    assert large.examine(batch, large.expected(batch), one.forward(), ()).faults == {}
    wrong = large.examine(batch, large.expected(batch), one.forward() * 1.001, ()).faults["loss"][0]
    assert "expected a loss of" in wrong.message
