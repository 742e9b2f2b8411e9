"""What is written down of a call: every way to get an answer, everything that can go wrong with it, and what was touched."""

import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fakes
from xentcheck.implementation import Implementation
from xentcheck.implementation.purity import GlobalState
from xentcheck.reference.truth import truth
from xentcheck.run.observe import observe
from xentcheck.spec.batch import build


@pytest.fixture
def seen(case):
    """``seen(function, body)``: what is observed of a function on a case of three positions and four classes."""

    def look(function, body="logits: {shape: [3, 4]}", **form):
        asked = case(body)
        implementation = Implementation(name="fake", cross_entropy=function, **form)
        return observe(implementation, build(asked), asked.has_gradient)

    return look


def changing(action):
    def loss(input, target, **options):
        value = F.cross_entropy(input, target, **options)
        action(input, target, options)
        return value

    return loss


# --- answers


def test_an_answer_is_written_down_exactly(seen, case):
    observed = seen(F.cross_entropy)
    x = build(case("logits: {shape: [3, 4]}")).input.requires_grad_()
    loss = F.cross_entropy(x, build(case("logits: {shape: [3, 4]}")).target)
    loss.backward()
    assert observed.first.loss == loss.double().item()
    assert np.array_equal(observed.first.gradient, x.grad.double().numpy())
    assert (observed.first.loss_type, observed.first.gradient_type) == ("float32", "float32")
    assert observed.first.raised is None
    assert observed.changed == observed.warnings == ()
    assert observed.again.loss == observed.first.loss


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_dtypes_are_written_down(seen, dtype):
    answer = seen(fakes.right, f"logits: {{shape: [3, 4]}}, dtype: {dtype}").first
    assert (answer.loss_type, answer.gradient_type) == (dtype, dtype)
    assert answer.loss.dtype == answer.gradient.dtype == np.float64


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (fakes.returns_float, "float"),
        (fakes.returns_none, "NoneType"),
        (lambda *a, **o: [1.0], "list"),
        (lambda *a, **o: np.float32(1), "float32"),
    ],
)
def test_what_is_no_tensor_is_named(seen, function, kind):
    answer = seen(function).first
    assert (answer.loss, answer.loss_type, answer.gradient) == (None, kind, None)


def test_a_compiled_loss_is_called_with_as_many_shapes_as_the_suite_has(cases):
    """torch.compile gives up after eight variants: silently, or with an error where no part may run uncompiled."""
    compiled = torch.compile(F.cross_entropy, fullgraph=True, dynamic=False, backend="eager")
    implementation = Implementation(name="compiled", cross_entropy=compiled)
    try:
        for one in cases(*(f"id: n{n}, logits: {{shape: [{n}, 3]}}" for n in range(2, 13))):
            assert observe(implementation, build(one), False, 1).first.raised is None, one.id
    finally:
        torch.compiler.reset()


def test_an_error_in_the_call(seen):
    observed = seen(fakes.raises)
    assert (observed.first.raised.phase, observed.first.raised.type) == ("call", "RuntimeError")
    assert str(observed.first.raised) == "RuntimeError in the call: the kernel is out of order"
    assert observed.first.loss is None
    assert observed.again is None


def test_an_error_without_a_text(seen):
    def silent(input, target):
        raise ValueError

    assert str(seen(silent).first.raised) == "ValueError in the call: "


def test_an_error_in_the_backward_pass_keeps_the_loss(seen):
    answer = seen(fakes.raises_in_backward).first
    assert str(answer.raised) == "RuntimeError in the backward pass: no backward pass today"
    assert np.isfinite(answer.loss)
    assert answer.gradient is None


def test_a_loss_without_a_graph_cannot_go_backward(seen):
    answer = seen(fakes.no_graph).first
    assert answer.raised.phase == "backward"
    assert "does not require grad" in answer.raised.text


def test_a_graph_that_misses_the_input_gives_no_gradient(seen):
    answer = seen(fakes.gradient_elsewhere).first
    assert answer.raised is None
    assert answer.gradient is None
    assert answer.gradient_type == ""


def test_a_loss_of_the_wrong_shape_and_dtype_is_written_down_as_it_is(seen):
    assert seen(fakes.wrong_shape).first.loss.shape == (1,)
    assert seen(fakes.wrong_dtype).first.loss_type == "float64"


