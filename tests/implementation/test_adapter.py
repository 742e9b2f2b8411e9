"""Adapters translate the call and nothing else: each library here is right, or wrong in one known way, in a layout of its own."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fakes import right
from xentcheck.implementation import Adapter, ImplementationError, load_file, translate
from xentcheck.implementation.load import declared_in, find
from xentcheck.run.examiner import Examiner

TOKENS = "logits: {shape: [3, 5, 4]}, target: {ignore: {rows: [1, 7]}}"
MOST = "dtype: [float64, float32, bfloat16], reduction: [mean, sum, none]"


def flat(logits, labels, **options):
    assert (logits.dim(), labels.dim()) == (2, 1)
    return right(logits, labels, **options)


def sequence(logits, labels, **options):
    assert (logits.dim(), len(logits), labels.dim(), len(labels)) == (3, 1, 2, 1)
    loss = right(logits[0], labels[0], **options)
    return loss.unsqueeze(0) if loss.dim() else loss


def shifting(logits, labels, **options):
    return sequence(logits[:, :-1], labels[:, 1:], **options)


def classes_last(logits, labels, **options):
    assert logits.shape[:-1] == labels.shape
    return right(logits.movedim(-1, 1) if logits.dim() > 1 else logits, labels, **options)


def examined(implementation, case):
    examiner = Examiner()
    return {aspect: examiner.examine(case, aspect, implementation) for aspect in examiner.aspects(case, implementation)}


def statuses(implementation, case):
    return {aspect: str(verdict.status) for aspect, verdict in examined(implementation, case).items()}


LAYOUTS = {
    "flat": Adapter("flat", flat),
    "sequence": Adapter("sequence", sequence, layout="sequence"),
    "shifting": Adapter("shifting", shifting, layout="sequence", shifts=True),
    "classes-last": Adapter("classes_last", classes_last, layout="classes-last"),
    "channels": Adapter("channels", right, layout="channels"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "body",
    [
        f"{TOKENS}, matrix: {{{MOST}}}",
        f"{TOKENS}, matrix: {{ignore_index: [-1, 255]}}",
        "logits: {shape: [4]}, target: {values: 2}",
        "logits: {shape: [2, 3, 2, 5], layout: channels_last}, target: {ignore: {rows: [0]}}, reduction: none",
        "logits: {shape: [0, 3]}, target: {values: []}, expect: {loss: empty-mean}",
    ],
)
def test_the_library_gets_its_layout_and_the_answer_comes_back_in_the_cases(cases, layout, body):
    for case in cases(f"id: one, {body}"):
        found = statuses(LAYOUTS[layout], case)
        assert set(found.values()) == {"pass"}, (case.id, found)
        assert "gradient" in found


def test_a_batch_of_the_librarys_layout_is_handed_on_itself():
    seen = []
    adapter = Adapter("one", lambda logits, labels: seen.extend((logits, labels)) or logits.sum())
    logits, labels = torch.zeros(3, 4), torch.zeros(3, dtype=torch.long)
    adapter.cross_entropy(logits, labels)
    assert seen[0] is logits
    assert seen[1] is labels


def test_labels_that_do_not_fit_are_handed_on_or_refused(cases):
    """Laid out anew, swapped axes would fit."""
    swapped = cases(
        f"id: one, {TOKENS.replace('ignore: {rows: [1, 7]}', 'values: [[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2]]')}, expect: {{error: {{}}}}"
    )[0]
    for adapter in LAYOUTS.values():
        assert statuses(adapter, swapped)["rejection"] == "pass", adapter.name


def only_minus_100(logits, labels, reduction="mean"):
    return right(logits, labels, reduction=reduction)


def test_a_library_with_minus_100_only_is_not_asked_for_others(cases):
    adapter = Adapter("one", only_minus_100, ignores="-100 only")
    asked, other = cases(f"id: a, {TOKENS}, ignore_index: -100", f"id: b, {TOKENS}, ignore_index: -1")
    assert set(statuses(adapter, asked).values()) == {"pass"}
    assert statuses(adapter, other)["loss"] == "unsupported"


def test_an_adapter_that_remaps_refuses_what_the_library_would_ignore(cases):
    adapter = Adapter("one", only_minus_100, ignores="by-adapter", adapter_does={"remap"})
    remapped = cases(f"id: a, {TOKENS}, matrix: {{ignore_index: [-1, 255, 2]}}")
    assert {s for case in remapped for s in statuses(adapter, case).values()} == {"pass"}
    wrong = cases(
        "id: b, logits: {shape: [3, 4]}, target: {values: [0, -100, 2]}, ignore_index: -1, expect: {error: {}}"
    )[0]
    assert statuses(adapter, wrong)["rejection"] == "pass"


def per_position(logits, labels, label_smoothing=0.0):
    """Knows of no ignoring; a target out of range is an error."""
    return F.cross_entropy(logits, labels, reduction="none", ignore_index=-12345, label_smoothing=label_smoothing)


def test_masking_and_dividing_are_the_adapters(cases):
    adapter = Adapter(
        "one",
        per_position,
        ignores="by-adapter",
        reductions={"none"},
        adapter_does={"mask", "divide"},
        offers={"label_smoothing", "normalizer"},
    )
    body = f"{TOKENS}, matrix: {{{MOST}, label_smoothing: [0.0, 0.2]}}"
    for case in cases(f"id: a, {body}", f"id: b, {TOKENS}, normalizer: 7"):
        found = examined(adapter, case)
        del found["poisoning"]  # a mask cannot keep what the library makes of infinities from its gradient
        if case.question.dtype != "bfloat16":  # torch's own in half precision is another matter
            assert {str(v.status) for v in found.values()} == {"pass"}, (
                case.id,
                [v for v in found.values() if v.fault],
            )
        assert all(v.by_adapter for v in found.values() if v.status.was_asked)
    full = cases("id: c, logits: {shape: [3, 4]}")[0]
    assert not any(v.by_adapter for v in examined(adapter, full).values())
    empty = cases("id: d, logits: {shape: [3, 4]}, target: {ignore: all}, expect: {loss: empty-mean}")[0]
    assert {str(v.status) for aspect, v in examined(adapter, empty).items() if aspect != "poisoning"} == {"pass"}


def test_labels_without_axes_are_masked_without_torch():
    """NumPy compares an array without axes to a scalar of NumPy, which is no array."""
    zero = np.zeros((), np.float32)
    kept = translate.where(np.array(-100) == -100, 0, np.ones((), np.float32))
    assert (kept, translate.where(np.array(1) == -100, 0, zero + 2)) == (0, 2)
    assert translate.wide(np.array(-100) == -100) == 1.0


@pytest.mark.parametrize("given", [1, "value"])
def test_which_of_several_values_is_the_loss(case, given):
    def call(logits, labels, **options):
        loss = right(logits, labels, **options)
        return SimpleNamespace(value=loss, other=0 * loss) if given == "value" else (0 * loss, loss)

    assert set(statuses(Adapter("one", call, returns=given), case(TOKENS)).values()) == {"pass"}
    assert statuses(Adapter("one", call), case(TOKENS))["loss"] == "fail"


def test_a_number_of_classes_that_the_library_does_not_take_is_unsupported(cases):
    def call(logits, labels, **options):
        assert logits.shape[1] % 2 == 0
        return right(logits, labels, **options)

    adapter = Adapter("one", call, classes_divisible_by=2)
    even, odd = cases("id: a, logits: {shape: [3, 4]}", "id: b, logits: {shape: [3, 5]}")
    assert set(statuses(adapter, even).values()) == {"pass"}
    verdict = examined(adapter, odd)["loss"]
    assert (verdict.status, verdict.reason) == ("unsupported", "takes multiples of 2 classes; the case has 5")


@pytest.mark.parametrize(
    ("refuses", "gives", "status"),
    [
        ("raise", 1.5, "fail"),
        ("nan", torch.nan, "unsupported"),
        ("nan", 1.5, "fail"),
        ("nothing", 1.5, "unsupported"),
    ],
)
def test_a_loss_that_cannot_raise_is_held_to_what_it_says(case, refuses, gives, status):
    def call(logits, labels, **options):
        beyond = labels >= logits.shape[1]
        loss = right(logits, labels.masked_fill(beyond, 0), **options)
        return loss * gives if beyond.any() else loss

    adapter = Adapter("one", call, refuses=refuses)
    verdict = examined(adapter, case("logits: {shape: [3, 4]}, target: {values: [0, 9, 1]}, expect: {error: {}}"))[
        "rejection"
    ]
    assert verdict.status == status
    if status == "unsupported":
        assert "cannot raise an error; found a loss of" in verdict.reason


@pytest.mark.parametrize("layout", ["flat", "sequence"])
@pytest.mark.parametrize("name", ["input", "target"])
def test_a_change_of_the_librarys_own_copy_is_seen(case, layout, name):
    """A batch of tokens is laid out anew, and its targets are made anew by the remapping."""

    def call(logits, labels, **options):
        loss = right(logits.reshape(-1, 5), labels.reshape(-1), **options)
        (logits if name == "input" else labels).data.zero_()
        return loss

    adapter = Adapter("one", call, layout=layout, ignores="by-adapter", adapter_does={"remap"})
    verdict = examined(adapter, case(f"{TOKENS}, ignore_index: -1"))["purity"]
    assert verdict.status == "fail"
    assert verdict.message.endswith(f"changed: {name}")


def test_an_option_that_the_library_drops_fails_the_cases(cases):
    def call(logits, labels, *, reduction="mean", **dropped):
        return right(logits, labels, reduction=reduction)

    weighted, unclaimed = cases(
        f"id: a, {TOKENS}, weight: [1.0, 2.0, 3.0, 4.0, 5.0]",
        f"id: b, {TOKENS}, weight: [1.0, 2.0, 3.0, 4.0, 5.0], expect: {{refused_unless_claimed: true}}",
    )
    assert statuses(Adapter("one", call, offers={"weight"}), weighted)["loss"] == "fail"
    assert statuses(Adapter("one", call), unclaimed)["rejection"] == "fail"


def test_smoothing_by_another_formula_is_asked_for_the_same_amount(case):
    def call(logits, labels, *, eps=0.0, ignore_index=-100, reduction="mean"):
        classes = logits.shape[1]
        return right(
            logits,
            labels,
            label_smoothing=eps * classes / (classes - 1),
            ignore_index=ignore_index,
            reduction=reduction,
        )

    adapter = Adapter("one", call, keywords={"label_smoothing": "eps"}, smoothing="1/(C-1)")
    assert set(statuses(adapter, case(f"{TOKENS}, label_smoothing: 0.2")).values()) == {"pass"}


def test_a_gradient_that_is_returned(cases):
    def call(logits, labels, upstream, **options):
        leaf = logits.detach().clone().requires_grad_()
        loss = sequence(leaf[:, :-1], labels[:, 1:], **options)
        loss.backward(upstream[:, :-1] if upstream.dim() else upstream)
        return loss.detach(), leaf.grad

    adapter = Adapter("one", call, layout="sequence", shifts=True, gradient="returned")
    for case in cases(
        f"id: one, {TOKENS}, matrix: {{{MOST}}}", f"id: two, {TOKENS}, reduction: none, upstream: per-position"
    ):
        assert set(statuses(adapter, case).values()) == {"pass"}, case.id


def test_a_fused_linear_loss(cases):
    def call(hidden, matrix, labels, **options):
        assert (hidden.dim(), labels.dim()) == (3, 2)
        return right((hidden @ matrix.T)[0], labels[0], **options)

    adapter = Adapter("one", call, linear=True, layout="sequence")
    body = "logits: {shape: [5, 4]}, linear: {features: 3}, target: {ignore: {rows: [1]}}"
    assert set(statuses(adapter, cases(f"id: one, {body}")[0]).values()) == {"pass"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layout": "chanels"}, "layout: expected one of .*; found 'chanels'; did you mean channels?"),
        ({"shifts": True}, "shifts: expected layout='sequence'; found 'flat'"),
        ({"adapter_does": {"mask"}}, "'by-adapter' goes with"),
        ({"ignores": "by-adapter"}, "'by-adapter' goes with"),
        ({"adapter_does": {"divide"}, "reductions": {"mean"}}, "needs the losses of positions"),
        ({"shares_torch": False}, "expected gradient='returned' or 'none'"),
        ({"requires": "optax"}, "requires: expected a list"),
        ({"empty_maen": "nan"}, "unknown argument empty_maen; did you mean empty_mean"),
        ({"offers": {"wieght"}}, "unknown capability 'wieght'; did you mean weight?"),
        ({"refuses": "maybe"}, "refuses: expected one of raise, nan, nothing; found 'maybe'"),
    ],
)
def test_a_declaration_that_contradicts_itself(wrong, message):
    with pytest.raises(ImplementationError, match=message):
        Adapter("one", right, **wrong)


SEVERAL = """
import fakes
from xentcheck.implementation import Adapter
implementations = (Adapter("some_one", fakes.right), Adapter("some_two", "fakes:right"))
"""


def test_a_file_with_several(tmp_path):
    path = tmp_path / "some.py"
    path.write_text(SEVERAL)
    assert [one.name for one in find("some", folder=tmp_path)] == ["some_one", "some_two"]
    assert [(one.name, one.source) for one in find("some_two", folder=tmp_path)] == [("some_two", "some_two")]
    found = find(f"{path}:implementations")
    assert [one.source for one in found] == [f"{path}:some_one", f"{path}:some_two"]
    assert [one.name for one in find(found[1].source)] == ["some_two"]
    with pytest.raises(ImplementationError, match="no implementation of that name; did you mean some_two"):
        find("some_twoo", folder=tmp_path)
    for name in ("another", "some"):  # the file's own name stands for all of them
        path.write_text(SEVERAL.replace("some_two", name))
        with pytest.raises(ImplementationError, match=rf"expected names that begin with some_, .*; found {name}$"):
            declared_in(path)
    assert load_file(path)
