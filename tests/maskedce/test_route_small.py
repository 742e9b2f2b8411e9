"""Few logits on the CPU: torch's own loss, and the rows that it is slow with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forced_routes import HALF, assert_same, batch, run
from torch.utils._python_dispatch import TorchDispatchMode

from maskedce import masked_cross_entropy, thresholds


class RowsOfSoftmax(TorchDispatchMode):
    """Counts the positions whose softmax is taken over a dimension in which the classes lie next to each other."""

    positions = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func.overloadpacket in (aten._log_softmax, aten._softmax, aten.softmax, aten.log_softmax):
            logits, dimension = args[:2]
            if logits.stride(dimension) == 1:
                self.positions += logits.numel() // logits.shape[dimension]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("positions", [20_000, 100_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_softmax_of_short_rows_is_not_taken_along_them(
    positions: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of fewer logits than a vector register holds: there, torch's softmax takes ten times as long for each."""
    monkeypatch.setattr(thresholds, "SHORT_ROW_BYTES", 64)
    for classes, are_short in ((9, True), (15, True), (17, False)):
        input, target = batch((positions, classes), dtype, ignored=0.5)
        with RowsOfSoftmax() as seen:
            found = run(masked_cross_entropy, input, target)
        assert (seen.positions == 0) == are_short
        assert found[1].is_contiguous()
        expected = run(F.cross_entropy, input.double(), target)
        assert_same(found, expected, rtol=torch.finfo(dtype).eps * (1 if dtype in HALF else 20), atol=1e-9)
        with RowsOfSoftmax() as seen, torch.no_grad():
            masked_cross_entropy(input, target)
        assert (seen.positions == 0) == are_short
