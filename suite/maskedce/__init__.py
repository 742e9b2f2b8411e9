"""Cross-entropy with ignored targets: right whatever ignored positions hold, accurate in every dtype, fast on the CPU.

The loss of a position with logits x, target class t, class weights w and label smoothing s is, as in the documentation
of ``torch.nn.CrossEntropyLoss`` and, for the smoothing, Szegedy et al. 2016 (arXiv:1512.00567, section 7),

    l = sum_c w_c q'_c (lse - x_c),    q' = (1 - s) q + s / C,    lse = log sum_c exp(x_c)

where q is 1 for the target class and 0 for the others, or what is given as class probabilities. Its gradient is
A p_j - w_j q'_j with p = softmax(x) and A = sum_c w_c q'_c. The mean is the sum of the losses over the sum of w_t over the
positions that are not ignored, over the number of rows of class probabilities, or over a normaliser that is given.

``linear_masked_cross_entropy`` does so for the output of a linear layer, and never holds the logits.

``routes.ROUTES`` and ``linear_routes.LINEAR_ROUTES`` are the ways to compute these, each in a file of its own; ``thresholds``
has the numbers by which they are chosen. Nothing but torch is imported, and Triton where logits lie on a CUDA device.
"""

from .cross_entropy import MaskedCrossEntropyLoss, masked_cross_entropy
from .linear_cross_entropy import linear_masked_cross_entropy

__version__ = "2026.11"
__all__ = ["MaskedCrossEntropyLoss", "linear_masked_cross_entropy", "masked_cross_entropy"]