def test_an_interrupt_is_not_swallowed_and_state_is_restored(seen):
    def interrupted(input, target, **options):
        torch.set_default_dtype(torch.float64)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        seen(interrupted)
    assert torch.get_default_dtype() == torch.float32


# --- modes: what native answers is what the definition says

MODES = [
    "mode: eager",
    "mode: twice",
    "mode: func_grad",
    "mode: func_grad, reduction: none, upstream: per-position",
    "mode: vmap, reduction: none",
    "mode: double_backward",
    "mode: double_backward, reduction: none, upstream: per-position, target: {ignore: first}",
    "mode: twice, reduction: none, upstream: {scalar: 2, layout: expanded}",
    "mode: eager, reduction: none, upstream: unit",
    "reduction: sum, upstream: -3",
    "mode: accumulated, weight: [1, 2, 0.5, 3]",
    "mode: accumulated, logits: {shape: [4, 1]}, weight: [2], target: {probabilities: one-hot}",
    "mode: eager, padded_to: 5, ignore_index: -1",
]


@pytest.mark.parametrize("body", MODES)
def test_every_mode_gets_loss_and_gradient(seen, case, body):
    body = f"dtype: float64, {'' if 'logits' in body else 'logits: {shape: [3, 4]}, '}{body}"
    answer, right = seen(F.cross_entropy, body).first, truth(build(case(body)), {})
    assert answer.raised is None
    np.testing.assert_allclose(answer.loss, right.loss.astype(float), rtol=1e-14)
    np.testing.assert_allclose(answer.gradient, right.gradient.astype(float), rtol=1e-13, atol=1e-16)
    assert (answer.second is None) == (right.second is None)
    if right.second is not None:
        np.testing.assert_allclose(answer.second, right.second.astype(float), rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_without_gradients_there_is_only_a_loss(seen, case, mode):
    body = f"logits: {{shape: [3, 4]}}, mode: {mode}"
    answer = seen(F.cross_entropy, body).first
    np.testing.assert_allclose(answer.loss, truth(build(case(body)), {}).loss.astype(float), rtol=1e-6)
    assert (answer.gradient, answer.gradient_type) == (None, "")


@pytest.mark.parametrize(
    ("mode", "grad", "inference"), [("eager", True, False), ("no_grad", False, False), ("inference_mode", False, True)]
)
def test_a_mode_is_what_the_call_sees(seen, mode, grad, inference):
    found = []
    seen(
        changing(lambda x, t, o: found.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))),
        f"logits: {{shape: [3, 4]}}, mode: {mode}",
    )
    assert found == [(grad, inference)] * 2


def test_a_graph_made_in_spite_of_no_grad_is_noted(seen):
    def stubborn(input, target):
        with torch.enable_grad():
            return F.cross_entropy(input, target)

    assert seen(stubborn, "logits: {shape: [3, 4]}, mode: no_grad").first.requires_grad


def test_autocast_is_on_in_the_call_and_off_in_the_backward_pass(seen):
    found = []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            found.append(torch.is_autocast_enabled("cpu"))
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            found.append(torch.is_autocast_enabled("cpu"))
            return g

    seen(lambda x, t: Watch.apply(F.cross_entropy(x, t)), "logits: {shape: [3, 4]}, mode: autocast")
    assert found == [True, False] * 2


def test_compile_hands_the_function_to_torch(seen, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f: compiled.append(f) or f)
    answer = seen(F.cross_entropy, "logits: {shape: [3, 4]}, mode: compile").first
    assert len(compiled) == 1  # once for both calls: compiling takes seconds
    assert compiled[0] is not F.cross_entropy  # torch 2.6 compiles its own functions inside others only
    assert answer.gradient is not None


def test_twice_asks_for_a_second_backward_pass(seen):
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.used = False
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            if ctx.used:
                raise RuntimeError("used up")
            ctx.used = True
            return g

    def once(input, target):
        return Once.apply(F.cross_entropy(input, target))

    assert seen(once, "logits: {shape: [3, 4]}").first.raised is None
    assert "used up" in seen(once, "logits: {shape: [3, 4]}, mode: twice").first.raised.text


@pytest.mark.parametrize("mode", ["func_grad", "vmap, reduction: none"])
def test_errors_under_function_transforms(seen, mode):
    assert seen(fakes.raises, f"logits: {{shape: [3, 4]}}, mode: {mode}").first.raised.phase == "call"


