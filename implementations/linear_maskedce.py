"""linear_maskedce, the fused linear loss of this project: every clause, no known deviation."""

from _maskedce import CONVENTIONS, UNAVAILABLE, VERSION, linear_masked_cross_entropy
from xentcheck.implementation import LINEAR_CAPABILITIES, Implementation

implementation = Implementation(
    name="linear_maskedce",
    linear_cross_entropy=linear_masked_cross_entropy,
    capabilities=LINEAR_CAPABILITIES - {"class_probabilities"},
    **CONVENTIONS,
    version=VERSION,
    unavailable=UNAVAILABLE,
)
