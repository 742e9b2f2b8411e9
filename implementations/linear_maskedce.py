"""linear_maskedce, the fused linear loss of this project: every clause, no known deviation."""

from xentcheck.implementation import LINEAR_CAPABILITIES, Implementation
from xentcheck.losses import linear_masked_cross_entropy

implementation = Implementation(
    name="linear_maskedce",
    linear_cross_entropy=linear_masked_cross_entropy,
    capabilities=LINEAR_CAPABILITIES - {"class_probabilities"},
    empty_mean="zero",
    zero_times_infinity="zero",
    int32_target="taken",
    half_loss_dtype="input",
)
