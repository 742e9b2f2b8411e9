"""The right loss, and a setting of the process that is not as it was before."""

import random

import numpy
import torch
from _correct import loss


def changes_the_number_of_threads(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """torch is left with another number of threads."""
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    torch.set_num_threads(torch.get_num_threads() % 2 + 1)
    return result


def changes_the_default_dtype(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """New tensors are float64 from now on."""
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    torch.set_default_dtype(torch.float64)
    return result


def leaves_gradients_disabled(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Gradients are switched off, and not on again."""
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    torch.set_grad_enabled(False)
    return result


def leaves_anomaly_detection_enabled(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Autograd looks for NaN from now on, which is slow and raises."""
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    torch.autograd.set_detect_anomaly(True)
    return result


def leaves_deterministic_algorithms_enabled(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Operations without a deterministic algorithm raise from now on."""
    result = loss(input, target, weight, ignore_index, reduction, label_smoothing)
    torch.use_deterministic_algorithms(True)
    return result


def seeds_the_random_numbers_of_torch(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Random numbers start again from the same seed."""
    torch.manual_seed(0)
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def draws_random_numbers_of_torch(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The next random number is another than without the call."""
    torch.rand(())
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def seeds_the_random_numbers_of_numpy(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """numpy's random numbers start again from the same seed."""
    numpy.random.seed(0)
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)


def seeds_the_random_numbers_of_python(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Python's random numbers start again from the same seed."""
    random.seed(0)
    return loss(input, target, weight, ignore_index, reduction, label_smoothing)
