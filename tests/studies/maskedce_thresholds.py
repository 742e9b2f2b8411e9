"""Times both ways below and above a threshold of maskedce, side by side: ``python tests/studies/maskedce_thresholds.py SMALL_BYTES``.

Prints a Markdown table for each threshold: at some sizes around it, the time of the way that is taken above it over that of the way below
it, the median of rounds A B B A with their smallest and largest. A threshold is right where the ratio passes 1. Quiet machines only.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maskedce import masked_cross_entropy, thresholds

ROUNDS, SECONDS = 11, 0.02  # of each lane at each stop
FACTORS = (0.25, 0.5, 1, 2, 4)
Arguments = tuple[Tensor, Tensor]


def _logits(positions: int, classes: int, dtype: torch.dtype = torch.float32) -> Arguments:
    logits = torch.randn(max(positions, 1), classes).to(dtype).requires_grad_()
    target = torch.randint(classes, (max(positions, 1),))
    target[::4] = -100
    return logits, target


# By threshold: an input of so many units, and the values of the threshold that send it below and above.
INPUTS: dict[str, tuple[Callable[[int], Arguments], Any, Any]] = {
    "SMALL_BYTES": (lambda size: _logits(size // 4000, 1000), 2**62, 0),
    "SMALL_LOGITS": (lambda size: _logits(size // 1000, 1000, torch.bfloat16), 2**62, 0),
    "TRANSPOSED_BYTES": (lambda size: _logits(size // 24, 6), 2**62, 0),
    "LISTED_TARGETS": (lambda size: _logits(size, 1000), 2**62, 0),
    "FEW_CLASSES_IN_ROWS": (lambda size: _logits(2**22 // max(size, 2), max(size, 2)), 2**62, 0),
}


def step(arguments: Arguments) -> None:
    torch.autograd.grad(masked_cross_entropy(*arguments), arguments[0])


def seconds(name: str, value: Any, arguments: Arguments, calls: int) -> float:
    """The fastest of some steps with a threshold set to a value."""
    usual, best = getattr(thresholds, name), float("inf")
    setattr(thresholds, name, value)
    try:
        for _ in range(calls):
            start = time.perf_counter()
            step(arguments)
            best = min(best, time.perf_counter() - start)
    finally:
        setattr(thresholds, name, usual)
    return best


def ratios(name: str, size: int) -> list[float]:
    """The way above over the way below, a number for each round."""
    make, below, above = INPUTS[name]
    arguments = make(size)
    usual = max(seconds(name, value, arguments, 3) for value in (below, above))
    calls = max(2, int(SECONDS / usual))
    found = []
    for _ in range(ROUNDS):
        a, b, c, d = (seconds(name, value, arguments, calls) for value in (below, above, above, below))
        found.append(min(b, c) / min(a, d))
    return found


def table(name: str) -> str:
    usual = getattr(thresholds, name)
    lines = [f"{name} = {usual:,}", "", "| size | above / below | smallest | largest |", "| --: | --: | --: | --: |"]
    for factor in FACTORS:
        size = int(usual * factor)
        found = ratios(name, size)
        lines.append(f"| {size:,} | {statistics.median(found):.3f} | {min(found):.3f} | {max(found):.3f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(INPUTS)} (default: all)")
    names = parser.parse_args().names or list(INPUTS)
    if unknown := [name for name in names if name not in INPUTS]:
        parser.error(f"expected some of {', '.join(INPUTS)}; found {', '.join(unknown)}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name in names:
        print(table(name))


if __name__ == "__main__":
    main()
