"""Cross entropies to test the suite with: right ones, and some that are wrong in exactly one known way."""

import importlib
import itertools
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

try:
    _suite = importlib.import_module("xentcheck.implementation")
    LOGITS_CAPABILITIES, Implementation = _suite.LOGITS_CAPABILITIES, _suite.Implementation
except ModuleNotFoundError:  # the scripts of test_script import this file where there is no suite
    LOGITS_CAPABILITIES, Implementation = frozenset(), dict


def right(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The definition, with the ignored positions deleted and half types computed in float32."""
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing {label_smoothing} is not between 0 and 1")
    values = [ignore_index] if isinstance(ignore_index, int) else list(ignore_index)
    axis = 0 if input.dim() == 1 else 1
    target = target.long()
    if target.shape != input.shape[:axis] + input.shape[axis + 1 :]:
        raise ValueError("the target's shape is not that of the positions")
    ignored = torch.isin(target, torch.tensor(values, dtype=torch.long))
    if ((target < 0) & ~ignored).any():  # torch would ignore -100
        raise IndexError("a target is below 0")
    wide = torch.promote_types(input.dtype, torch.float32)
    x = input.masked_fill(ignored.unsqueeze(axis), 0.0).to(wide)
    w = None if weight is None else weight.to(wide)
    loss = F.cross_entropy(
        x,
        target.masked_fill(ignored, -100),
        weight=w,
        reduction="none" if ignored.all() else reduction,
        label_smoothing=label_smoothing,
    )
    if ignored.all() and reduction != "none":
        if reduction not in ("mean", "sum"):
            raise ValueError(f"{reduction} is not a valid value for reduction")
        loss = loss.sum()
    return loss.to(input.dtype)


def off_by_a_thousandth(input, target, **options):
    return right(input, target, **options) * 1.001


def gradient_off_by_a_thousandth(input, target, **options):
    loss = right(input, target, **options)
    return loss + 0.001 * (loss - loss.detach())


def nan_loss(input, target, **options):
    return right(input, target, **options) * torch.nan


def infinite_loss(input, target, **options):
    return right(input, target, **options) + torch.inf


def zero_gradient(input, target, **options):
    loss = right(input, target, **options)
    return loss.detach() + 0 * loss


def never_nan(input, target, **options):
    return right(input, target, **options).nan_to_num(0.0)


def leaks_ignored_gradient(input, target, **options):
    loss = right(input, target, **options)
    leak = 1e-30 * input.double().sum()
    return loss + (leak - leak.detach()).to(loss.dtype)


def ignored_nan_reaches_gradient(input, target, *, ignore_index=-100, **options):
    return F.cross_entropy(input, target, ignore_index=ignore_index, **options)


def wrong_shape(input, target, **options):
    return right(input, target, **options).unsqueeze(0)


def wrong_dtype(input, target, **options):
    return right(input, target, **options).double()


def returns_float(input, target, **options):
    return right(input, target, **options).item()


def returns_none(input, target, **options):
    return None


def no_graph(input, target, **options):
    return right(input.detach(), target, **options)


def gradient_elsewhere(input, target, **options):
    """A loss with a graph that does not reach the input."""
    return right(input.detach(), target, **options).requires_grad_()


def raises(input, target, **options):
    raise RuntimeError("the kernel is out of order\nsecond line")


def skips(input, target, **options):
    """As a helper of some kernel's tests does where the kernel cannot run."""
    import pytest

    pytest.skip("no kernels here")


def expects_to_fail(input, target, **options):
    import pytest

    pytest.xfail("no kernels here")


def leaves(input, target, **options):
    sys.exit(0)


class _RaisesInBackward(torch.autograd.Function):
    @staticmethod
    def forward(loss):
        return loss.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("no backward pass today")


def raises_in_backward(input, target, **options):
    return _RaisesInBackward.apply(right(input, target, **options))


def drops_label_smoothing(input, target, *, label_smoothing=0.0, **options):
    return right(input, target, **options)


def drops_every_option(input, target, **options):
    return right(input, target)


def refuses_label_smoothing(input, target, *, label_smoothing=None, **options):
    if label_smoothing is not None:
        raise NotImplementedError("label smoothing is not supported")
    return right(input, target, **options)


def always_a_number(input, target, **options):
    """Answers what cannot be answered."""
    return input.sum() * 0


_kept: dict[str, torch.Tensor] = {}


def last_calls_answer(input, target, **options):
    loss = right(input, target, **options)
    previous = _kept.get("loss", loss)
    _kept["loss"] = loss.detach()
    return previous


_factors = itertools.cycle((1, 2, 4))


def another_with_every_call(input, target, **options):
    """Off by a factor that no two calls in a row share, however many there were before."""
    return right(input, target, **options) * next(_factors)


def overwrites_input(input, target, **options):
    loss = right(input, target, **options)
    input.data.mul_(2)
    return loss


def takes_memory_as_it_comes(input, target, **options):
    """As if every tensor were contiguous: what lies between the elements is read, too."""
    shape = input.shape
    strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    return right(input.as_strided(shape, strides), target, **options)


def arrays(input, target, upstream, **options):
    """``loss_and_gradient`` in NumPy: the mean over N x C logits."""
    x, t = input.double().numpy(), target.numpy()
    shifted = x - x.max(axis=1, keepdims=True)
    p = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    rows = np.arange(len(t))
    loss = -np.log(p[rows, t]).mean()
    p[rows, t] -= 1
    dtype = input.float().numpy().dtype
    return loss.astype(dtype), (p / len(t) * (1 if upstream is None else upstream.numpy())).astype(dtype)


def linear(hidden, weight_matrix, target, **options):
    return right(hidden @ weight_matrix.T, target, **options)


def counted(input, target, **options):
    """Right, and one line in the file $XENTCHECK_CALLS for every call."""
    with Path(os.environ["XENTCHECK_CALLS"]).open("a") as log:
        log.write(f"{tuple(input.shape)}\n")
    return right(input, target, **options)


_until_cut_off = itertools.count(1)


def cut_off(input, target, **options):
    """Right, but in its ninth call the process gets the signal that the environment names, as from outside."""
    if next(_until_cut_off) == 9 and "XENTCHECK_TEST_SIGNAL" in os.environ:
        os.kill(os.getpid(), int(os.environ["XENTCHECK_TEST_SIGNAL"]))
    return right(input, target, **options)


def kills_the_process(input, target, **options):
    """Dies on four classes, as a segmentation fault would."""
    if input.shape[1] == 4:
        os._exit(11)
    return right(input, target, **options)


def fused(hidden, linear_weight, target, *, linear_bias=None, **options):
    """A fused linear loss as far as its arguments go; ignored hidden states are left out before the product."""
    value = options.get("ignore_index", -100)
    ignored = torch.isin(target.long(), torch.tensor([value] if isinstance(value, int) else list(value)))
    wide = torch.promote_types(hidden.dtype, torch.float32)
    logits = hidden.masked_fill(ignored.unsqueeze(-1), 0).to(wide) @ linear_weight.to(wide).T
    logits = logits if linear_bias is None else logits + linear_bias.to(wide)
    if options.get("weight") is not None:
        options["weight"] = options["weight"].to(wide)
    return right(logits, target, **options).to(hidden.dtype)


def rarely_wrong(input, target, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """Half as much again with an ignored class, smoothing and an ignored last position, all at once."""
    if target.shape != input.shape[:1] or not isinstance(ignore_index, int):
        raise ValueError("expected a target for each row and one ignore value")
    loss = right(input, target, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction)
    ignored_class = 0 <= ignore_index < input.shape[1]
    return loss * 1.5 if ignored_class and label_smoothing > 0 and (target[-1:] == ignore_index).any() else loss


# What lets a few hundred drawn cases come across the bug.
rarely_wrong.implementation = Implementation(
    name="rarely_wrong",
    cross_entropy=rarely_wrong,
    capabilities=LOGITS_CAPABILITIES
    - {"compile", "vmap", "func_grad", "double_backward", "autocast", "k_dim", "unbatched", "many_classes"}
    - {"non_contiguous", "uint8_target", "non_finite", "float16", "bfloat16", "weight", "ignore_index_list"}
    - {"class_probabilities", "normalizer"},
)


_failed = itertools.count(1)


def interrupted_while_shrinking(input, target, **options):
    """Wrong for five positions and more, and the fortieth such call is interrupted, as by Ctrl-C."""
    if input.dim() == 2 and len(input) >= 5:
        if next(_failed) == 40:
            raise KeyboardInterrupt
        return right(input, target, **options) * 1.5
    return right(input, target, **options)
