"""What ``--isolate`` costs: ``python tests/overhead.py``. Observes every case of the specification in this process and in a worker, one right
after the other and in turns first, and prints the difference per case in milliseconds, and what a restart takes."""

import statistics
import time

import torch

from xentcheck.batch import build
from xentcheck.casefile import load_all
from xentcheck.implementation import find
from xentcheck.isolate import Workers
from xentcheck.observe import observe

ROUNDS = 5


def milliseconds(function, *arguments):
    start = time.perf_counter()
    function(*arguments)
    return 1000 * (time.perf_counter() - start)


def main():
    torch.set_num_threads(1)
    workers, here = Workers(), find("native")[0]
    there = workers.find("native")[0]
    batches = [(case, build(case)) for case in load_all() if case.question.mode != "compile"]
    more = {}
    for case, batch in batches:
        pairs = []
        for number in range(ROUNDS):
            order = [("here", observe, here), ("there", workers.observe, there)]
            took = {
                name: milliseconds(f, i, batch, case.has_gradient) for name, f, i in order[:: 1 if number % 2 else -1]
            }
            pairs.append(took["there"] - took["here"])
        more[case.id] = statistics.median(pairs)
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
