"""maskedce, the loss of this project: every clause, no known deviation."""

from _maskedce import CONVENTIONS, UNAVAILABLE, VERSION, masked_cross_entropy
from xentcheck.implementation import Implementation

implementation = Implementation(
    name="maskedce",
    cross_entropy=masked_cross_entropy,
    **CONVENTIONS,
    version=VERSION,
    unavailable=UNAVAILABLE,
)
