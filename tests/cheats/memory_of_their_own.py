"""Memory that was taken before anybody counted. The figure is then what is held, never nothing."""

import mmap

import numpy as np
import torch
from _registry import Given, cheat, solved

MOST = 2**22


def _into(room):
    """Writes the gradient into room that is there already."""

    def loss(input, target, **options):
        value, gradient = solved(input, target, **options)
        here = room[: gradient.numel()].view(gradient.shape)
        here.copy_(gradient)
        return Given.apply(input, value, here)

    return loss


POOL = torch.empty(MOST)
ARRAY = np.empty(MOST, dtype=np.float32)
MAP = mmap.mmap(-1, 4 * MOST)


@cheat(16 * 2**20, measure="held")
def a_pool_made_at_import(patch):
    return _into(POOL)


@cheat(16 * 2**20, measure="held")
def an_array_made_at_import(patch):
    return _into(torch.from_numpy(ARRAY))


@cheat(16 * 2**20, measure="held")
def a_map_made_at_import(patch):
    return _into(torch.frombuffer(MAP, dtype=torch.float32))


@cheat(16 * 2**20, measure="held")
def a_pool_in_an_object(patch):
    class Loss:
        def __init__(self):
            self.pools = {"one": [torch.empty(MOST)]}

        def __call__(self, input, target, **options):
            return _into(self.pools["one"][0])(input, target, **options)

    return Loss()
