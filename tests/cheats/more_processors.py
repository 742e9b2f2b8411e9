"""More of the machine than the settings give."""

import threading

import torch
from _registry import Given, cheat, right


@cheat("expected at most 1 thread")
def more_threads_than_the_settings(patch):
    def loss(input, target, **options):
        torch.set_num_threads(2)
        return right(input, target, **options)

    return loss


@cheat("expected at most 1 thread")
def a_pool_of_its_own(patch):
    """Halves of the batch in two threads."""

    def loss(input, target, **options):
        halves, kept = (slice(0, len(input) // 2), slice(len(input) // 2, None)), {}

        def work(number, here):
            x = input.detach()[here].requires_grad_()
            for _ in range(4):  # so that both are busy for long enough
                with torch.enable_grad():
                    value = torch.nn.functional.cross_entropy(x, target[here], reduction="sum")
                    kept[number] = value.detach(), torch.autograd.grad(value, x)[0]

        threads = [threading.Thread(target=work, args=each) for each in enumerate(halves)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        count = (target != -100).sum()
        return Given.apply(input, (kept[0][0] + kept[1][0]) / count, torch.cat([kept[0][1], kept[1][1]]) / count)

    return loss
