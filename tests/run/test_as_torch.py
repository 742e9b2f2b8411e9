"""Who is built on torch is not accused of what torch does; and not excused for anything else."""

import pytest
import torch

from xentcheck.implementation import Implementation, ImplementationError, find
from xentcheck.implementation.load import from_callable
from xentcheck.run.examiner import Examiner
from xentcheck.run.verdict import Fault, is_same
from xentcheck.spec import loader

F = torch.nn.functional
KNOWN = "ignored-nonfinite/weights"  # NaN gradients in ignored rows


def wrapped(input, target, **options):
    return F.cross_entropy(input, target, **options)


def off(input, target, **options):
    return 1.001 * F.cross_entropy(input, target, **options)


def nan_everywhere(input, target, **options):
    """NaN in ignored rows as well as in others."""
    x = input.clone()
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient * float("nan"))
    return F.cross_entropy(x, target, **options)


@pytest.fixture(scope="module")
def native():
    return find("native")[0]


@pytest.fixture(scope="module")
def cases():
    return {case.id: case for case in loader.load_all()}


@pytest.fixture
def asked(native, cases):
    examiner = Examiner(native=lambda: native)
    return lambda function, aspect, case=KNOWN: examiner.examine(
        cases[case], aspect, from_callable(function, function.__name__, "x.py:x")
    )


def test_a_bare_callable_deviates_as_native_does(asked, native, cases):
    for function in (wrapped, F.cross_entropy):
        verdict = asked(function, "gradient")
        assert (verdict.status, verdict.same_as, verdict.fault.kind) == ("deviates", "native", "nan")
        assert verdict.message.endswith("; native does the same")
        assert asked(function, "loss").status == "pass"
        assert asked(function, "poisoning", "plain-values/default-reduction").same_as == ""
    known = Examiner().examine(cases[KNOWN], "gradient", native)
    assert is_same(known.fault, verdict.fault)


def test_a_relation_that_does_not_hold_for_native_either(asked, native, cases):
    case = next(c for c in cases.values() if "poisoning" in Examiner().aspects(c, native) and not c.is_huge)
    verdict = asked(wrapped, "poisoning", case.id)
    assert (verdict.status, verdict.same_as) == ("deviates", "native")


@pytest.mark.parametrize("function", [off, nan_everywhere])
def test_another_fault_in_the_same_place_is_its_own(asked, function):
    verdicts = [asked(function, aspect) for aspect in ("loss", "gradient")]
    failing = [v for v in verdicts if v.status == "fail"]
    assert failing
    assert not any(v.same_as for v in failing)


def test_what_is_not_built_on_torch_is_not_excused(native, cases):
    apart = Implementation(name="apart", cross_entropy=wrapped)
    examiner = Examiner(native=lambda: native)
    assert examiner.examine(cases[KNOWN], "gradient", apart).status == "fail"
    built = Implementation(name="built", cross_entropy=wrapped, built_on="torch")
    assert examiner.examine(cases[KNOWN], "gradient", built).status == "deviates"
    assert Examiner().examine(cases[KNOWN], "gradient", built).status == "fail", "nobody to compare it with"
    with pytest.raises(ImplementationError, match="built_on: expected 'torch'"):
        Implementation(name="built", cross_entropy=wrapped, built_on="jax")


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"found": 2.0001}, True),
        ({"found": 2.1}, False),
        ({"kind": "nan"}, False),
        ({"index": (1,)}, False),
        ({"count": 4}, False),
        ({"quantity": "gradient"}, False),
        ({"worst_units": 700.0}, False),
    ],
)
def test_the_same_fault_is_the_same_numbers_in_the_same_places(change, same):
    fault = {
        "kind": "value",
        "quantity": "loss",
        "expected": 1.0,
        "found": 2.0,
        "index": (0,),
        "count": 3,
        "worst_units": 9.0,
    }
    assert is_same(Fault(**fault), Fault(**fault | change)) is same
