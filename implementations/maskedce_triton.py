"""maskedce on a CUDA device: two Triton kernels; with TRITON_INTERPRET=1, the same kernels on the CPU."""

from _maskedce import CONVENTIONS, UNAVAILABLE, VERSION, masked_cross_entropy
from xentcheck.implementation import Implementation

if not UNAVAILABLE:
    from maskedce.route_triton import UNAVAILABLE
    from maskedce.route_triton import triton_masked_cross_entropy as masked_cross_entropy

implementation = Implementation(
    name="maskedce_triton",
    cross_entropy=masked_cross_entropy,
    **CONVENTIONS,
    version=VERSION,
    unavailable=UNAVAILABLE,
)
