"""What the linear loss refuses, and with which message; and meta tensors."""

import pytest
import torch
from linear_definition import C, H, batch

from maskedce import linear_masked_cross_entropy


def test_meta_tensors():
    hidden, matrix = (torch.randn(shape, device="meta", requires_grad=True) for shape in ((4, 3), (5, 3)))
    target = torch.zeros(4, dtype=torch.int64, device="meta")
    for reduction, shape in (("mean", ()), ("none", (4,))):
        loss = linear_masked_cross_entropy(hidden, matrix, target, reduction=reduction)
        assert (loss.shape, loss.device.type) == (shape, "meta")
        assert torch.autograd.grad(loss.sum(), matrix)[0].shape == matrix.shape


BAD = [
    (lambda a: a.update(reduction="avg"), ValueError, "reduction: expected"),
    (lambda a: a.update(label_smoothing=1.5), ValueError, "label_smoothing: expected a number from 0 to 1, found 1.5"),
    (lambda a: a.update(ignore_index="x"), TypeError, "ignore_index: expected"),
    (lambda a: a.update(normalizer=3, reduction="sum"), ValueError, "normalizer: expected reduction='mean'"),
    (
        lambda a: a.update(normalizer=torch.ones(1)),
        ValueError,
        "normalizer: expected a number, or a real tensor of shape",
    ),
    (lambda a: a.update(normalizer="3"), TypeError, "normalizer: expected a number"),
    (lambda a: a.update(target=a["target"][:-1]), ValueError, r"shape of target: expected \(13,\)"),
    (lambda a: a.update(target=a["target"].double()), TypeError, "class probabilities are not supported"),
    (lambda a: a["target"].__setitem__(4, C), IndexError, f"found {C} at position 4"),
    (lambda a: a.update(hidden=a["hidden"].long()), TypeError, "dtype of hidden"),
    (lambda a: a.update(hidden=torch.tensor(1.0)), ValueError, "shape of hidden"),
    (lambda a: a.update(linear_weight=a["linear_weight"].T), ValueError, r"shape of linear_weight: expected \(C, 7\)"),
    (lambda a: a.update(linear_weight=torch.empty(0, H)), ValueError, "with C > 0"),
    (lambda a: a.update(linear_weight=a["linear_weight"].float()), ValueError, "dtype of linear_weight"),
    (lambda a: a.update(linear_bias=torch.zeros(3)), ValueError, r"shape of linear_bias: expected \(11,\)"),
    (lambda a: a.update(weight=torch.ones(C, dtype=torch.int64)), TypeError, "dtype of weight"),
    (lambda a: a.update(weight=torch.ones(C, requires_grad=True)), ValueError, "requires_grad of weight"),
]


@pytest.mark.parametrize(("spoil", "error", "text"), BAD)
def test_bad_arguments(spoil, error, text):
    tensors, target, _ = batch(bias=False)
    arguments = {"hidden": tensors[0].detach(), "linear_weight": tensors[1].detach(), "target": target}
    linear_masked_cross_entropy(**arguments)
    spoil(arguments)
    with pytest.raises(error, match=text):
        linear_masked_cross_entropy(**arguments)
