"""maskedce on a CUDA device: two Triton kernels; with TRITON_INTERPRET=1, the same kernels on the CPU."""

from maskedce.triton_kernels import UNAVAILABLE, triton_masked_cross_entropy
from xentcheck.implementation import EVERYTHING, Implementation

implementation = Implementation(
    name="maskedce_triton",
    cross_entropy=triton_masked_cross_entropy,
    capabilities=EVERYTHING,
    empty_mean="zero",
    zero_times_infinity="zero",
    int32_target="taken",
    half_loss_dtype="input",
    unavailable=UNAVAILABLE,
)
