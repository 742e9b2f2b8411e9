"""linear_maskedce, the fused linear loss of this project: every clause, no known deviation."""

from maskedce import linear_masked_cross_entropy
from xentcheck.implementation import EVERYTHING, Implementation

implementation = Implementation(
    name="linear_maskedce",
    linear_cross_entropy=linear_masked_cross_entropy,
    capabilities=EVERYTHING - {"class_probabilities"},
    empty_mean="zero",
    zero_times_infinity="zero",
    int32_target="taken",
    half_loss_dtype="input",
)