def test_errors_of_the_second_derivative_belong_to_the_backward_pass(seen):
    class NotAgain(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return g * 2

    answer = seen(
        lambda x, t: F.cross_entropy(NotAgain.apply(x), t), "logits: {shape: [3, 4]}, mode: double_backward"
    ).first
    assert answer.raised.phase == "backward"


# --- forms


def test_loss_and_gradient_from_arrays(seen, case):
    answer = seen(None, "logits: {shape: [3, 4]}, upstream: 2", loss_and_gradient=fakes.arrays).first
    right = truth(build(case("logits: {shape: [3, 4]}, upstream: 2")), {})
    np.testing.assert_allclose(answer.loss, right.loss.astype(float), rtol=1e-6)
    np.testing.assert_allclose(answer.gradient, right.gradient.astype(float), rtol=1e-5)
    assert (answer.loss_type, answer.gradient_type) == ("float32", "float32")


@pytest.mark.parametrize(
    ("returned", "missing"),
    [
        ((1.0, None), "gradient"),
        ((None, np.zeros((3, 4))), "loss"),
        (("a word", np.zeros((3, 4))), "loss"),
        ((1.0, "a word"), "gradient"),
    ],
)
def test_arrays_that_are_none(seen, returned, missing):
    answer = seen(None, loss_and_gradient=lambda *a, **o: returned).first
    assert getattr(answer, missing) is None


@pytest.mark.parametrize("returned", [1.0, None, (1.0, 2.0, 3.0)])
def test_arrays_that_are_no_pair(seen, returned):
    assert seen(None, loss_and_gradient=lambda *a, **o: returned).first.raised.phase == "call"


def test_a_linear_loss_through_the_identity(seen):
    through, plain = seen(None, linear_cross_entropy=fakes.linear).first, seen(fakes.right).first
    np.testing.assert_allclose(through.loss, plain.loss, rtol=1e-6)
    np.testing.assert_allclose(through.gradient, plain.gradient, rtol=1e-5)


# --- a second call


def test_each_call_gets_fresh_arguments(seen):
    storages = []
    seen(
        lambda x, t, **o: storages.append((x.data_ptr(), x.grad, o["ignore_index"])) or F.cross_entropy(x, t),
        "logits: {shape: [3, 4]}, ignore_index: [1, 2]",
    )
    assert len(storages) == 2
    assert storages[0][1] is storages[1][1] is None
    assert storages[0][2] is not storages[1][2]


def test_kept_state_shows_in_the_second_answer(seen):
    observed = seen(fakes.another_with_every_call)
    ratio = float(observed.again.loss / observed.first.loss)
    assert ratio == pytest.approx(2) or ratio == pytest.approx(1 / 4)


@pytest.mark.parametrize("mode", ["eager", "no_grad", "inference_mode"])
def test_a_buffer_that_is_used_again_shows_in_the_first_loss(seen, mode):
    buffer = torch.zeros(())

    class ReusesItsOutput(torch.autograd.Function):
        @staticmethod
        def forward(ctx, loss):
            buffer.copy_(loss * (1 + buffer))
            return buffer.view(())

        @staticmethod
        def backward(ctx, g):
            return g

    observed = seen(
        lambda x, t: ReusesItsOutput.apply(F.cross_entropy(x, t)), f"logits: {{shape: [3, 4]}}, mode: {mode}"
    )
    assert observed.changed == ("the loss that the call before returned",)


def test_strides_reach_the_call(seen):
    found = []
    seen(
        changing(lambda x, t, o: found.append((x.stride(), t.stride()))),
        "logits: {shape: [3, 4], layout: strided}, target: {layout: strided}",
    )
    assert found == [((8, 2), (2,))] * 2


# --- what was touched

FULL = "logits: {shape: [3, 4]}, weight: random, ignore_index: [-1, -2], upstream: per-position, reduction: none"


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("input", lambda x, t, o: x.data.mul_(2)),
        ("target", lambda x, t, o: t.zero_()),
        ("weight", lambda x, t, o: o["weight"].add_(1)),
        ("ignore_index", lambda x, t, o: o["ignore_index"].append(3)),
    ],
)
def test_a_changed_argument_is_named(seen, name, action):
    def loss(input, target, *, weight, ignore_index, reduction):
        value = F.cross_entropy(input.clone(), target.clone(), weight.clone(), reduction=reduction)
        action(input, target, {"weight": weight, "ignore_index": ignore_index})
        return value

    assert seen(loss, FULL).changed == (name,)


