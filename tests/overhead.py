"""What ``--isolate`` costs: ``python tests/overhead.py``. Observes each case of the specification in this process and in a worker, in turns
and each first half of the time; the least of either place is kept, and the difference printed, and what a restart takes."""

import statistics
import time

import torch

from xentcheck.batch import build
from xentcheck.casefile import load_all
from xentcheck.implementation import find
from xentcheck.isolate import Workers
from xentcheck.observe import observe

ROUNDS = 8


def milliseconds(function, *arguments):
    start = time.perf_counter()
    function(*arguments)
    return 1000 * (time.perf_counter() - start)


def main():
    torch.set_num_threads(1)
    workers, here = Workers(), find("native")[0]
    there = workers.find("native")[0]
    batches = [(case, build(case)) for case in load_all() if case.question.mode != "compile" and not case.is_huge]
    more = {}
    for case, batch in batches:
        took = {"here": [], "there": []}
        for number in range(ROUNDS):
            order = [("here", observe, here), ("there", workers.observe, there)]
            for name, function, implementation in order[:: 1 if number % 2 else -1]:
                took[name].append(milliseconds(function, implementation, batch, case.has_gradient))
        more[case.id] = min(took["there"]) - min(took["here"])
    values = sorted(more.values())
    print(f"{len(values)} cases, each {ROUNDS} times in either place; a case costs in a worker")
    print(
        f"  median {statistics.median(values):.2f} ms, 95 % below {values[int(0.95 * len(values))]:.2f} ms, mean {statistics.mean(values):.2f} ms more"
    )
    for name in sorted(more, key=more.get)[-4:]:
        print(f"  most: {name} {more[name]:.2f} ms")
    restarts = []
    for _ in range(ROUNDS):
        workers._serving[there.name].end()
        restarts.append(milliseconds(workers.observe, there, batches[0][1], True))
    print(f"  a worker started again, with one case: {statistics.median(restarts):.0f} ms")
    workers.close()


if __name__ == "__main__":
    main()
