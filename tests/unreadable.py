"""Losses whose answers hold no plain numbers, and what is found instead of a loss (``LOSSES``) or of a gradient (``GRADIENTS``)."""

import numpy as np
import torch

from fakes import right
from xentcheck.implementation import Implementation


class Stubborn(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        raise RuntimeError("a closed book\nwith seven seals")


class NotComputed:
    """A lazy array whose computation fails."""

    dtype, shape = "float32", ()

    def __array__(self, *arguments, **options):
        raise RuntimeError("out of order")


class Wordless(Exception):
    def __str__(self):
        raise RuntimeError("not even this")


def huge(input, target, **options):
    return right(input, target, **options).expand(10**12)


def on_meta(input, target, **options):
    return right(input, target, **options).to("meta")


def sparse(input, target, **options):
    return right(input, target, **options).reshape(1).to_sparse()


def compressed(input, target, **options):
    return right(input, target, **options).reshape(1, 1).to_sparse_csr()


def quantized(input, target, **options):
    return torch.quantize_per_tensor(right(input, target, **options).detach(), 0.1, 0, torch.quint8)


def nested(input, target, **options):
    return torch.nested.nested_tensor([right(input, target, **options).reshape(1)])


def jagged(input, target, **options):
    return torch.nested.nested_tensor([right(input, target, **options).reshape(1)], layout=torch.jagged)


def complex_numbers(input, target, **options):
    return right(input, target, **options) + 1j


def stubborn(input, target, **options):
    return right(input, target, **options).as_subclass(Stubborn)


class _SparseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.to_sparse()


def sparse_gradient(input, target, **options):
    return right(_SparseGradient.apply(input), target, **options)


def sparse_gradient_of_the_matrix(input, linear_weight, target, linear_bias=None, **options):
    return right(
        torch.nn.functional.linear(input, _SparseGradient.apply(linear_weight), linear_bias), target, **options
    )


def wordless(input, target, **options):
    raise Wordless


lazy_loss = Implementation(
    name="lazy_loss", loss_and_gradient=lambda input, *_, **__: (NotComputed(), np.zeros(input.shape, np.float32))
)
lazy_gradient = Implementation(name="lazy_gradient", loss_and_gradient=lambda *_, **__: (np.float32(1), NotComputed()))
huge_array = Implementation(
    name="huge_array",
    loss_and_gradient=lambda *_, **__: (np.float32(1), np.broadcast_to(np.float32(0), (10**6, 10**6))),
)

LOSSES = {
    "huge": "a tensor of shape (1000000000000,), far larger than the arguments",
    "on_meta": "a tensor on the device meta, where there are no values",
    "sparse": "a tensor of layout sparse_coo",
    "compressed": "a tensor of layout sparse_csr",
    "quantized": "a quantized tensor of dtype quint8",
    "nested": "a nested tensor",
    "jagged": "a nested tensor",
    "complex_numbers": "a tensor of dtype complex64",
    "stubborn": "Stubborn that cannot be read (RuntimeError: a closed book)",
    "lazy_loss": "NotComputed that cannot be read (RuntimeError: out of order)",
}
GRADIENTS = {
    "sparse_gradient": "a tensor of layout sparse_coo",
    "sparse_gradient_of_the_matrix": "a tensor of layout sparse_coo",
    "lazy_gradient": "NotComputed that cannot be read (RuntimeError: out of order)",
    "huge_array": "a tensor of shape (1000000, 1000000), far larger than the arguments",
}
