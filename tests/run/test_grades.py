"""Grades of accuracy and claims of precision: an answer is held to what its implementation states, and to the lower grade if it states none."""

import numpy
import pytest
import torch
import torch.nn.functional as F

import fakes
from xentcheck.implementation import Implementation, ImplementationError
from xentcheck.reference.grades import lost_by_a_half_type, lost_by_a_running_sum
from xentcheck.reference.truth import truth
from xentcheck.spec.batch import build

TAIL = (
    "logits: {shape: [2, 32000], scale: 0.02, set: [{rows: all, classes: target, value: 17}]}, target: {ignore: none}"
)
MANY = "logits: {shape: [30001, 3], fill: constant}, target: {ignore: first}, reduction: sum"
CONFIDENT = "logits: {shape: [17, 9], scale: 0.1, set: [{rows: all, classes: target, value: 6.6875}]}, target: {ignore: none}, reduction: none"


class RunningSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, terms):
        ctx.shape = terms.shape
        return torch.from_numpy(numpy.cumsum(terms.detach().numpy(), axis=-1)[..., -1:]).squeeze(-1)

    @staticmethod
    def backward(ctx, upstream):
        return upstream.unsqueeze(-1).expand(ctx.shape)


def exponentials_one_by_one(input, target, *, ignore_index=-100, reduction="mean"):
    top = input.detach().amax(1, keepdim=True)
    lse = top.squeeze(1) + RunningSum.apply((input - top).exp()).log()
    return (lse - input.gather(1, target.unsqueeze(1)).squeeze(1)).mean()


def losses_one_by_one(input, target, *, ignore_index=-100, reduction="mean"):
    return RunningSum.apply(F.cross_entropy(input, target, ignore_index=ignore_index, reduction="none"))


@pytest.mark.parametrize(("body", "function"), [(TAIL, exponentials_one_by_one), (MANY, losses_one_by_one)])
def test_a_running_sum_is_plain(case, verdicts, body, function):
    loss = verdicts(case(body), function)["loss"]
    assert (loss.status, loss.conventions["sums"]) == ("pass", "plain")
    assert loss.error_units > 3  # in units of the careful grade, so that reports can tell by how much
    assert verdicts(case(body), function, sums="plain")["loss"].status == "pass"
    careful = verdicts(case(body), function, sums="careful")["loss"]
    assert (careful.status, careful.fault.kind) == ("fail", "value")


def careful(input, target, *, ignore_index=-100, reduction="mean"):
    losses = torch.logsumexp(input, 1) - input.gather(1, target.clamp(min=0).unsqueeze(1)).squeeze(1)
    losses = losses[target != ignore_index]
    return losses.mean() if reduction == "mean" else losses.sum()


@pytest.mark.parametrize("body", [TAIL, MANY])
def test_a_careful_sum_is_careful(case, verdicts, body):
    assert verdicts(case(body), careful, sums="careful")["loss"].status == "pass"


def test_twice_what_a_running_sum_loses_is_wrong(case, verdicts):
    """The bound is the tail itself: a loss of 0 loses it, one below 0 loses more."""

    def below(input, target, *, ignore_index=-100, reduction="mean"):
        right = fakes.right(input, target)
        return right - 2.2 * right.detach()

    assert verdicts(case(TAIL), below)["loss"].status == "fail"


def test_half_types_as_native_rounds_them(case, verdicts):
    body = f"{CONFIDENT}, dtype: bfloat16"
    found = verdicts(case(body), F.cross_entropy)
    assert [found[a].conventions["half_rounding"] for a in ("loss", "gradient")] == ["native", "native"]
    assert {found[a].status for a in ("loss", "gradient")} == {"pass"}
    assert verdicts(case(body), fakes.right)["loss"].conventions["half_rounding"] == "once"
    stated = verdicts(case(body), F.cross_entropy, half_rounding="once")
    assert [stated[a].status for a in ("loss", "gradient")] == ["fail", "fail"]


def test_a_log_sum_exp_in_a_half_type_is_wrong_in_every_grade(case, verdicts):
    def on_the_grid_of_the_logits(input, target, *, ignore_index=-100, reduction="mean"):
        return torch.logsumexp(input, 1) - input.gather(1, target.unsqueeze(1)).squeeze(1)

    assert verdicts(case(f"{CONFIDENT}, dtype: bfloat16"), on_the_grid_of_the_logits)["loss"].status == "fail"


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "terms", [numpy.full(5000, 0.1), numpy.r_[1.0, numpy.full(32000, 4e-8)], numpy.r_[numpy.full(3000, 1e-3), 50.0]]
)
def test_no_order_of_a_running_sum_loses_more(terms, dtype):
    terms = terms.astype(dtype)
    exact, f = float(numpy.sum(terms.astype(numpy.longdouble))), float(numpy.finfo(dtype).eps)
    most = lost_by_a_running_sum(terms.astype(numpy.float64), f)
    for order in (terms, terms[::-1], numpy.sort(terms), numpy.random.default_rng(0).permutation(terms)):
        assert abs(float(numpy.cumsum(order)[-1]) - exact) <= most


