"""Verdicts on implementations that are right, and on those that are wrong, lie or excuse themselves in known ways."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fakes
from xentcheck.implementation import LOGITS_CAPABILITIES, Deviation, Implementation, from_callable
from xentcheck.reference import truth as truths
from xentcheck.reference.definition import ALLOWED_UNITS
from xentcheck.run.examiner import Examiner
from xentcheck.run.status import Status, of_case
from xentcheck.spec.batch import build

PLAIN = "logits: {shape: [3, 4]}"
IGNORED = "logits: {shape: [3, 4], set: [{rows: ignored, value: nan}]}, target: {ignore: first}"
EMPTY = "logits: {shape: [3, 4]}, target: {ignore: all}"


def statuses(found):
    return {aspect: verdict.status for aspect, verdict in found.items()}


def all_pass(found):
    return set(statuses(found).values()) == {"pass"}


def implementation(function, **claims):
    return Implementation(name="fake", cross_entropy=function, **claims)


# --- right ones

RIGHT = [
    PLAIN,
    IGNORED,
    EMPTY,
    "logits: {shape: [3, 4], set: [{classes: [1], value: -inf}]}, target: {classes: [0, 2, 3]}, reduction: none, upstream: per-position",
    "logits: {shape: [3, 4], set: [{rows: [1], classes: target, value: -inf}]}, reduction: none",
    "logits: {shape: [3, 4], set: [{rows: [1], value: -inf}]}, reduction: none",
    "logits: {shape: [2, 4, 3]}, reduction: sum, weight: random, label_smoothing: 0.1, ignore_index: [1, -1], target: {ignore: {every: 2}}",
    "logits: {shape: [4]}",
    "logits: {shape: [0, 4]}, reduction: none",
    "logits: {shape: [0, 4]}",
    "logits: {values: [[1, 2]]}, target: {values: [2]}, expect: {error: {}}",
    f"{PLAIN}, mode: no_grad",
    f"{PLAIN}, mode: autocast",
    f"{PLAIN}, reduction: none, upstream: {{scalar: 2, layout: expanded}}",
]


DTYPES = ("float64", "float32", "bfloat16", "float16")


@pytest.mark.parametrize(
    ("body", "dtype"),
    [
        *((f"{body}, dtype: {dtype}", dtype) for body in RIGHT for dtype in DTYPES),
        (f"{PLAIN}, mode: double_backward, dtype: float64", "float64"),
    ],
)
def test_a_right_implementation_passes(case, verdicts, body, dtype):
    found = verdicts(case(body), fakes.right)
    assert all_pass(found), {a: v.message for a, v in found.items()}
    for aspect in {"loss", "gradient"} & found.keys():
        assert found[aspect].error_units <= ALLOWED_UNITS[dtype]


def test_a_verdict_says_of_what_it_is(case, verdicts):
    found = verdicts(case(f"{PLAIN}, dtype: bfloat16"), fakes.right)["loss"]
    assert (found.implementation, found.clause, found.case, found.aspect, found.dtype, found.message) == (
        "right",
        "small",
        "small/one",
        "loss",
        "bfloat16",
        "",
    )


@pytest.mark.parametrize(
    "body",
    [
        PLAIN,
        "logits: {shape: [3, 4], set: [{rows: [0], value: nan}]}",
        "logits: {shape: [3, 4], set: [{rows: [0], classes: others, value: -inf}]}, reduction: none",
        EMPTY,
    ],
)
def test_float64_is_judged_the_same_without_extended_long_double(case, verdicts, monkeypatch, body):
    monkeypatch.setattr(truths, "longdouble_is_extended", lambda: False)
    asked = case(f"{body}, dtype: float64")
    assert all_pass(verdicts(asked, fakes.right))
    assert verdicts(asked, fakes.off_by_a_thousandth)["loss"].status == (
        "fail" if body in (PLAIN, RIGHT[3]) or "none" in body else "pass"
    )


# --- wrong ones: (fake, case) -> aspect, status, kind of fault, what the message says

NUMBER = r"-?\d[\d.e+-]*"
WRONG = [
    (fakes.off_by_a_thousandth, PLAIN, "loss", "fail", "value", rf"^expected a loss of {NUMBER}; found {NUMBER}, off by {NUMBER} units where 3 are allowed$"),
    (fakes.off_by_a_thousandth, f"{PLAIN}, reduction: none", "loss", "fail", "value", rf"^expected a loss of {NUMBER}; found {NUMBER} at \[0\], off by {NUMBER} units where 3 are allowed; 3 of 3 values are wrong, the worst by {NUMBER} units$"),
    (fakes.off_by_a_thousandth, f"{PLAIN}, dtype: bfloat16, reduction: sum", "loss", "pass", "", "^$"),
    (lambda x, t, **o: fakes.right(x, t, **o) * 1.05, f"{PLAIN}, dtype: bfloat16, reduction: sum", "loss", "fail", "value", "units where 1 is allowed"),
    (fakes.gradient_off_by_a_thousandth, PLAIN, "gradient", "fail", "value", rf"^expected a gradient of {NUMBER}; found {NUMBER} at \[0, 0\], off by {NUMBER} units where 3 are allowed; 12 of 12 values are wrong"),
    (fakes.gradient_off_by_a_thousandth, PLAIN, "loss", "pass", "", "^$"),
    (fakes.nan_loss, PLAIN, "loss", "fail", "nan", rf"^expected a loss of {NUMBER}; found nan$"),
    (fakes.nan_loss, PLAIN, "gradient", "fail", "nan", r"found nan at \[0, 0\]"),
    (fakes.infinite_loss, PLAIN, "loss", "fail", "inf", "; found inf$"),
    (fakes.zero_gradient, PLAIN, "gradient", "fail", "value", r"found 0\.0 at \[0, 0\]"),
    (fakes.zero_gradient, "logits: {shape: [4096, 4]}", "gradient", "fail", "value", "found 0.0 at"),
    (fakes.zero_gradient, f"{PLAIN}, upstream: 1e-20", "gradient", "fail", "value", "found 0.0 at"),
    (fakes.never_nan, "logits: {shape: [3, 4], set: [{rows: [1], value: nan}]}", "loss", "fail", "value", "^expected a loss of nan; found 0.0$"),
    (fakes.never_nan, "logits: {shape: [3, 4], set: [{rows: [1], classes: target, value: -inf}]}", "loss", "fail", "value", "^expected a loss of inf; found "),
    (fakes.nan_loss, "logits: {shape: [3, 4], set: [{rows: [1], classes: target, value: -inf}]}", "loss", "fail", "nan", "^expected a loss of inf; found nan$"),
    (fakes.leaks_ignored_gradient, f"{PLAIN}, target: {{ignore: first}}", "gradient", "fail", "nonzero", r"^expected a gradient of 0\.0; found 1\.0\d*e-30 at \[0, 0\], an ignored position; 4 of 12 values are wrong$"),
    (fakes.leaks_ignored_gradient, f"{PLAIN}, target: {{ignore: first}}", "loss", "pass", "", "^$"),
    (fakes.ignored_nan_reaches_gradient, IGNORED, "gradient", "fail", "nan", r"found nan at \[0, 0\], an ignored position; 4 of 12"),
    (fakes.ignored_nan_reaches_gradient, IGNORED, "loss", "pass", "", "^$"),
    (fakes.wrong_shape, PLAIN, "shape", "fail", "shape", r"^expected a loss of shape \(\); found \(1,\)$"),
    (fakes.wrong_shape, PLAIN, "loss", "fail", "shape", r"^expected a loss of shape \(\); found \(1,\)$"),
    (fakes.wrong_shape, f"{PLAIN}, reduction: none", "shape", "fail", "shape", r"^expected a loss of shape \(3,\); found \(1, 3\)$"),
    (fakes.wrong_dtype, PLAIN, "shape", "fail", "dtype", "^expected a loss of dtype float32; found float64$"),
    (fakes.wrong_dtype, PLAIN, "loss", "pass", "", "^$"),
    (fakes.wrong_dtype, f"{PLAIN}, dtype: bfloat16", "shape", "fail", "dtype", "^expected a loss of dtype bfloat16 or float32; found float64$"),
    (lambda x, t: fakes.right(x, t).bfloat16(), PLAIN, "shape", "fail", "dtype", "^expected a loss of dtype float32; found bfloat16$"),
    (fakes.returns_float, PLAIN, "loss", "fail", "missing", "^expected a tensor; found float$"),
    (fakes.returns_float, PLAIN, "shape", "fail", "missing", "^expected a tensor; found float$"),
    (fakes.returns_none, PLAIN, "loss", "fail", "missing", "^expected a tensor; found NoneType$"),
    (fakes.returns_none, PLAIN, "gradient", "fail", "missing", "found none"),
    (fakes.no_graph, PLAIN, "gradient", "error", "raised", "^expected a gradient; found RuntimeError in the backward pass: element 0 of tensors does not require grad"),
    (fakes.no_graph, PLAIN, "loss", "pass", "", "^$"),
    (fakes.gradient_elsewhere, PLAIN, "gradient", "fail", "missing", r"^expected a gradient of the input; found none \(input\.grad is None\)$"),
    (fakes.raises, PLAIN, "loss", "error", "raised", "^expected a loss; found RuntimeError in the call: the kernel is out of order$"),
    (fakes.raises, PLAIN, "gradient", "error", "raised", "^expected a gradient; found RuntimeError in the call"),
    (fakes.raises, PLAIN, "shape", "error", "raised", "^expected a loss; found RuntimeError in the call"),
    (fakes.raises_in_backward, PLAIN, "loss", "pass", "", "^$"),
    (fakes.raises_in_backward, PLAIN, "shape", "pass", "", "^$"),
    (fakes.raises_in_backward, PLAIN, "gradient", "error", "raised", "^expected a gradient; found RuntimeError in the backward pass: no backward pass today$"),
    (fakes.overwrites_input, PLAIN, "purity", "fail", "changed", "^expected a call that leaves everything as it was; found changed: input$"),
    (fakes.another_with_every_call, PLAIN, "purity", "fail", "unstable", rf"^expected the same loss from the same call; found {NUMBER} and then {NUMBER}$"),
    (lambda x, t: F.cross_entropy(F.dropout(x, 0.5), t), PLAIN, "purity", "fail", "changed", "random state of torch"),
    (lambda x, t: F.cross_entropy(x, t) * (1 + 0 * torch.rand(())), PLAIN, "purity", "fail", "changed", "random state of torch"),
    (lambda x, t: torch.set_default_dtype(torch.float64) or F.cross_entropy(x, t), PLAIN, "purity", "fail", "changed", "changed: default dtype$"),
    (lambda x, t: F.cross_entropy(x, t) if torch.is_grad_enabled() else torch.enable_grad()(F.cross_entropy)(x, t), f"{PLAIN}, mode: no_grad", "shape", "fail", "dtype", "^expected a loss without a graph under no_grad; found one that requires grad$"),
    (lambda x, t: F.cross_entropy(x + (1e-3 * x).detach(), t), f"{PLAIN}, mode: double_backward, dtype: float64", "gradient", "fail", "value", "expected a gradient of"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("function", "body", "aspect", "status", "kind", "says"),
    WRONG,
    ids=[f"{w[0].__name__}-{w[2]}-{n}" for n, w in enumerate(WRONG)],
)
def test_what_is_wrong_is_found_and_named(case, verdicts, function, body, aspect, status, kind, says):
    found = verdicts(case(body), function)[aspect]
    assert (found.status, found.kind) == (status, kind), found.message
    assert re.search(says, found.message)


def test_a_wrong_second_derivative_is_a_wrong_gradient(case, verdicts):
    class FirstOrderOnly(torch.autograd.Function):
        """The gradient is right; its own gradient is twice what it should be."""

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return 2 * g - g.detach()

    found = verdicts(
        case(f"{PLAIN}, mode: double_backward, dtype: float64"),
        lambda x, t: F.cross_entropy(FirstOrderOnly.apply(x), t),
    )
    assert found["gradient"].message.startswith("expected a gradient of the gradient of ")
    assert found["gradient"].kind == "value"
    assert found["loss"].status == "pass"


def test_a_loss_with_an_axis_too_many_is_judged_in_every_aspect(case, verdicts):
    found = verdicts(
        case(f"{PLAIN}, reduction: none"), lambda x, t, reduction: fakes.right(x, t, reduction=reduction).unsqueeze(1)
    )
    assert found["shape"].message == "expected a loss of shape (3,); found (3, 1)"
    assert (found["loss"].status, found["purity"].status) == ("fail", "pass")


def test_a_gradient_of_the_wrong_dtype_or_shape(case, verdicts):
    def arrays(change):
        def both(input, target, upstream):
            loss, gradient = fakes.arrays(input, target, upstream)
            return loss, change(gradient)

        return Implementation(name="arrays", loss_and_gradient=both)

    asked = case(PLAIN)
    assert all_pass(verdicts(asked, arrays(lambda g: g)))
    assert (
        verdicts(asked, arrays(lambda g: g.astype("float64")))["shape"].message
        == "expected a gradient of dtype float32; found float64"
    )
    turned = verdicts(asked, arrays(lambda g: g.T))
    assert turned["shape"].message == turned["gradient"].message == "expected a gradient of shape (3, 4); found (4, 3)"


def test_error_units_are_the_largest_error_of_the_values(case, verdicts):
    asked = case(f"{PLAIN}, reduction: none")
    right = truths.truth(build(asked), {})

    def off(x, t, reduction):
        shift = torch.tensor([0.0, 10.0, 5.0]) * torch.from_numpy(right.loss_unit).float()
        return fakes.right(x, t, reduction=reduction) + shift

    found = verdicts(asked, off)["loss"]
    assert found.status == "fail"
    assert found.error_units == pytest.approx(10, abs=1)
    assert "at [1]" in found.message
    assert "2 of 3 values are wrong, the worst by" in found.message


def test_last_calls_answer_is_found_out_by_the_next_case(cases):
    one, two = cases(f"id: one, {PLAIN}", f"id: two, {PLAIN}")
    examiner, fake = Examiner(), implementation(fakes.last_calls_answer)
    fakes._kept.clear()
    assert examiner.examine(one, "loss", fake).status == "pass"
    assert examiner.examine(one, "gradient", fake).status == "pass"
    assert examiner.examine(one, "purity", fake).status == "fail", "the second answer has no graph"
    assert examiner.examine(two, "loss", fake).status == "fail"


# --- capabilities


def test_what_is_not_claimed_is_not_asked(case, verdicts):
    found = verdicts(
        case(f"{PLAIN}, label_smoothing: 0.1, weight: random"),
        fakes.raises,
        capabilities=LOGITS_CAPABILITIES - {"label_smoothing", "weight"},
    )
    assert {v.status for v in found.values()} == {"unsupported"}
    assert found["loss"].message == "not claimed: label_smoothing, weight"


def test_a_capability_that_is_claimed_and_raises_is_an_error(case, verdicts):
    assert verdicts(case(f"{PLAIN}, label_smoothing: 0.1"), fakes.refuses_label_smoothing)["loss"].status == "error"


def test_a_capability_that_is_claimed_and_dropped_is_a_failure(case, verdicts):
    found = verdicts(case(f"{PLAIN}, label_smoothing: 0.1"), fakes.drops_label_smoothing)
    assert (found["loss"].status, found["gradient"].status) == ("fail", "fail")


def right_mean(input, target):
    return fakes.right(input, target)


def test_a_loss_without_a_gradient_is_asked_for_all_else(case):
    """It cannot read tensors that require a gradient, as NumPy cannot."""

    def forward_only(input, target, **options):
        return torch.from_numpy(np.asarray(fakes.right(torch.from_numpy(input.numpy()), target, **options)))

    claims = LOGITS_CAPABILITIES - {"backward"}
    for mode in ("eager", "twice", "accumulated", "no_grad"):
        asked = case(f"{PLAIN}, mode: {mode}")
        examiner, fake = Examiner(), implementation(forward_only, capabilities=claims)
        found = {a: examiner.examine(asked, a, fake) for a in examiner.aspects(asked, fake)}
        assert {a: str(v.status) for a, v in found.items() if a != "gradient"} == {
            "loss": "pass",
            "shape": "pass",
            "purity": "pass",
        }
        assert mode == "no_grad" or found["gradient"].message == "not claimed: backward"
    shift = examiner.examine(case(PLAIN), "shift", fake)
    assert (shift.status, shift.message) == ("unsupported", "not claimed: backward")


def only_minus_100(input, target, reduction="mean"):
    return F.cross_entropy(input, target, reduction=reduction)


def only_a_mean(input, target, ignore_index=-100):
    return F.cross_entropy(input, target, ignore_index=ignore_index)


@pytest.mark.parametrize(
    ("function", "options", "status"),
    [
        (only_minus_100, "", "pass"),
        (only_minus_100, "ignore_index: -100", "pass"),
        (only_minus_100, "ignore_index: -100, reduction: sum, label_smoothing: 0", "pass"),
        (only_minus_100, "ignore_index: -1", "unsupported"),
        (only_a_mean, "reduction: mean", "pass"),
        (only_a_mean, "ignore_index: -1, reduction: mean", "pass"),
        (only_a_mean, "reduction: sum", "unsupported"),
    ],
)
def test_a_loss_with_few_options_is_asked_what_it_can_be_asked(case, verdicts, function, options, status):
    asked = case(f"{PLAIN}, target: {{ignore: first}}{', ' * bool(options)}{options}")
    assert set(statuses(verdicts(asked, from_callable(function, "bare"))).values()) == {status}


def test_an_option_at_its_default_is_passed_to_those_that_claim_it(case, verdicts):
    found = verdicts(case(f"{PLAIN}, reduction: mean"), only_a_mean, capabilities=LOGITS_CAPABILITIES)
    assert "unexpected keyword argument 'reduction'" in found["loss"].message


def test_a_bare_loss_that_refuses_minus_100_never_said_that_it_takes_it(case, verdicts):
    def refuses_negatives(input, target):
        if (target < 0).any():
            raise ValueError("no such class")
        return F.cross_entropy(input, target)

    found = verdicts(case(f"{PLAIN}, target: {{ignore: first}}"), from_callable(refuses_negatives, "bare"))
    assert set(statuses(found).values()) == {"unsupported"}


def test_arrays_have_no_graph_to_leave_out(case, verdicts):
    """The loss still has one where the implementation made it under autograd."""

    def both(input, target, upstream, **options):
        with torch.inference_mode(False), torch.enable_grad():
            x = input.clone().requires_grad_()
            loss = fakes.right(x, target, **options)
            loss.backward(upstream)
        return loss, x.grad.numpy()

    for mode in ("no_grad", "inference_mode"):
        found = verdicts(case(f"{PLAIN}, mode: {mode}"), Implementation(name="arrays", loss_and_gradient=both))
        assert all_pass(found), {a: v.message for a, v in found.items()}


UNCLAIMED = f"{PLAIN}, label_smoothing: 0.1, expect: {{refused_unless_claimed: true}}"
WITHOUT = LOGITS_CAPABILITIES - {"label_smoothing"}


def test_an_option_that_is_not_claimed_may_not_be_dropped_in_silence(case, verdicts):
    found = verdicts(case(UNCLAIMED), fakes.drops_label_smoothing, capabilities=WITHOUT)
    assert statuses(found) == {
        "loss": "unsupported",
        "gradient": "unsupported",
        "shape": "unsupported",
        "rejection": "fail",
        "purity": "unsupported",
    }
    assert found["rejection"].kind == "accepted"
    assert re.fullmatch(
        rf"expected an error, since an option that is not claimed must not be ignored silently; found a loss of {NUMBER}",
        found["rejection"].message,
    )


def test_an_option_that_is_not_claimed_may_be_refused(case, verdicts):
    assert verdicts(case(UNCLAIMED), fakes.refuses_label_smoothing, capabilities=WITHOUT)["rejection"].status == "pass"


def test_an_option_that_is_claimed_is_not_to_be_refused(case, verdicts):
    found = verdicts(case(UNCLAIMED), fakes.right)
    assert found["rejection"].status == "unsupported"
    assert {found[a].status for a in ("loss", "gradient", "shape", "purity")} == {"pass"}


def test_a_refusal_is_not_asked_for_what_is_no_option(case, verdicts):
    found = verdicts(
        case(f"{PLAIN}, mode: vmap, reduction: none, expect: {{refused_unless_claimed: true}}"),
        fakes.right,
        capabilities=LOGITS_CAPABILITIES - {"vmap"},
    )
    assert found["rejection"].status == "unsupported"


def test_what_was_never_asked_about_may_be_refused_but_not_answered_wrongly(case, verdicts):
    asked = case("logits: {shape: [2, 4, 3]}")

    def two_dimensions_only(input, target):
        if input.dim() != 2:
            raise ValueError("expected (N, C)")
        return fakes.right(input, target)

    def flat(input, target):
        return input.sum() * 0

    found = verdicts(asked, from_callable(two_dimensions_only, "f"))
    assert set(statuses(found).values()) == {"unsupported"}
    assert found["loss"].message == "refused: ValueError in the call: expected (N, C)"
    assert verdicts(asked, from_callable(flat, "f"))["loss"].status == "fail"
    stated = Implementation(name="f", cross_entropy=two_dimensions_only)
    assert verdicts(asked, stated)["loss"].status == "error"


def test_a_refusal_in_the_backward_pass_comes_too_late(case, verdicts):
    found = verdicts(case("logits: {shape: [2, 4, 3]}"), from_callable(fakes.raises_in_backward, "f"))
    assert found["gradient"].status == "error"


def test_a_refusal_that_leaves_a_mess_is_none(case, verdicts):
    def spoils_and_refuses(input, target):
        input.data.zero_()
        raise ValueError("no")

    found = verdicts(case("logits: {shape: [2, 4, 3]}"), from_callable(spoils_and_refuses, "f"))
    assert found["purity"].status == "fail"


def test_nothing_is_called_where_the_library_is_missing(case, verdicts):
    found = verdicts(case(PLAIN), fakes.raises, unavailable="no GPU here")
    assert {v.status for v in found.values()} == {"unavailable"}
    assert found["loss"].message == "no GPU here"


# --- conventions


def empty_mean(answer):
    def loss(input, target, **options):
        ignored = (target == -100).all()
        return fakes.right(input, target, **options) + (answer if ignored else 0.0)

    return loss


@pytest.mark.parametrize(
    ("gives", "states", "status"),
    [
        (0.0, None, "pass"),
        (torch.nan, None, "pass"),
        (0.0, "zero", "pass"),
        (torch.nan, "nan", "pass"),
        (0.0, "nan", "fail"),
        (torch.nan, "zero", "fail"),
        (1.0, None, "fail"),
    ],
)
@pytest.mark.parametrize(
    "body", [EMPTY, f"{EMPTY}, expect: {{loss: empty-mean, gradient: zero}}", f"{EMPTY}, dtype: float64"]
)
def test_a_convention_binds_whoever_states_it(case, verdicts, body, gives, states, status):
    found = verdicts(case(body), empty_mean(gives), empty_mean=states)["loss"]
    assert found.status == status
    if status == "pass":
        assert found.conventions == {"empty_mean": "nan" if gives != gives else "zero"}
    elif states is None:
        assert found.message == "expected a loss of nan or 0.0; found 1.0"
    else:
        assert (
            found.message
            == f"expected a loss of {'nan' if states == 'nan' else '0.0'}; found {'0.0' if gives == 0 else 'nan'}"
        )


def test_no_convention_excuses_another_question(case, verdicts):
    found = verdicts(case(PLAIN), fakes.right)["loss"]
    assert found.conventions == {}
    assert verdicts(case(PLAIN), fakes.nan_loss)["loss"].status == "fail"


@pytest.mark.parametrize(
    ("gives", "states", "status"),
    [("inf", None, "pass"), ("nan", None, "pass"), ("inf", "nan", "fail"), ("nan", "nan", "pass"), ("0", None, "fail")],
)
def test_a_row_with_plus_infinity(case, verdicts, gives, states, status):
    asked = case(
        "logits: {shape: [3, 4], set: [{rows: [1], classes: [0], value: inf}]}, target: {classes: [1, 3]}, reduction: none"
    )

    def loss(input, target, **options):
        losses = fakes.right(input, target, **options)
        return torch.where(input.isinf().any(1), torch.tensor(float(gives)), losses)

    found = verdicts(asked, loss, infinite_row=states)
    assert found["loss"].status == status
    assert found["loss"].conventions == ({"infinite_row": gives} if status == "pass" else {})


@pytest.mark.parametrize(("states", "status"), [(None, "pass"), ("refused", "pass"), ("taken", "error")])
def test_int32_targets_may_be_refused(case, verdicts, states, status):
    asked = case(f"{PLAIN}, target: {{dtype: int32}}, expect: {{convention: int32_target}}")
    found = verdicts(asked, fakes.raises, int32_target=states)
    assert statuses(found)["loss"] == statuses(found)["gradient"] == statuses(found)["shape"] == status
    assert found["loss"].conventions == ({"int32_target": "refused"} if status == "pass" else {})


@pytest.mark.parametrize(("states", "status"), [(None, "pass"), ("taken", "pass"), ("refused", "fail")])
def test_int32_targets_may_be_taken(case, verdicts, states, status):
    asked = case(f"{PLAIN}, target: {{dtype: int32}}, expect: {{convention: int32_target}}")
    found = verdicts(asked, fakes.right, int32_target=states)["loss"]
    assert (found.status, found.conventions) == (status, {"int32_target": "taken"} if status == "pass" else {})
    assert verdicts(asked, fakes.off_by_a_thousandth)["loss"].status == "fail", "taken, and wrong"


@pytest.mark.parametrize(
    ("gives", "states", "status"),
    [
        ("input", None, "pass"),
        ("float32", None, "pass"),
        ("input", "input", "pass"),
        ("float32", "float32", "pass"),
        ("input", "float32", "fail"),
        ("float32", "input", "fail"),
    ],
)
def test_the_dtype_of_a_half_loss(case, verdicts, gives, states, status):
    def loss(input, target, **options):
        found = fakes.right(input.float(), target, **options)
        return found.to(input.dtype) if gives == "input" else found

    found = verdicts(case(f"{PLAIN}, dtype: float16"), loss, half_loss_dtype=states)["shape"]
    assert (found.status, found.conventions) == (status, {"half_loss_dtype": gives} if status == "pass" else {})
    assert verdicts(case(PLAIN), loss, half_loss_dtype=states)["shape"].status == "pass", "float32 has no such question"


# --- what beyond the largest number is, and what is nearly there

OVERFLOW = "dtype: float16, reduction: sum, target: {values: [0]}, logits: {values: [[%s, 0]]}"  # the loss is the spread of the two


@pytest.mark.parametrize(
    ("low", "returned", "status"),
    [
        (-65000, 65000.0, "pass"),
        (-65000, float("inf"), "fail"),
        (-60000, 60000.0, "pass"),
    ],
)
def test_losses_within_float16(case, verdicts, low, returned, status):
    assert verdicts(case(OVERFLOW % low), lambda x, t, reduction: (0 * x).sum() + returned)["loss"].status == status


@pytest.mark.parametrize(
    ("rows", "returned", "status"),
    [(2, float("inf"), "pass"), (2, 65504.0, "fail"), (2, float("nan"), "fail"), (2, -float("inf"), "fail")],
)
def test_losses_beyond_float16_are_infinite(case, verdicts, rows, returned, status):
    asked = case(
        "dtype: float16, reduction: sum, target: {values: [0, 0]}, logits: {values: [[-65000, 0], [-65000, 0]]}"
    )
    assert verdicts(asked, lambda x, t, reduction: (0 * x).sum() + returned)["loss"].status == status


def test_a_float32_loss_of_float16_logits_does_not_overflow(case, verdicts):
    asked = case(
        "dtype: float16, reduction: sum, target: {values: [0, 0]}, logits: {values: [[-65000, 0], [-65000, 0]]}"
    )
    # -65000 is -64992 in float16
    assert (
        verdicts(asked, lambda x, t, reduction: F.cross_entropy(x.float(), t, reduction=reduction))["loss"].status
        == "pass"
    )
    assert verdicts(asked, lambda x, t, reduction: (0 * x.float()).sum() + float("inf"))["loss"].status == "fail"


@pytest.mark.parametrize("excess", [6, 12])
def test_a_loss_that_rounds_to_the_largest_number_is_that_number(case, verdicts, excess):
    """65504 + 6 lies nearer to 65504 than to the next step, 65536."""
    asked = case(
        f"dtype: float16, reduction: sum, target: {{values: [0, 0]}}, logits: {{values: [[-65504, 0], [-{excess}, 0]]}}"
    )
    found = verdicts(asked, lambda x, t, reduction: F.cross_entropy(x.float(), t, reduction=reduction).to(x.dtype))[
        "loss"
    ]
    assert found.status == "pass", found.message


# --- what a case may expect


@pytest.mark.parametrize(
    ("word", "function", "status"),
    [
        ("finite", fakes.right, "pass"),
        ("finite", fakes.off_by_a_thousandth, "pass"),
        ("finite", fakes.nan_loss, "fail"),
        ("finite", fakes.infinite_loss, "fail"),
        ("unspecified", fakes.nan_loss, "pass"),
        ("unspecified", fakes.off_by_a_thousandth, "pass"),
        ("unspecified", fakes.raises, "error"),
        ("unspecified", fakes.returns_float, "fail"),
        ("nan", fakes.nan_loss, "pass"),
        ("nan", fakes.right, "fail"),
        ("nan", fakes.infinite_loss, "fail"),
        ("inf", fakes.infinite_loss, "pass"),
        ("inf", fakes.nan_loss, "fail"),
        ("inf", lambda x, t: -fakes.infinite_loss(x, t), "fail"),
        ("zero", lambda x, t: 0 * x.sum(), "pass"),
        ("zero", lambda x, t: 0 * x.sum() + 1e-30, "fail"),
        ("zero", fakes.right, "fail"),
        ("1.5", lambda x, t: 0 * x.sum() + 1.5, "pass"),
        ("1.5", lambda x, t: 0 * x.sum() + 1.50001, "fail"),
    ],
)
def test_an_expected_loss(case, verdicts, word, function, status):
    assert verdicts(case(f"{PLAIN}, expect: {{loss: {word}}}"), function)["loss"].status == status


@pytest.mark.parametrize(
    ("word", "function", "status"),
    [
        ("zero", lambda x, t: 0 * x.sum(), "pass"),
        ("zero", lambda x, t: 1e-30 * x.sum(), "fail"),
        ("zero", fakes.right, "fail"),
        ("finite", fakes.right, "pass"),
        ("finite", fakes.zero_gradient, "pass"),
        ("finite", fakes.nan_loss, "fail"),
        ("unspecified", fakes.nan_loss, "pass"),
        ("unspecified", fakes.gradient_elsewhere, "fail"),
        ("[[1, 2], [3, 4]]", lambda x, t: (x * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum(), "pass"),
        ("[[1, 2], [3, 4]]", lambda x, t: (x * torch.tensor([[1.0, 2.0], [3.0, 4.001]])).sum(), "fail"),
        ("[[1, 2], [3, 4], [5, 6]]", fakes.right, "fail"),
    ],
)
def test_an_expected_gradient(case, verdicts, word, function, status):
    assert (
        verdicts(case(f"logits: {{shape: [2, 2]}}, expect: {{loss: unspecified, gradient: {word}}}"), function)[
            "gradient"
        ].status
        == status
    )


def test_finite_names_the_first_that_is_not(case, verdicts):
    found = verdicts(case(f"{PLAIN}, expect: {{gradient: finite}}"), fakes.nan_loss)["gradient"]
    assert (found.message, found.kind) == ("expected a finite gradient; found nan at [0, 0]", "nan")


def test_literal_answers_are_compared_one_by_one(case, verdicts):
    asked = case(
        "logits: {values: [[0, 0], [0, 1.0986122886681098]]}, target: {values: [0, 0]}, reduction: none, expect: {loss: [0.6931471805599453, 1.3862943611198906], gradient: [[-0.5, 0.5], [-0.75, 0.75]]}"
    )
    assert all_pass(verdicts(asked, fakes.right))
    assert (
        "at [1]"
        in verdicts(asked, lambda x, t, reduction: fakes.right(x, t, reduction=reduction) + torch.tensor([0.0, 1.0]))[
            "loss"
        ].message
    )


def test_nan_in_the_truths_gradient_leaves_it_open(case, verdicts):
    """A valid row at -inf has no gradient by the definition; its neighbours have."""
    asked = case("logits: {shape: [3, 4], set: [{rows: [1], value: -inf}]}, reduction: none")

    def any_gradient(row, value):
        class Spoil(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

            @staticmethod
            def backward(ctx, g):
                g = g.clone()
                g[row] = value
                return g

        return lambda x, t, reduction: F.cross_entropy(Spoil.apply(x), t, reduction=reduction)

    for value in (0.0, 7.0, torch.nan):
        assert verdicts(asked, any_gradient(1, value))["gradient"].status == "pass"
        assert verdicts(asked, any_gradient(0, value))["gradient"].status == "fail"


# --- errors that are expected

BAD = "logits: {shape: [3, 4]}, target: {values: [0, 4, 1]}"


def refuses(input, target, **options):
    """Whatever is unusual, with the words of ``fakes.raises``."""
    is_usual = not options and input.dim() == 2 and target.shape == input.shape[:1] and not target.is_floating_point()
    if is_usual and ((target >= 0) & (target < input.shape[1])).all():
        return fakes.right(input, target)
    return fakes.raises(input, target)


@pytest.mark.parametrize(
    ("error", "function", "status", "says"),
    [
        ("{}", refuses, "pass", ""),
        ("{}", fakes.always_a_number, "fail", r"expected an error in the call; found a loss of -?0$"),
        ("{}", fakes.returns_none, "fail", "expected an error in the call; found NoneType"),
        ("{}", lambda x, t: x[:, 0] * 0, "fail", r"found a loss of shape \(3,\)"),
        (
            "{}",
            lambda x, t: fakes.raises_in_backward(x, t.clamp(0, 3)),
            "fail",
            "expected an error in the call; found a loss of",
        ),
        ("{phase: backward}", lambda x, t: fakes.raises_in_backward(x, t.clamp(0, 3)), "pass", ""),
        ("{phase: backward}", refuses, "pass", ""),
        ("{phase: backward}", fakes.always_a_number, "fail", "expected an error in the backward; found a loss of"),
        ("{match: 'ORDER|bounds'}", refuses, "pass", ""),
        ("{match: runtimeerror}", refuses, "pass", ""),
        ("{match: second line}", refuses, "pass", ""),
        (
            "{match: out of bounds}",
            fakes.raises,
            "fail",
            "expected an error that matches 'out of bounds'; found RuntimeError in the call: the kernel is out of order",
        ),
    ],
)
def test_an_expected_error(case, verdicts, error, function, status, says):
    found = verdicts(case(f"{BAD}, expect: {{error: {error}}}"), function)["rejection"]
    assert found.status == status, found.message
    assert re.search(says, found.message)
    assert found.kind == ("" if status == "pass" else "accepted")


BAD_BATCHES = [
    BAD,
    "logits: {shape: [3, 4]}, target: {values: [0, -1, 1]}",
    "logits: {shape: [3, 4]}, target: {values: [0, 1]}",
    "logits: {shape: [3, 4]}, target: {shape: [3, 4]}",
    "logits: {shape: [3, 4]}, target: {values: [0.5, 1, 2], dtype: float32}",
    "logits: {shape: [3, 4]}, weight: [1, 2]",
    "logits: {shape: [3, 4]}, reduction: average",
    "logits: {shape: [3, 4]}, label_smoothing: 1.5",
    "logits: {values: 3}, target: {values: 0}",
]


@pytest.mark.parametrize("body", BAD_BATCHES)
def test_a_number_instead_of_an_error_fails_the_rejection_and_nothing_breaks(case, verdicts, body):
    found = verdicts(case(f"{body}, expect: {{error: {{}}}}"), fakes.always_a_number)
    assert statuses(found) == {"rejection": "fail", "purity": "pass"}


@pytest.mark.parametrize("body", BAD_BATCHES)
def test_whoever_refuses_bad_input_passes(case, verdicts, body):
    assert all_pass(verdicts(case(f"{body}, expect: {{error: {{}}}}"), refuses))


# As a loss that was never run.
def never_works(input, target, ignore_index=-100, reduction="mean"):
    raise TypeError("never works")


@pytest.mark.parametrize("body", BAD_BATCHES)
def test_whoever_refuses_everything_refuses_nothing(case, verdicts, body):
    found = verdicts(case(f"{body}, expect: {{error: {{}}}}"), never_works)["rejection"]
    assert found.status == "error"
    assert found.message == (
        "expected a refusal of this call alone; found good input is refused as well: TypeError in the call: never works"
    )


def test_an_option_is_not_refused_by_whoever_refuses_everything(case, verdicts):
    assert verdicts(case(UNCLAIMED), from_callable(never_works, "bare"))["rejection"].status == "error"
    assert verdicts(case(UNCLAIMED), from_callable(lambda input, target: right_mean(input, target), "bare"))[
        "rejection"
    ].status == ("pass")


def test_good_input_is_asked_once_for_each_dtype(cases):
    calls = []

    def counts(input, target, **options):
        calls.append((input.dtype, tuple(input.shape)))
        return refuses(input, target, **options)

    bad = "logits: {shape: [3, 4]}, target: {values: [0, 4, 1]}, expect: {error: {}}"
    examiner, fake = Examiner(), implementation(counts)
    for one in cases(f"id: a, {bad}", f"id: b, {bad}", f"id: c, {bad}, dtype: float64"):
        assert examiner.examine(one, "rejection", fake).status == "pass"
    assert [dtype for dtype, shape in calls if shape == (7, 5)] == [torch.float32, torch.float64]


def test_an_error_in_the_backward_pass_is_none_in_the_call(case, verdicts):
    asked = case(f"{PLAIN}, mode: func_grad, expect: {{error: {{}}}}")
    found = verdicts(asked, fakes.raises_in_backward)["rejection"]
    assert found.status == "fail"
    assert re.fullmatch(rf"expected an error in the call; found a loss of {NUMBER}", found.message)


def test_bad_input_is_for_everybody_whatever_they_claim(case, verdicts):
    asked = case(f"{BAD}, weight: random, reduction: sum, expect: {{error: {{}}}}")
    assert verdicts(asked, fakes.always_a_number, capabilities=frozenset({"float32"}))["rejection"].status == "fail"


# --- known deviations


def known(**changes):
    return Deviation(
        **{
            "cases": "small/one",
            "aspect": "loss",
            "observed": "too large",
            "fault": "value",
            "link": "https://example.org",
        }
        | changes
    )


@pytest.mark.parametrize(
    ("function", "deviation", "status", "says"),
    [
        (fakes.off_by_a_thousandth, known(), "deviates", "expected a loss of"),
        (fakes.off_by_a_thousandth, known(cases="small"), "deviates", "expected a loss of"),
        (fakes.off_by_a_thousandth, known(aspect="gradient"), "fail", "expected a loss of"),
        (fakes.off_by_a_thousandth, known(cases="small/two"), "fail", "expected a loss of"),
        (fakes.off_by_a_thousandth, known(fault="nan"), "fail", "expected a loss of"),
        (fakes.off_by_a_thousandth, known(torch="<1.0"), "fail", "expected a loss of"),
        (fakes.off_by_a_thousandth, known(torch=">=1.0"), "deviates", "expected a loss of"),
        (fakes.off_by_a_thousandth, known(max_units=1e6), "deviates", "units where 3 are allowed"),
        (fakes.off_by_a_thousandth, known(max_units=5), "fail", "; a deviation is known up to 5 units"),
        (fakes.nan_loss, known(fault="nan"), "deviates", "found nan"),
        (fakes.nan_loss, known(), "fail", "found nan"),
        (fakes.raises, known(fault="raised"), "deviates", "found RuntimeError"),
        (fakes.raises, known(), "error", "found RuntimeError"),
        (
            fakes.right,
            known(),
            "unexpected-pass",
            r"^it passes, although a deviation is declared \(too large\); delete run/test_judge.py:\d+",
        ),
        (fakes.right, known(torch="<1.0"), "pass", "^$"),
        (fakes.right, known(certain=False), "pass", "^$"),
        (fakes.off_by_a_thousandth, known(certain=False), "deviates", "expected a loss of"),
        (fakes.nan_loss, known(certain=False), "fail", "found nan"),
    ],
)
def test_a_known_deviation_is_strict(case, verdicts, function, deviation, status, says):
    found = verdicts(case(PLAIN), implementation(function, deviations=(deviation,)))["loss"]
    assert found.status == status
    assert re.search(says, found.message)


def test_an_infinite_error_is_beyond_any_known_number_of_units(case, verdicts):
    """A zero where the definition says infinity has no size, so no max_units can cover it."""
    asked = case("logits: {shape: [3, 4], set: [{rows: [1], classes: target, value: -inf}]}")
    found = verdicts(asked, implementation(fakes.never_nan, deviations=(known(max_units=100),)))["loss"]
    assert found.status == "fail"


def test_a_deviation_of_what_is_not_asked_is_no_pass(case, verdicts):
    found = verdicts(
        case(PLAIN), implementation(fakes.right, deviations=(known(),), capabilities=LOGITS_CAPABILITIES - {"float32"})
    )
    assert found["loss"].status == "unsupported"


# --- purity


def test_rounding_differences_between_two_calls_are_none(case, verdicts):
    class LastBit:
        calls = 0

        def __call__(self, input, target):
            self.calls += 1
            return F.cross_entropy(input, target) * (1 + 1e-7 * (self.calls % 2))

    assert all_pass(verdicts(case(PLAIN), Implementation(name="n", cross_entropy=LastBit())))


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (lambda loss: loss * 2, "expected the same loss from the same call; found"),
        (lambda loss: loss * torch.nan, "expected the same loss from the same call; found"),
        (lambda loss: loss.reshape(1), "expected the same loss from the same call; found another shape"),
        (
            lambda loss: loss + 0.5 * (loss - loss.detach()),
            r"expected the same gradient from the same call; found .* at \[0, 0\]",
        ),
        (
            lambda loss: loss.detach(),
            "expected the same answer to the same call; found RuntimeError in the backward pass",
        ),
        (lambda loss: 1 / 0, "expected the same answer to the same call; found ZeroDivisionError in the call"),
        (lambda loss: None, "expected the same loss from the same call; found"),
    ],
)
def test_a_second_answer_that_differs_is_unstable(case, verdicts, second, says):
    calls = []

    def loss(input, target):
        calls.append(1)
        value = F.cross_entropy(input, target)
        return value if len(calls) == 1 else second(value)

    found = verdicts(case(PLAIN), loss)
    assert (found["purity"].status, found["purity"].kind) == ("fail", "unstable")
    assert re.search(says, found["purity"].message)
    assert found["loss"].status == "pass"


def test_nan_twice_is_the_same_answer(case, verdicts):
    assert verdicts(case(PLAIN), fakes.nan_loss)["purity"].status == "pass"


# --- a case's status from those of its aspects


def test_every_status_has_its_place():
    for status in Status:
        assert of_case([status]) == status
    assert {str(status) for status in Status if status.is_good} == {"pass", "deviates", "unsupported", "unavailable"}


@pytest.mark.parametrize(
    ("of_aspects", "status"),
    [
        (["pass", "pass"], "pass"),
        (["pass", "unsupported"], "pass"),
        (["unsupported", "unsupported"], "unsupported"),
        (["pass", "fail", "unsupported"], "fail"),
        (["pass", "deviates"], "deviates"),
        (["deviates", "unexpected-pass"], "unexpected-pass"),
        (["unexpected-pass", "fail"], "fail"),
        (["fail", "error"], "error"),
        (["error", "timeout"], "timeout"),
        (["timeout", "crash", "pass"], "crash"),
        (["unavailable", "unavailable"], "unavailable"),
    ],
)
def test_the_worst_aspect_decides(of_aspects, status):
    of_aspects = [Status(name) for name in of_aspects]
    assert of_case(of_aspects) == of_case(reversed(of_aspects)) == status


def test_a_case_is_run_once_however_many_aspects_are_judged(case):
    examiner, calls = Examiner(), []

    def counted(input, target):
        calls.append(1)
        return fakes.right(input, target)

    asked, fake = case(PLAIN), implementation(counted)
    for aspect in asked.aspects:
        examiner.examine(asked, aspect, fake)
    assert (examiner.observations, len(calls)) == (1, 2)


def test_implementations_and_cases_are_kept_apart(cases):
    one, two = cases(f"id: one, {PLAIN}", f"id: two, {PLAIN}")
    examiner = Examiner()
    right, wrong = implementation(fakes.right), Implementation(name="wrong", cross_entropy=fakes.off_by_a_thousandth)
    found = [examiner.examine(c, "loss", i).status for c in (one, two, one) for i in (right, wrong)]
    assert found == ["pass", "fail"] * 3


def test_what_one_does_to_its_arguments_does_not_reach_the_next(case):
    examiner, asked = Examiner(), case(f"{PLAIN}, weight: random, ignore_index: [1, 2]")

    def spoils(input, target, *, weight, ignore_index):
        input.data.fill_(torch.nan)
        target.zero_()
        weight.zero_()
        ignore_index.clear()
        return input.sum()

    assert examiner.examine(asked, "purity", implementation(spoils)).status == "fail"
    assert examiner.examine(asked, "loss", Implementation(name="right", cross_entropy=fakes.right)).status == "pass"


def test_only_the_latest_cases_are_remembered(cases):
    many = cases(*(f"id: c{n}, {PLAIN}" for n in range(60)))
    examiner, fake = Examiner(), implementation(fakes.right)
    for asked in many:
        assert examiner.examine(asked, "loss", fake).status == "pass"
    assert len(examiner._memory) <= 40
    assert np.isfinite(examiner.examine(many[0], "loss", fake).error_units)
