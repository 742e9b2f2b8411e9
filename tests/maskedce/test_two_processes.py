"""A training step on two processes, each with its part of the batch, gives the gradients of the whole batch on one."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from maskedce import masked_cross_entropy

WRAPPERS = {"ddp": DistributedDataParallel, "fsdp": fully_shard}
TARGETS = {"unequal counts": [3, -100, -100, 5, 39, -100], "a process without any": [3, -100, 7, -100, -100, -100]}


def step(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", store=distributed.FileStore(store, 2), rank=rank, world_size=2)
    mine = slice(3 * rank, 3 * rank + 3)
    for classes in (40, 700_000):  # few logits and many
        torch.manual_seed(0)
        layer, hidden = nn.Linear(2, classes), torch.randn(6, 2)
        for target in map(torch.tensor, TARGETS.values()):
            alone = copy.deepcopy(layer)
            masked_cross_entropy(alone(hidden), target).backward()
            count = (target[mine] != -100).sum()
            distributed.all_reduce(count)
            for name, wrap in WRAPPERS.items():
                model = wrap(copy.deepcopy(layer))
                # The gradients of the two are averaged, so each divides by half of what the whole batch counts.
                masked_cross_entropy(model(hidden[mine]), target[mine], normalizer=count / 2).backward()
                for here, there in zip(model.parameters(), alone.parameters(), strict=True):
                    gradient = here.grad.full_tensor() if name == "fsdp" else here.grad
                    torch.testing.assert_close(gradient, there.grad, rtol=1e-5, atol=1e-7)
                print(f"{name} with {classes} classes agrees")
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="torch is built without gloo")
def test_two_processes_make_the_step_of_one(tmp_path):
    call = [sys.executable, __file__]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    both = [subprocess.Popen([*call, str(n), str(tmp_path / "store")], env=environment, **options) for n in range(2)]
    try:
        said = [process.communicate(timeout=120)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], said
    for text in said:
        assert text.count("agrees") == 2 * len(TARGETS) * len(WRAPPERS)


if __name__ == "__main__":
    step(int(sys.argv[1]), sys.argv[2])
