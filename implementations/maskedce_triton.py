"""maskedce on a CUDA device: two Triton kernels; with TRITON_INTERPRET=1, the same kernels on the CPU."""

from xentcheck.implementation import Implementation
from xentcheck.losses.triton_kernels import UNAVAILABLE, triton_masked_cross_entropy

implementation = Implementation(
    name="maskedce_triton",
    cross_entropy=triton_masked_cross_entropy,
    empty_mean="zero",
    zero_times_infinity="zero",
    int32_target="taken",
    half_loss_dtype="input",
    unavailable=UNAVAILABLE,
)
