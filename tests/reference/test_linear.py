"""Cases of hidden states and a matrix: batches, their truth against autograd, what is judged, and the script that reproduces it."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fakes
from xentcheck.implementation import LINEAR_CAPABILITIES, Deviation, Implementation, find
from xentcheck.lint import lint
from xentcheck.reference.definition import Rounding
from xentcheck.reference.linear import Layer, ParameterGradients
from xentcheck.reference.truth import truth
from xentcheck.repro import script as scripts
from xentcheck.spec.batch import build
from xentcheck.spec.loader import CaseFileError, load
from xentcheck.spec.needs import capabilities_needed

PLAIN = (
    "logits: {shape: [6, 5], scale: 2}, linear: {features: 3, bias: true}, target: {ignore: first}, ignore_index: -100"
)
RIGHT = Implementation(name="right", linear_cross_entropy=fakes.fused, empty_mean="zero")


def fused(function):
    return Implementation(name=function.__name__, linear_cross_entropy=function, empty_mean="zero")


def test_a_batch_holds_hidden_states_and_a_matrix(case):
    batch = build(case(PLAIN + ", dtype: bfloat16"))
    assert batch.is_linear
    assert (batch.input.shape, batch.target.shape, batch.classes) == ((6, 3), (6,), 5)
    assert {n: tuple(v.shape) for n, v in batch.options.items() if n.startswith("linear")} == {
        "linear_weight": (5, 3),
        "linear_bias": (5,),
    }
    assert {t.dtype for t in (batch.input, batch.options["linear_weight"], batch.options["linear_bias"])} == {
        torch.bfloat16
    }
    x = F.linear(batch.input.double(), batch.options["linear_weight"].double(), batch.options["linear_bias"].double())
    np.testing.assert_allclose(batch.logits, x.numpy(), rtol=1e-12)


def test_logits_have_the_scale_that_is_asked_for(case):
    batch = build(case("logits: {shape: [400, 50], scale: 7}, linear: {features: 16}"))
    assert batch.logits.std() == pytest.approx(7, rel=0.05)


def test_patterns_literals_and_layouts(case):
    body = (
        "logits: {shape: [3, 2]}, target: {values: [0, -100, 1]}, linear: {features: 2, hidden: [[1, 2], [3, 4], [5, 6]], "
        "matrix: [[1, 0], [0, 2]], bias: [0.5, -inf], set: [{rows: ignored, value: nan}, {rows: [2], features: [1], value: 9}], "
        "layout: strided, matrix_layout: transposed}"
    )
    batch = build(case(body))
    expected = torch.tensor([[1.0, 2.0], [torch.nan, torch.nan], [5.0, 9.0]])
    torch.testing.assert_close(batch.input, expected, equal_nan=True)
    assert batch.input.stride() == (4, 2)
    assert batch.options["linear_weight"].tolist() == [[1, 0], [0, 2]]
    assert batch.options["linear_weight"].stride() == (1, 2)
    assert batch.options["linear_bias"].tolist() == [0.5, -torch.inf]
    again = batch.fresh()
    assert again.options["linear_weight"].stride() == (1, 2)
    assert again.options["linear_weight"].data_ptr() != batch.options["linear_weight"].data_ptr()


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("logits: {shape: [3, 2, 4]}, linear: {features: 2}", "expected logits with a shape"),
        ("logits: {values: [[1, 2]]}, linear: {features: 2}", "expected logits with a shape"),
        ("logits: {shape: [3, 2], shift: 1}, linear: {features: 2}", "expected logits with a shape"),
        (
            "logits: {shape: [3, 2]}, linear: {features: 2}, mode: vmap, reduction: none",
            "expected one of the modes eager, no_grad, inference_mode, twice",
        ),
        ("logits: {shape: [3, 2]}, linear: {feature: 2}", "features"),
    ],
)
def test_what_does_not_fit_is_refused_when_read(cases, body, text):
    with pytest.raises(CaseFileError, match=text):
        cases(f"id: one, {body}")


def test_literals_of_the_wrong_shape(case):
    with pytest.raises(CaseFileError, match=r"linear.matrix: expected the shape \(2, 2\); found \(1, 2\)"):
        build(case("logits: {shape: [3, 2]}, linear: {features: 2, matrix: [[1, 2]]}"))


def test_what_is_needed(case, verdicts):
    plain, biased = case("logits: {shape: [6, 5000]}, linear: {features: 3}"), case(PLAIN)
    assert "linear" in capabilities_needed(plain, build(plain))
    assert "linear_bias" not in capabilities_needed(plain, build(plain))
    assert capabilities_needed(biased, build(biased)) >= {"linear", "linear_bias"}
    nan = case(PLAIN.replace("bias: true", "set: [{rows: ignored, value: nan}]"))
    assert "non_finite" not in capabilities_needed(nan, build(nan))
    of_logits = Implementation(name="of-logits", cross_entropy=fakes.right)
    assert not {"linear", "linear_bias"} & of_logits.capabilities
    assert {v.status for v in verdicts(biased, of_logits).values()} == {"unsupported"}
    without_bias = Implementation(
        name="without", linear_cross_entropy=fakes.fused, capabilities=LINEAR_CAPABILITIES - {"linear_bias"}
    )
    assert {v.status for v in verdicts(biased, without_bias).values()} == {"unsupported"}
    assert {v.status for v in verdicts(plain, without_bias).values()} == {"pass"}


@pytest.mark.parametrize(
    "options", ["", ", label_smoothing: 0.3, weight: random", ", reduction: none, upstream: per-position"]
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_truth_is_what_autograd_finds_in_float64(case, options, dtype):
    batch = build(case(f"{PLAIN}{options}, dtype: {dtype}"))
    exact = truth(batch, {})
    options = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in batch.options.items()}
    matrix, bias = (options.pop(n).requires_grad_() for n in ("linear_weight", "linear_bias"))
    hidden = batch.input.double().requires_grad_()
    loss = F.cross_entropy(F.linear(hidden, matrix, bias), batch.target, **options)
    loss.backward(None if batch.upstream is None else batch.upstream.double())
    np.testing.assert_allclose(exact.loss.astype(float), loss.detach(), rtol=1e-13)
    np.testing.assert_allclose(exact.gradient.astype(float), hidden.grad, rtol=1e-12, atol=1e-15)
    for name, tensor in (("linear_weight", matrix), ("linear_bias", bias)):
        np.testing.assert_allclose(exact.others[name][0].astype(float), tensor.grad, rtol=1e-12, atol=1e-15)
        assert exact.others[name][1].shape == tuple(tensor.shape)
        assert (exact.others[name][1] > 0).all()
    assert exact.ignored[0].all()
    assert not exact.ignored[1:].any()


def test_float64_is_judged_in_more_than_float64(case):
    exact = truth(build(case(PLAIN + ", dtype: float64")), {})
    assert exact.others["linear_weight"][0].dtype in (np.longdouble, object)


def test_nothing_of_an_ignored_state_is_in_the_truth(case):
    exact = truth(build(case(PLAIN.replace("bias: true", "bias: true, set: [{rows: ignored, value: nan}]"))), {})
    assert np.isfinite(exact.loss)
    assert not exact.gradient[0].any()
    assert all(np.isfinite(value).all() for value, _ in exact.others.values())


def test_units_grow_with_what_can_be_lost(case):
    """e for the one rounding of the result; the operands' roundings only where there is a half type."""
    unit = {}
    for dtype in ("float32", "bfloat16"):
        batch = build(case(f"{PLAIN}, dtype: {dtype}"))
        exact = truth(batch, {})
        value, unit[dtype] = exact.others["linear_weight"]
        eps = torch.finfo(getattr(torch, dtype)).eps
        assert (unit[dtype] >= eps * abs(value)).all()
        assert (unit[dtype] <= 40 * eps * abs(value).max()).all()
    assert np.median(unit["bfloat16"] / unit["float32"]) > 1000