def test_what_a_half_type_loses_of_the_sum():
    x = numpy.array([[0.0, -5.0, -5.0], [0.0, -numpy.inf, -numpy.inf], [-numpy.inf] * 3])
    with numpy.errstate(all="ignore"):
        lse = numpy.log(numpy.exp(x).sum(1, keepdims=True))
    lost = lost_by_a_half_type(x, lse, 2.0**-7)
    total = torch.tensor(float(numpy.exp(x[0]).sum()))
    expected = abs(float(total.bfloat16().double().log() - total.double().log()))
    assert lost[0, 0] == pytest.approx(expected, rel=1e-5)
    assert (lost[1:] == 0).all()


def in_float32(input, target, *, ignore_index=-100, reduction="mean"):
    return F.cross_entropy(input.float(), target, ignore_index=ignore_index, reduction=reduction)


def test_a_loss_that_computes_in_float32_says_so(case, verdicts):
    body = "dtype: float64, logits: {shape: [7, 11]}"
    assert {v.status for a, v in verdicts(case(body), in_float32).items() if a in ("loss", "gradient", "shape")} == {
        "fail"
    }
    stated = verdicts(case(body), in_float32, computes_in="float32")
    assert {verdict.status for verdict in stated.values()} == {"pass"}


def test_it_is_held_to_float32(case, verdicts):
    def worse(input, target, *, ignore_index=-100, reduction="mean"):
        return in_float32(input, target) * (1 + 1e-5)

    found = verdicts(case("dtype: float64, logits: {shape: [7, 11]}"), worse, computes_in="float32")
    assert [found[a].status for a in ("loss", "gradient")] == ["fail", "fail"]


LINEAR = "linear: {features: 64}, logits: {shape: [257, 40]}, reduction: none"


def products_of(shorten):
    def loss(hidden, weight, target, *, ignore_index=-100, reduction="mean"):
        logits = shorten(hidden) @ shorten(weight).T
        return F.cross_entropy(logits, target, ignore_index=ignore_index, reduction=reduction)

    return loss


def to_bfloat16(tensor):
    return tensor + (tensor.detach().bfloat16().float() - tensor.detach())


@pytest.mark.parametrize(("claim", "status"), [("", "fail"), ("tf32", "fail"), ("bfloat16", "pass")])
def test_products_of_shortened_operands(case, verdicts, claim, status):
    loss = Implementation(name="short", linear_cross_entropy=products_of(to_bfloat16), computes_in=claim)
    found = verdicts(case(LINEAR), loss)
    assert [found[a].status for a in ("loss", "gradient")] == [status, status]


def test_a_gradient_without_small_probabilities(case, verdicts):
    class Filtered(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x

        @staticmethod
        def backward(ctx, upstream):
            return torch.where(upstream.abs() * 5 < 2**-8, 0, upstream)

    def filtered(input, target, *, ignore_index=-100, reduction="mean"):
        return F.cross_entropy(Filtered.apply(input), target, ignore_index=ignore_index)

    body = "logits: {shape: [5, 9], scale: 4}, target: {ignore: none}"
    assert verdicts(case(body), filtered)["gradient"].status == "fail"
    assert verdicts(case(body), filtered, gradient_threshold=2.0**-8)["gradient"].status == "pass"
    assert verdicts(case(body), filtered, gradient_threshold=2.0**-12)["gradient"].status == "fail"


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"sums": "good"}, "sums .*: expected one of careful, plain; found 'good'"),
        ({"computes_in": "float16"}, "computes_in: expected one of float32, tf32, bfloat16; found 'float16'"),
        ({"gradient_threshold": 0.5}, "gradient_threshold: expected a number from 0 to 0.01; found 0.5"),
    ],
)
def test_claims_that_are_refused(claim, message):
    with pytest.raises(ImplementationError, match=message):
        Implementation(name="fake", cross_entropy=fakes.right, **claim)


def test_the_lower_grades_are_what_is_expected_where_nothing_is_stated(case):
    batch = build(case(f"{CONFIDENT}, dtype: bfloat16"))
    low, high = truth(batch, {}), truth(batch, {"half_rounding": "once", "sums": "careful"})
    assert (low.loss_unit >= high.loss_unit).all()
    assert (low.loss_unit > 1.5 * high.loss_unit).any()
    assert (low.loss == high.loss).all()
