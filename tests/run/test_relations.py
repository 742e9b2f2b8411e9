"""Relations: each notices a loss that is wrong in its own way, none finds fault with a right one, and each is asked where it applies."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fakes import right
from xentcheck.implementation import LOGITS_CAPABILITIES, Implementation, from_callable
from xentcheck.run.examiner import Examiner
from xentcheck.run.relations import applying
from xentcheck.spec.case import RELATIONS

CASE = "logits: {shape: [7, 5]}, target: {ignore: {rows: [1, 4, 5]}}"


def mean_over_everything(input, target, *, reduction="mean", **options):
    loss = right(input, target, reduction="none" if reduction == "mean" else reduction, **options)
    return loss.mean() if reduction == "mean" else loss


def lets_ignored_logits_through(input, target, **options):
    return F.cross_entropy(input, target, **options)


def first_position_counts_twice(input, target, **options):
    return right(torch.cat([input[:1], input]), torch.cat([target[:1], target]), **options)


def last_class_has_a_bonus(input, target, **options):
    bonus = torch.zeros(input.shape[1], dtype=input.dtype)
    bonus[-1] = 0.01
    return right(input + bonus, target, **options)


def logits_are_clamped(input, target, **options):
    return right(input.clamp(-6, 6), target, **options)


def divides_by_at_least_four(input, target, **options):
    count = int((target != -100).sum())
    return right(input, target, **options) * (min(count, 4) / 4)


class _Altered(torch.autograd.Function):
    @staticmethod
    def forward(tensor, change):
        return tensor.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.change = inputs[1]

    @staticmethod
    def backward(ctx, gradient):
        return ctx.change(gradient), None


def upstream_is_squared(input, target, **options):
    return _Altered.apply(right(input, target, **options), lambda gradient: gradient * gradient.abs())


def first_upstream_for_all(input, target, **options):
    return _Altered.apply(
        right(input, target, **options), lambda g: g if g.dim() == 0 else g.reshape(-1)[:1].expand(g.shape)
    )


def gradient_has_an_offset(input, target, **options):
    return right(_Altered.apply(input, lambda gradient: gradient + 1e-4), target, **options)


def sum_divides_by_two(input, target, *, reduction="mean", **options):
    return right(input, target, reduction=reduction, **options) / (2 if reduction == "sum" else 1)


WRONG = {
    "deletion": (mean_over_everything, CASE, "with the ignored positions deleted: expected a loss of "),
    "poisoning": (
        lets_ignored_logits_through,
        CASE,
        "at the ignored positions: expected a gradient of an ignored position of 0.0; found nan at [0, 0]",
    ),
    "permutation": (first_position_counts_twice, CASE, "with the positions in another order: expected a loss of "),
    "class_permutation": (last_class_has_a_bonus, CASE, "with the classes in another order: expected a loss of "),
    "shift": (logits_are_clamped, CASE, "with a constant added to each row: expected a loss of "),
    "splitting": (divides_by_at_least_four, CASE, "put together from two parts of the batch: expected a loss of "),
    "linearity": (upstream_is_squared, CASE, "with another gradient from above: expected a gradient of "),
    "zero_sum": (gradient_has_an_offset, CASE, "expected a sum of a position's gradient of 0.0; found 0.0004999"),
    "reductions": (sum_divides_by_two, CASE, "between reduction none, sum and mean: expected a loss of "),
}


def verdict(case, name, function, **claims):
    claims = {"capabilities": LOGITS_CAPABILITIES - {"compile"}, **claims}
    implementation = Implementation(name="fake", cross_entropy=function, **claims)
    return Examiner().examine(case, name, implementation)


@pytest.mark.parametrize("name", RELATIONS)
def test_a_wrong_loss_is_noticed(case, name):
    function, body, text = WRONG[name]
    found = verdict(case(body), name, function)
    assert found.status == "fail"
    assert text in found.message


def test_linearity_looks_at_each_position_alone(case):
    found = verdict(case(f"{CASE}, reduction: none"), "linearity", first_upstream_for_all)
    assert found.status == "fail"


RIGHT = [
    CASE,
    f"{CASE}, reduction: none, upstream: per-position",
    f"{CASE}, reduction: sum, upstream: -3",
    f"{CASE}, dtype: float64",
    f"{CASE}, dtype: bfloat16, reduction: none",
    f"{CASE}, dtype: float16",
    f"{CASE}, weight: random, label_smoothing: 0.2",
    f"{CASE}, ignore_index: 2",
    f"{CASE}, ignore_index: [-1, 2, 255]",
    "logits: {shape: [3, 5, 4], layout: transposed}, target: {ignore: {rows: [0, 7, 8]}}, reduction: none, upstream: per-position",
    "logits: {shape: [4, 3], scale: 80}",
    "logits: {shape: [5]}",
    "logits: {shape: [4, 3], set: [{rows: [1], classes: others, value: -inf}]}, target: {ignore: none}",
    "logits: {shape: [4, 3], set: [{rows: [1], value: 1.0e+30}]}",
    # The mean over the second position alone is beyond what float16 holds.
    "logits: {shape: [2, 3], fill: constant}, target: {values: [0, 1]}, dtype: float16, weight: [1, 1.0e-4, 1.0e+4], label_smoothing: 0.5",
]


@pytest.mark.parametrize("body", RIGHT)
def test_a_right_loss_passes(case, body):
    asked = case(body)
    examiner = Examiner()
    names = applying(asked, examiner.batch(asked))
    assert names
    assert {n: v.message for n in names if (v := verdict(asked, n, right)).status != "pass"} == {}


@pytest.mark.parametrize(
    ("body", "left_out"),
    [
        (CASE, set()),
        ("logits: {shape: [7, 5]}", {"deletion", "poisoning"}),
        ("logits: {shape: [7, 5]}, target: {ignore: all}", set(RELATIONS) - {"poisoning"}),
        (
            f"{CASE}, logits: {{shape: [7, 5], layout: expanded}}".replace("logits: {shape: [7, 5]}, ", ""),
            {"poisoning"},
        ),
        ("logits: {shape: [5]}", {"deletion", "poisoning", "permutation", "splitting"}),
        ("logits: {shape: [3, 1]}", {"deletion", "poisoning", "class_permutation"}),
        ("logits: {shape: [7, 5]}, weight: [1, 0, 2, 1, 1]", {"deletion", "poisoning", "splitting"}),
        ("logits: {shape: [7, 5]}, weight: [1, -1, 2, 1, 1]", {"deletion", "poisoning", "splitting", "reductions"}),
        (f"{CASE}, normalizer: 3", {"reductions"}),
        ("logits: {shape: [7, 5]}, target: {probabilities: random}", {"deletion", "poisoning"}),
        (f"{CASE}, mode: no_grad", set(RELATIONS)),
        (f"{CASE}, mode: twice", set(RELATIONS)),
        (f"{CASE}, padded_to: 20", set(RELATIONS)),
        (f"{CASE}, expect: {{loss: unspecified}}", set(RELATIONS)),
        (f"{CASE}, reduction: avg, expect: {{error: {{phase: call}}}}", set(RELATIONS)),
        ("logits: {shape: [3, 5], set: [{rows: [0], classes: [1], value: inf}]}", set(RELATIONS)),
        ("logits: {shape: [0, 5]}", set(RELATIONS)),
    ],
)
def test_a_relation_is_asked_where_it_says_something(case, body, left_out):
    asked = case(body)
    assert set(RELATIONS) - set(applying(asked, Examiner().batch(asked))) == left_out


def test_a_relation_needs_what_its_batches_need(case):
    asked, examiner = case(CASE), Examiner()
    without = {"reduction_none", "non_finite"}
    implementation = Implementation(name="fake", cross_entropy=right, capabilities=LOGITS_CAPABILITIES - without)
    assert {"reductions", "poisoning"}.isdisjoint(examiner.aspects(asked, implementation))
    assert "deletion" in examiner.aspects(asked, implementation)
    found = verdict(asked, "reductions", right, capabilities=LOGITS_CAPABILITIES - without)
    assert (found.status, found.message) == ("unsupported", "not claimed: reduction_none")


def test_there_is_nothing_to_relate_to_an_error(case):
    def raises(input, target, **options):
        raise RuntimeError("no")

    found = verdict(case(CASE), "shift", raises)
    assert (found.status, found.message) == ("unsupported", "there is no answer to compare other answers with")


def test_an_error_about_the_other_batch_is_a_fault(case):
    def at_least_five(input, target, **options):
        if len(input) < 5:
            raise RuntimeError("too few")
        return right(input, target, **options)

    found = verdict(case(CASE), "deletion", at_least_five)
    assert found.status == "error"
    assert "with the ignored positions deleted: expected an answer, too; found RuntimeError in the call: too few" in (
        found.message
    )


def test_another_batch_may_be_refused_where_the_case_might_be(case):
    """The ignore value moves with the classes; the loss takes no padding but 2."""

    def only_two(input, target, ignore_index=-100):
        if ignore_index not in (-100, 2):
            raise ValueError("the padding is 2")
        return right(input, target, ignore_index=ignore_index)

    asked, fake = case(f"{CASE}, ignore_index: 2"), from_callable(only_two, "bare")
    found = Examiner().examine(asked, "class_permutation", fake)
    assert (found.status, found.message) == (
        "unsupported",
        "another batch is refused: ValueError in the call: the padding is 2",
    )
    claimed = replace(fake, tentative=frozenset())
    assert Examiner().examine(asked, "class_permutation", claimed).status == "error"


def ignored_gradients_are_arbitrary(input, target, **options):
    ignored = (target == -100).unsqueeze(1)
    offsets = torch.arange(1.0, input.numel() + 1).reshape(input.shape).to(input.dtype)
    offsets = offsets + input.detach().nan_to_num(1.0)
    return right(_Altered.apply(input, lambda g: torch.where(ignored, offsets, g)), target, **options)


@pytest.mark.parametrize("more", ["", ", reduction: none, upstream: per-position", ", reduction: sum"])
def test_what_the_aspect_gradient_says_no_relation_repeats(case, more):
    asked = case(CASE + more)
    implementation = Implementation(name="fake", cross_entropy=ignored_gradients_are_arbitrary)
    examiner = Examiner()
    found = {name: examiner.examine(asked, name, implementation) for name in examiner.aspects(asked, implementation)}
    # Poisoning compares with zero and not with the first answer: it asks the same of other values.
    assert {name for name, v in found.items() if v.status != "pass"} == {"gradient", "poisoning"}


def test_ignored_gradients_that_are_wrong_elsewhere_alone_are_noticed(case):
    """Zero for the case, another value once the other batch is asked."""

    def wrong_for_nan(input, target, **options):
        spoil = 1.0 if input.isnan().any() else 0.0
        return right(_Altered.apply(input, lambda g: g + spoil * (target == -100).unsqueeze(1)), target, **options)

    found = verdict(case(CASE), "poisoning", wrong_for_nan)
    assert "expected a gradient of an ignored position of 0.0; found 1.0 at [0, 0]" in found.message


def test_relations_leave_the_batch_as_it_is(case):
    asked, examiner = case(f"{CASE}, weight: random, reduction: none, upstream: per-position"), Examiner()
    before = examiner.batch(asked).fresh()
    implementation = Implementation(name="fake", cross_entropy=right)
    for name in examiner.aspects(asked, implementation):
        assert examiner.examine(asked, name, implementation).status == "pass"
    batch = examiner.batch(asked)
    assert torch.equal(batch.input, before.input)
    assert torch.equal(batch.target, before.target)
    assert torch.equal(batch.upstream, before.upstream)