def test_the_sum_of_operands_roundings():
    """One position, one feature: the unit of d h is e |d h| for the result, once more for d, and little besides."""
    from types import SimpleNamespace

    batch = SimpleNamespace(
        input=torch.tensor([[3.0]]), options={"linear_weight": torch.tensor([[1.0], [2.0]])}, is_linear=True
    )
    layer = Layer(batch, np.array([True]), np.asarray)
    d = np.array([[0.25, -0.25]])
    e, f = 2.0**-7, 2.0**-23
    parameters = ParameterGradients()
    parameters.add(layer, d, np.zeros_like(d))
    value, unit = parameters.gradients(Rounding(e, f, 0.0))["linear_weight"]
    np.testing.assert_allclose(value, [[0.75], [-0.75]])
    np.testing.assert_allclose(unit, 2 * e * 0.75, rtol=1e-3)


def test_a_right_one_passes_every_aspect(case, verdicts):
    for more in (
        "",
        ", reduction: none, upstream: per-position",
        ", mode: twice",
        ", mode: no_grad",
        ", dtype: bfloat16",
    ):
        assert {a: v.message for a, v in verdicts(case(PLAIN + more), RIGHT).items() if v.status != "pass"} == {}


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, factor):
        ctx.factor = factor
        return tensor.clone()

    @staticmethod
    def backward(ctx, gradient):
        return (None if ctx.factor is None else (gradient * ctx.factor)), None


def matrix_gradient_off(hidden, linear_weight, target, **options):
    return fakes.fused(hidden, _Scaled.apply(linear_weight, 1.001), target, **options)


def bias_gradient_off(hidden, linear_weight, target, *, linear_bias, **options):
    return fakes.fused(hidden, linear_weight, target, linear_bias=_Scaled.apply(linear_bias, 1.001), **options)


def no_matrix_gradient(hidden, linear_weight, target, **options):
    return fakes.fused(hidden, linear_weight.detach(), target, **options)


