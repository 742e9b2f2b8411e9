"""The module, and messages for arguments that cannot be."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from forced_routes import DTYPES, ROUTES, assert_same, batch, run, take_route
from torch import Tensor

from maskedce import MaskedCrossEntropyLoss, masked_cross_entropy


def test_module() -> None:
    weight = torch.tensor([1.0, 2.0, 3.0])
    module = MaskedCrossEntropyLoss(weight, ignore_index=[-1, 2], reduction="sum", label_smoothing=0.1)
    input, target = torch.randn(4, 3), torch.tensor([0, 2, -1, 1])
    expected = masked_cross_entropy(
        input, target, weight=weight, ignore_index=[-1, 2], reduction="sum", label_smoothing=0.1
    )
    assert torch.equal(module(input, target), expected)
    assert list(module.state_dict()) == ["weight"]
    assert (
        repr(module)
        == "MaskedCrossEntropyLoss(ignore_index=[-1, 2], reduction='sum', label_smoothing=0.1, inplace=False)"
    )
    mean = MaskedCrossEntropyLoss(ignore_index=-1)
    torch.testing.assert_close(mean(input, target, normalizer=6), mean(input, target) / 2)
    assert module.double()(input.double(), target).dtype == torch.float64
    with pytest.raises(ValueError, match="reduction: expected 'none', 'mean' or 'sum', found 'avg'"):
        MaskedCrossEntropyLoss(reduction="avg")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("route", [route for route in ROUTES if route != "composed"])
def test_targets_out_of_range(route: str, smoothing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    take_route(route, monkeypatch)
    for value, reduction in product((5, 255, -1, -99), ("none", "mean", "sum")):
        target = torch.tensor([[-100, 4], [value, 7]])
        with pytest.raises(IndexError) as caught:
            masked_cross_entropy(torch.zeros(2, 5, 2), target, reduction=reduction, label_smoothing=smoothing)
        expected = "a class from 0 to 4, or -100 to be ignored"
        assert str(caught.value) == f"target: expected {expected}, found {value} at position (1, 0)"
    with pytest.raises(IndexError, match="or 0 or 1 to be ignored, found -100 at position"):
        masked_cross_entropy(torch.zeros(2, 5), torch.tensor([-100, 0]), ignore_index=[0, 1])
    with pytest.raises(IndexError, match="or nothing to be ignored, found -100 at position"):
        masked_cross_entropy(torch.zeros(5), torch.tensor(-100), ignore_index=[])


@pytest.mark.parametrize("value", [5, 255, -1, -99])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_out_of_range_where_values_cannot_be_read(
    value: int, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There torch's own check of an index has to do."""
    take_route("composed", monkeypatch)
    with pytest.raises((IndexError, RuntimeError), match=r"out of bounds|out of range"):
        masked_cross_entropy(torch.zeros(2, 5), torch.tensor([-100, value]), label_smoothing=smoothing)


