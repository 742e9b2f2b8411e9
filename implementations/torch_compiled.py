"""``torch.compile`` of ``torch.nn.functional.cross_entropy`` with symbolic shapes: what the compiler makes of its decompositions."""

from functools import cache

import torch

from xentcheck.implementation import Adapter


@cache
def compiled():
    def function(input, target, **options):  # up to torch 2.6 torch's own functions compile only inside others
        return torch.nn.functional.cross_entropy(input, target, **options)

    return torch.compile(function, fullgraph=True, dynamic=True)


def call(logits, labels, **options):
    return compiled()(logits, labels, **options)


implementation = Adapter(
    name="torch_compiled",
    slow=True,
    call=call,
    layout="channels",
    offers={"autocast", "class_probabilities", "label_smoothing", "uint8_target", "weight"},
    built_on="torch",
    version=torch.__version__,
)
