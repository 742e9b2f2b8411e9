"""maskedce, the loss of this project: every clause, no known deviation."""

from maskedce import masked_cross_entropy
from xentcheck.implementation import EVERYTHING, Implementation

implementation = Implementation(
    name="maskedce",
    cross_entropy=masked_cross_entropy,
    capabilities=EVERYTHING,
    empty_mean="zero",
    zero_times_infinity="zero",
    int32_target="taken",
    half_loss_dtype="input",
)
