"""The words of an implementation's declaration: capabilities, conventions, and the kinds of fault that a deviation names."""

from __future__ import annotations

# A capability is something that an implementation need not offer. A case that needs one that is not claimed is `unsupported`.
CAPABILITIES: dict[str, str] = {
    "ignore_minus_100": "targets of -100 are ignored; ignore_index includes it",
    "ignore_index": "an ignore value outside the class range",
    "ignore_index_in_range": "an ignore value that is also a class",
    "ignore_index_list": "several ignore values, as a list of ints",
    "weight": "class weights",
    "label_smoothing": "label smoothing",
    "class_probabilities": "targets that hold a probability for each class",
    "normalizer": "a denominator of the mean that is given from outside",
    "reduction_option": "the option reduction named in the call, not only its default",
    "reduction_mean": "reduction='mean'",
    "reduction_sum": "reduction='sum'",
    "reduction_none": "reduction='none'",
    "k_dim": "input of shape (N, C, d1, ...)",
    "unbatched": "input of shape (C,)",
    "many_classes": "inputs with more than 4096 classes",
    "non_contiguous": "inputs, targets and upstream gradients with any strides",
    "non_finite": "inputs that hold infinities or NaN",
    "backward": "a gradient with respect to the input",
    "double_backward": "a gradient of the gradient",
    "compile": "torch.compile",
    "autocast": "torch.autocast",
    "func_grad": "torch.func.vjp",
    "vmap": "torch.func.vmap",
    "linear": "a fused linear loss: hidden states and a matrix in place of logits",
    "linear_bias": "a fused linear loss with a bias",
    "uint8_target": "targets of dtype uint8",
    "float64": "float64 inputs",
    "float32": "float32 inputs",
    "bfloat16": "bfloat16 inputs",
    "float16": "float16 inputs",
}

# What each form of an implementation can offer, and claims where it declares nothing. Subtract what is missing:
# ``capabilities=LOGITS_CAPABILITIES - {"vmap"}``.
LOGITS_CAPABILITIES = frozenset(CAPABILITIES) - {"linear", "linear_bias"}
LINEAR_CAPABILITIES = frozenset(CAPABILITIES) - {"non_finite", "many_classes", "k_dim", "unbatched"}
ARRAY_CAPABILITIES = LOGITS_CAPABILITIES - {"double_backward", "compile", "autocast", "func_grad", "vmap"}
# By the name of the field of Implementation that holds the function.
FORMS: dict[str, frozenset[str]] = {
    "cross_entropy": LOGITS_CAPABILITIES,
    "loss_and_gradient": ARRAY_CAPABILITIES,
    "linear_cross_entropy": LINEAR_CAPABILITIES,
}

# Those that are options of the call. An implementation must refuse those that it does not claim.
OPTIONS = frozenset({
    "ignore_index", "ignore_index_list", "weight", "label_smoothing", "reduction_sum", "reduction_none", "normalizer",
    "class_probabilities",
})  # fmt: skip

# A convention is a question with several defensible answers. The last two are grades of accuracy, the better one first.
CONVENTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "empty_mean": ("the mean over no position", ("nan", "zero")),
    "infinite_row": (
        "the loss of a valid row that holds +inf; limit: inf, but 0 at the target",
        ("nan", "inf", "limit"),
    ),
    "zero_times_infinity": ("an infinite term under a weight of zero", ("nan", "zero")),
    "int32_target": ("targets of dtype int32", ("taken", "refused")),
    "half_loss_dtype": ("the dtype of a bfloat16 or float16 loss", ("input", "float32")),
    "sums": ("sums of more than 36 terms: as good as of fewer, or as a running sum", ("careful", "plain")),
    "half_rounding": ("bfloat16 and float16: the result rounded once, or steps before it, too", ("once", "native")),
}
GRADES = ("sums", "half_rounding")

# Precisions that an implementation may state where they are lower than its input's.
COMPUTES_IN = ("float32", "tf32", "bfloat16")

# What can be wrong with an answer.
FAULT_KINDS = (
    "value", "nan", "inf", "nonzero", "missing", "raised", "accepted", "shape", "dtype", "changed", "unstable", "crash", "timeout",
)  # fmt: skip
