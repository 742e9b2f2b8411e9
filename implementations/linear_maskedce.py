"""linear_maskedce, the fused linear loss of this project: every clause, no known deviation."""

from _maskedce import CONVENTIONS, UNAVAILABLE, VERSION, linear_masked_cross_entropy
from xentcheck.implementation import EVERYTHING, Implementation

implementation = Implementation(
    name="linear_maskedce",
    linear_cross_entropy=linear_masked_cross_entropy,
    capabilities=EVERYTHING - {"class_probabilities"},
    **CONVENTIONS,
    version=VERSION,
    unavailable=UNAVAILABLE,
)