ROWS, TARGET = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((ROWS, TARGET.float()), {}, TypeError, r"target: expected class indices .* or class probabilities of shape \(4, 3\), found torch.float32 of shape \(4,\)"),
        ((ROWS, torch.rand(4, 2)), {}, TypeError, r"class probabilities of shape \(4, 3\), found torch.float32 of shape \(4, 2\)"),
        ((ROWS, torch.rand(4, 3)), {"ignore_index": -100}, ValueError, "ignore_index: expected none beside class probabilities.*found -100"),
        ((ROWS, torch.rand(4, 3)), {"ignore_index": []}, ValueError, r"ignore_index: expected none .*found \[\]"),
        ((torch.rand(3), torch.rand(3)), {"ignore_index": 0}, ValueError, "ignore_index: expected none .*found 0"),
        ((ROWS, TARGET), {"normalizer": 3, "reduction": "sum"}, ValueError, "normalizer: expected reduction='mean'.*found 'sum'"),
        ((ROWS, TARGET), {"normalizer": 3.0, "reduction": "none"}, ValueError, "normalizer: expected reduction='mean'.*found 'none'"),
        ((ROWS, TARGET), {"normalizer": -1}, ValueError, "normalizer: expected a finite number that is not negative, found -1"),
        ((ROWS, TARGET), {"normalizer": math.nan}, ValueError, "normalizer: .*found nan"),
        ((ROWS, TARGET), {"normalizer": "4"}, TypeError, "normalizer: expected a number or a tensor .*found '4'"),
        ((ROWS, TARGET), {"normalizer": 10**400}, ValueError, "normalizer: expected a finite number"),
        ((ROWS, TARGET), {"ignore_index": ""}, TypeError, "ignore_index: expected an int or a sequence .*found ''"),
        ((ROWS, TARGET), {"ignore_index": b"1"}, TypeError, "found b'1'"),
        ((ROWS, TARGET), {"normalizer": True}, TypeError, "normalizer: .*found True"),
        ((ROWS, TARGET), {"normalizer": torch.ones(1)}, ValueError, r"normalizer: .*found torch.float32 of shape \(1,\)"),
        ((ROWS, TARGET), {"normalizer": torch.ones((), requires_grad=True)}, ValueError, "requires_grad of normalizer"),
        ((torch.zeros(4, 3, requires_grad=True), TARGET), {"inplace": True}, ValueError, "inplace=True: .*found a leaf"),
        ((ROWS, TARGET.bool()), {}, TypeError, "found torch.bool"),
        ((ROWS, TARGET.short()), {}, TypeError, "found torch.int16"),
        ((ROWS.long(), TARGET), {}, TypeError, "dtype of input: expected float64, .*found torch.int64"),
        ((ROWS.cfloat(), TARGET), {}, TypeError, "found torch.complex64"),
        ((ROWS, TARGET[:3]), {}, ValueError, r"shape of target: expected \(4,\) for logits .*\(4, 3\).*found \(3,\)"),
        ((ROWS, TARGET[:, None]), {}, ValueError, r"expected \(4,\) .*found \(4, 1\)"),
        ((torch.zeros(2, 5, 3), torch.zeros(2, 5).long()), {}, ValueError, r"expected \(2, 3\) .*found \(2, 5\)"),
        ((torch.zeros(3), torch.rand(2)), {}, TypeError, r"class probabilities of shape \(3,\), found"),
        ((torch.zeros(3), TARGET[:1]), {}, ValueError, r"shape of target: expected \(\) .*found \(1,\)"),
        ((torch.zeros(()), TARGET[0]), {}, ValueError, r"shape of input: expected \(C\), .*found \(\)"),
        ((torch.zeros(4, 0), TARGET), {}, ValueError, r"with C > 0, found \(4, 0\)"),
        ((ROWS, TARGET), {"reduction": "avg"}, ValueError, "expected 'none', 'mean' or 'sum', found 'avg'"),
        ((ROWS, TARGET), {"reduction": None}, ValueError, "found None"),
        ((ROWS, TARGET), {"reduction": ["mean"]}, ValueError, r"found \['mean'\]"),
        ((ROWS, TARGET), {"label_smoothing": None}, TypeError, "smoothing: expected a number from 0 to 1, found None"),
        ((ROWS, TARGET), {"label_smoothing": "0.1"}, TypeError, "found '0.1'"),
        ((ROWS, TARGET), {"ignore_index": 2**70}, ValueError, "ignore_index: expected values that fit into int64.*found 118"),
        ((ROWS, TARGET), {"ignore_index": [0, -(2**63) - 1]}, ValueError, "fit into int64"),
        ((ROWS, TARGET), {"label_smoothing": 1.1}, ValueError, "smoothing: expected a number from 0 to 1, found 1.1"),
        ((ROWS, TARGET), {"label_smoothing": -0.1}, ValueError, "found -0.1"),
        ((ROWS, TARGET), {"label_smoothing": math.nan}, ValueError, "found nan"),
        ((ROWS, TARGET), {"weight": torch.ones(4)}, ValueError, r"weight: expected \(3,\), one .* class, found \(4,\)"),
        ((ROWS, TARGET), {"weight": torch.ones(3, 1)}, ValueError, r"found \(3, 1\)"),
        ((ROWS, TARGET), {"weight": torch.ones(3).long()}, TypeError, "dtype of weight: .*found torch.int64"),
        ((ROWS, TARGET), {"weight": torch.ones(3, requires_grad=True)}, ValueError, "requires_grad of weight"),
        ((ROWS, TARGET), {"ignore_index": 1.5}, TypeError, "ignore_index: expected an int or a sequence .*found 1.5"),
        ((ROWS, TARGET), {"ignore_index": [1, "2"]}, TypeError, r"found \[1, '2'\]"),
        ((ROWS, TARGET.to("meta")), {}, ValueError, "device of target: expected cpu as for the input, found meta"),
    ],
)  # fmt: skip
def test_bad_arguments(
    arguments: tuple[Tensor, Tensor], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        masked_cross_entropy(*arguments, **options)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logits_on_the_cpu_under_another_default_device(route: str, dtype: torch.dtype, smoothing: float) -> None:
    input, target = batch((9, 5), dtype)
    target[::2] = -100
    wanted = run(masked_cross_entropy, input, target, label_smoothing=smoothing)
    with torch.device("meta"):
        found = run(
            masked_cross_entropy, input, target, torch.ones((), dtype=dtype, device="cpu"), label_smoothing=smoothing
        )
    assert_same(found, wanted)