def hidden_gradient_off(hidden, linear_weight, target, **options):
    return fakes.fused(_Scaled.apply(hidden, 1.001), linear_weight, target, **options)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (matrix_gradient_off, "expected a gradient of linear_weight of"),
        (bias_gradient_off, "expected a gradient of linear_bias of"),
        (no_matrix_gradient, "expected a gradient of linear_weight; found none"),
        (hidden_gradient_off, "expected a gradient of"),
    ],
)
def test_each_gradient_is_judged(case, verdicts, function, text):
    found = verdicts(case(PLAIN), fused(function))
    assert found["loss"].status == "pass"
    assert found["gradient"].status == "fail"
    assert text in found["gradient"].message


def hidden_gradient_off_and_no_matrix_gradient(hidden, linear_weight, target, **options):
    return hidden_gradient_off(hidden, linear_weight.detach(), target, **options)


def both_gradients_off(hidden, linear_weight, target, **options):
    return hidden_gradient_off(hidden, _Scaled.apply(linear_weight, 30), target, **options)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (hidden_gradient_off_and_no_matrix_gradient, "expected a gradient of linear_weight; found none"),
        (both_gradients_off, "expected a gradient of linear_weight of"),
    ],
)
def test_what_is_known_of_one_gradient_excuses_no_other(case, verdicts, function, text):
    known = Deviation(
        "small/one", aspect="gradient", observed="a bit too large", fault="value", max_units=1e5, reason="x", link="x"
    )
    slightly = replace(fused(hidden_gradient_off), deviations=(known,))
    assert verdicts(case(PLAIN), slightly)["gradient"].status == "deviates"
    found = verdicts(case(PLAIN), replace(slightly, linear_cross_entropy=function))["gradient"]
    assert found.status == "fail"
    assert text in found.message


def test_an_overwritten_matrix_is_noticed(case, verdicts):
    def overwrites(hidden, linear_weight, target, **options):
        loss = fakes.fused(hidden, linear_weight, target, **options)
        linear_weight.data.mul_(2)
        return loss

    assert "linear_weight" in verdicts(case(PLAIN), fused(overwrites))["purity"].message


def test_gradients_that_change_from_call_to_call_are_noticed(case, verdicts):
    factors = iter([1, 2])

    def drifts(hidden, linear_weight, target, **options):
        return fakes.fused(hidden, _Scaled.apply(linear_weight, next(factors)), target, **options)

    found = verdicts(case(PLAIN), fused(drifts))
    assert found["gradient"].status == "pass"
    assert "expected the same gradient of linear_weight" in found["purity"].message


def test_zero_is_asked_of_every_gradient(case, verdicts):
    body = "logits: {shape: [4, 5]}, linear: {features: 3}, target: {ignore: all}, ignore_index: -100, reduction: sum"
    body += ", expect: {loss: zero, gradient: zero}"

    def trace(hidden, linear_weight, target, **options):
        loss = fakes.fused(hidden, linear_weight, target, **options)
        return loss + 1e-30 * (linear_weight - linear_weight.detach()).sum()

    assert verdicts(case(body), RIGHT)["gradient"].status == "pass"
    assert verdicts(case(body), fused(trace))["gradient"].status == "fail"


def test_images_go_through_the_identity_with_their_classes_last(case, verdicts):
    seen = []

    def sees(hidden, linear_weight, target, **options):
        seen.append((hidden.shape, linear_weight.shape))
        flat = fakes.fused(hidden.reshape(-1, 5), linear_weight, target.reshape(-1), **options)
        return flat.reshape(target.shape) if options.get("reduction") == "none" else flat

    images = case("logits: {shape: [2, 5, 3, 4]}, target: {ignore: first}, ignore_index: -100")
    batch = build(images)
    from xentcheck.run.observe import observe

    found = observe(fused(sees), batch, wants_gradient=True).first
    exact = truth(batch, {})
    np.testing.assert_allclose(found.gradient, exact.gradient, rtol=1e-5, atol=1e-7)
    assert seen[0] == ((2, 3, 4, 5), (5, 5))


def test_lint_understands_them(write):
    good = f"id: one, {PLAIN}"
    lacking = good.replace("ignore: first", "classes: [1]")
    header_ok = [m for m in lint(load(write(good))) if "case small/one" in str(m)]
    assert header_ok == []
    assert any("the last class" in str(m) for m in lint(load(write(lacking + ""))))


@pytest.mark.slow
@pytest.mark.parametrize("more", [", mode: twice, upstream: 3", ", mode: no_grad, reduction: none"])
def test_the_script_shows_the_same(case, tmp_path, more):
    one, implementation = case(PLAIN + more), find("linear_maskedce")[0]
    script = tmp_path / "script.py"
    script.write_text(scripts.script(one, implementation, build(one)))
    text = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    exact = np.ravel(truth(build(one), {}).loss)
    for word in ("expected", "found"):
        (line,) = (line for line in text.splitlines() if line.startswith(f"{word} loss"))
        np.testing.assert_allclose([float(number) for number in line.split()[2:]], exact, rtol=1e-6)
    differences = [abs(float(a) - float(b)) for a, b in _pairs(text)]
    assert all(d < 1e-5 for d in differences)
    assert (len(differences) > 0) == ("no_grad" not in more)


def _pairs(text):
    for line in text.splitlines():
        if line.startswith("gradient"):
            yield line.split("expected ")[1].split(" found ")
