"""torch's decompositions of its cross entropy and of its gradient, as exporters use them, and its reference implementation in Python."""

import torch

from xentcheck.implementation import Adapter


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


implementations = (
    Adapter(
        name="torch_decompositions",
        call=decomposed,
        layout="channels",
        gradient="returned",
        offers={"class_probabilities", "label_smoothing", "uint8_target", "weight"},
        built_on="torch",
        version=torch.__version__,
    ),
    Adapter(
        name="torch_decompositions_refs",
        call=reference,
        layout="channels",
        offers={"weight"},
        version=torch.__version__,
    ),
)
