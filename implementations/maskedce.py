"""maskedce, the loss of this project: every clause, no known deviation."""

from xentcheck.implementation import Implementation
from xentcheck.losses import masked_cross_entropy

implementation = Implementation(
    name="maskedce",
    cross_entropy=masked_cross_entropy,
    empty_mean="zero",
    zero_times_infinity="zero",
    int32_target="taken",
    half_loss_dtype="input",
)
