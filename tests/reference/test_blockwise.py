"""The truth of large batches in blocks is that of ``truth``."""

import numpy as np
import pytest

from block_bodies import BODIES, LINEAR
from xentcheck.reference import blockwise
from xentcheck.reference.linear import ParameterGradients
from xentcheck.reference.truth import truth
from xentcheck.spec.batch import build

pytestmark = pytest.mark.usefixtures("small_blocks")


@pytest.mark.parametrize("body", BODIES)
def test_losses_and_their_units_in_blocks_are_those_of_the_truth(case, body):
    batch = build(case(body))
    whole, exact = blockwise.expected(batch), truth(batch, {})
    loss, unit = blockwise.reduced(batch, whole)
    np.testing.assert_allclose(loss.reshape(exact.loss.shape), exact.loss.astype(float), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(unit.reshape(exact.loss.shape), exact.loss_unit.astype(float), rtol=1e-12)


@pytest.mark.parametrize("body", BODIES)
def test_gradients_and_their_units_in_blocks_are_those_of_the_truth(case, body):
    batch = build(case(body))
    exact, seen = truth(batch, {}), np.zeros(len(batch.valid), dtype=bool)
    wanted, units = (
        np.moveaxis(values.astype(float), 1, -1).reshape(len(batch.valid), batch.classes)
        for values in (exact.gradient, exact.gradient_unit)
    )
    for here, gradient, unit in blockwise.gradient_blocks(batch, blockwise.expected(batch)):
        assert not seen[here].any()
        seen[here] = True
        np.testing.assert_allclose(gradient, wanted[here], rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(unit, units[here], rtol=1e-9)
    np.testing.assert_array_equal(seen, batch.valid)


@pytest.mark.parametrize("body", LINEAR)
def test_a_linear_layer_in_blocks_is_that_of_the_truth(case, body):
    batch = build(case(body))
    blocks, exact = blockwise.expected(batch), truth(batch, {})
    wanted = {"input": (exact.gradient, exact.gradient_unit), **exact.others}
    assert list(blocks.gradients) == list(wanted) == list(batch.differentiated)
    spread = ParameterGradients(entries=sum(t.numel() for t in batch.differentiated.values())).spread
    assert 1 < spread < 1.1
    for name, (gradient, unit) in wanted.items():
        np.testing.assert_allclose(blocks.gradients[name][0], gradient, rtol=1e-9, atol=1e-15)
        assert (blocks.gradients[name][1] >= unit * 0.9999).all()
        assert (blocks.gradients[name][1] <= unit * (spread + 1e-4)).all()
    whole = blocks.losses if batch.reduction == "none" else blocks.losses.sum() / blocks.denominator
    np.testing.assert_allclose(whole, exact.loss, rtol=1e-9)
