"""torch's decompositions of its cross entropy and of its gradient, as exporters use them, and its reference implementation in Python."""

import torch

from xentcheck.implementation import Adapter, Deviation


def decomposed(logits, labels, upstream, **options):
    from torch._decomp import get_decompositions
    from torch.utils._python_dispatch import TorchDispatchMode

    aten = torch.ops.aten
    table = get_decompositions(
        [
            aten._log_softmax,
            aten._log_softmax_backward_data,
            aten.nll_loss_forward,
            aten.nll_loss_backward,
            aten.nll_loss2d_forward,
            aten.nll_loss2d_backward,
        ]
    )

    class Decomposing(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            return table.get(function, function)(*arguments, **(keywords or {}))

    logits = logits.detach().requires_grad_()
    with Decomposing():
        loss = torch.nn.functional.cross_entropy(logits, labels, **options)
        (gradient,) = torch.autograd.grad(loss, logits, upstream)
    return loss.detach(), gradient


def reference(logits, labels, **options):
    from torch._refs import log_softmax
    from torch._refs.nn.functional import nll_loss

    return nll_loss(log_softmax(logits, 0 if logits.dim() == 1 else 1), labels, **options)


_ABOUT = "https://github.com/pytorch/pytorch/pull/192685"
_SOURCE = "https://github.com/pytorch/pytorch/blob/v2.13.0/torch/_refs/nn/functional/__init__.py"
REFERENCE = (
    *(
        Deviation(
            cases,
            aspect=aspect,
            fault="nan",
            observed="NaN where an ignored position has a log-probability of -inf or NaN",
            reason="The log-probability of an ignored position is multiplied by a weight of 0, and 0 * inf is NaN.",
            link=_ABOUT,
        )
        for aspect, cases in {
            "loss": ("ignored-nonfinite/ignored-class", "minus-infinity/column-with-ignored-positions"),
            "gradient": "ignored-nonfinite/ignored-class",
        }.items()
    ),
    Deviation(
        ("ignored-nonfinite/ignored-class", "minus-infinity/column-with-ignored-positions"),
        aspect="deletion",
        fault="value",
        observed="NaN that goes away with the ignored position that caused it",
        reason="The log-probability of an ignored position is multiplied by a weight of 0, and 0 * inf is NaN.",
        link=_ABOUT,
    ),
    Deviation(
        "*",
        aspect="poisoning",
        fault="nan",
        observed="NaN as soon as ignored positions hold an infinity or NaN",
        reason="The log-probability of an ignored position is multiplied by a weight of 0, and 0 * NaN is NaN.",
        link=_ABOUT,
        certain=False,
    ),
    Deviation(
        (
            "bad-input/compiled-target[minus-1]",
            "bad-input/negative-target-of-tokens",
            "bad-input/target-with-weights[minus-1]",
            "bad-input/target-without-reduction[minus-1]",
            "bad-input/target[minus-1-under-minus-100]",
        ),
        aspect="rejection",
        fault="accepted",
        observed="a target of -1 is taken for the last class",
        reason="Targets are used as indices, of which negative ones count from the end; the check of their range is commented out.",
        link=_SOURCE,
    ),
    Deviation(
        (
            "bad-input/shape-of-tokens[additional-axis]",
            "bad-input/shape-of-unbatched",
            "bad-input/weight-as-long-as-the-batch",
            "bad-input/weight-length[longer]",
        ),
        aspect="rejection",
        fault="accepted",
        observed="targets and class weights of other shapes are taken",
        reason="Only the sizes of the batch are compared, and class weights are looked up by index.",
        link=_SOURCE,
    ),
    *(
        Deviation(
            cases,
            aspect=aspect,
            fault=fault,
            observed="an empty batch raises for a mean, gives a sum of shape (N,), and a loss without a gradient",
            reason="The answer is made in the likeness of the targets, which are integers without a gradient and have the shape (N,).",
            link=_SOURCE,
        )
        for aspect, fault, cases in (
            ("loss", "raised", "empty-batch/*[mean]"),
            ("shape", "raised", "empty-batch/*[mean]"),
            ("loss", "shape", "empty-batch/classification[sum]"),
            ("shape", "shape", "empty-batch/classification[sum]"),
            (
                "gradient",
                "raised",
                (
                    "empty-batch/*[mean]",
                    "empty-batch/*[none]",
                    "empty-batch/classification[sum]",
                    "empty-batch/segmentation",
                ),
            ),
        )
    ),
    Deviation(
        "unclaimed-options/ignore-index",
        aspect="rejection",
        fault="accepted",
        observed="an ignore value of -1 is taken, and no class is, because negative indices count from the end",
        reason="The ignore value is used as an index before it is masked.",
        link=_ABOUT,
    ),
    Deviation(
        "bad-input/integer-logits",
        aspect="rejection",
        fault="accepted",
        observed="logits of integers give a loss",
        reason="They are promoted to floating point, as in torch's elementwise functions.",
        link=_SOURCE,
    ),
)
# An ignore value that is no class, such as the default -100, is used as an index before it is masked, and raises: the same report.
IGNORES_CLASSES_ONLY = {"ignore_minus_100", "ignore_index"}

implementations = (
    Adapter(
        name="torch_decompositions_plain",
        call=decomposed,
        layout="channels",
        gradient="returned",
        offers={"class_probabilities", "label_smoothing", "uint8_target", "weight"},
        empty_mean="nan",
        built_on="torch",
        version=torch.__version__,
    ),
    Adapter(
        name="torch_decompositions_refs",
        call=reference,
        layout="channels",
        offers={"weight"},
        lacks=IGNORES_CLASSES_ONLY,
        empty_mean="nan",
        deviations=REFERENCE,
        version=torch.__version__,
    ),
)