def test_a_sign_of_zero_that_changed_is_a_change(seen):
    body = "logits: {values: [[0, 0]]}, target: {values: [0]}"
    assert seen(changing(lambda x, t, o: x.data.neg_()), body).changed == ("input",)


def test_nan_in_the_input_is_no_change(seen):
    assert (
        seen(
            F.cross_entropy, "logits: {shape: [3, 4], set: [{rows: [1], value: nan}]}, target: {values: [0, -100, 1]}"
        ).changed
        == ()
    )


class OverwritesUpstream(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        result = gradient.clone()
        gradient.data.zero_()
        return result


def test_an_overwritten_upstream_gradient_is_named(seen):
    observed = seen(
        lambda x, t, **o: OverwritesUpstream.apply(F.cross_entropy(x, t, reduction="none")),
        "logits: {shape: [3, 4]}, reduction: none, upstream: per-position",
    )
    assert observed.changed == ("upstream gradient",)


def test_an_input_overwritten_in_the_backward_pass_is_named(seen):
    class Overwrites(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.kept = x.data
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            ctx.kept.zero_()
            return g

    assert seen(lambda x, t: F.cross_entropy(Overwrites.apply(x), t)).changed == ("input",)


SETTINGS = {
    "default device": lambda: torch.set_default_device("meta"),
    "error handling of NumPy": lambda: np.seterr(over="raise"),
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "grad mode": lambda: torch.set_grad_enabled(False),
    "number of threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "deterministic algorithms": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "autocast dtype": lambda: torch.set_autocast_dtype("cpu", torch.float16),
    "float32 matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
    "random state of torch": lambda: torch.rand(1),
    "random state of NumPy": lambda: np.random.rand(),
    "random state of Python": lambda: random.random(),
    "torch.nn.functional.cross_entropy": lambda: setattr(F, "cross_entropy", None),
    "torch.exp": lambda: setattr(torch, "exp", None),
    "Tensor.split": lambda: setattr(torch.Tensor, "split", None),
    "torch.logsumexp": lambda: delattr(torch, "logsumexp"),
    "Tensor.softmax": lambda: setattr(torch.Tensor, "softmax", lambda self, axis: self),
}


@pytest.fixture
def put_back():
    """Whatever the suite leaves changed would make other tests fail."""
    numpy_errors = np.geterr()
    yield
    torch.set_grad_enabled(True)
    torch.set_default_device(None)
    np.seterr(**numpy_errors)
    if "softmax" in vars(torch.Tensor):
        del torch.Tensor.softmax


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.usefixtures("put_back")
def test_changed_global_state_is_named_and_put_back(name):
    before = GlobalState()
    SETTINGS[name]()
    changed = before.restore()
    assert changed == (name,)
    assert before.restore() == ()
    assert GlobalState().restore() == ()


# Under no_grad the grad mode is off already.
@pytest.mark.parametrize(
    ("mode", "name"), [(m, n) for m in ("eager", "no_grad") for n in SETTINGS if (m, n) != ("no_grad", "grad mode")]
)
@pytest.mark.usefixtures("put_back")
def test_a_loss_that_changes_global_state_is_found_out_and_undone(seen, name, mode):
    cross_entropy = F.cross_entropy

    def loss(input, target, **options):
        value = cross_entropy(input, target, **options)
        SETTINGS[name]()
        return value

    assert seen(loss, f"logits: {{shape: [3, 4]}}, mode: {mode}").changed == (name,)
    assert seen(cross_entropy).changed == ()
    assert F.cross_entropy is cross_entropy
    assert torch.exp(torch.zeros(1)) == 1


def test_state_is_put_back_before_the_second_call(seen):
    found = []

    def loss(input, target, **options):
        found.append(torch.get_default_dtype())
        value = F.cross_entropy(input, target, **options)
        torch.set_default_dtype(torch.float64)
        return value

    seen(loss)
    assert found == [torch.float32] * 2


def test_random_numbers_are_the_same_for_both_calls(seen):
    found = []
    seen(changing(lambda x, t, o: found.append((torch.rand(1).item(), np.random.rand(), random.random()))))
    assert found[0] == found[1]


def test_warnings_are_collected_once_and_not_shown(seen):
    def warns(input, target):
        warnings.warn("old-fashioned", DeprecationWarning, stacklevel=1)
        return F.cross_entropy(input, target)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        observed = seen(warns)
        assert not caught
    assert observed.warnings == ("DeprecationWarning: old-fashioned",)
