"""What ``--isolate`` costs: ``python tests/studies/overhead.py``. Puts each case of the specification in this process and in a worker, in turns and
each first half of the time, with and without its relations; the least of either place is kept, and the difference printed, and what a
restart takes."""

import statistics
import time

import torch

from xentcheck.implementation import find
from xentcheck.run.examiner import Examiner
from xentcheck.run.isolation.pool import Workers
from xentcheck.spec.loader import load_all

ROUNDS = 8


def milliseconds(function, *arguments):
    start = time.perf_counter()
    function(*arguments)
    return 1000 * (time.perf_counter() - start)


def examine(examiner, case, aspects, implementation):
    for aspect in aspects:
        examiner.examine(case, aspect, implementation)


def more(case, here, there, with_relations):
    """How much longer the case takes there than here, in milliseconds; here and there: (make an examiner, implementation)."""
    took = ([], [])
    for number in range(ROUNDS):
        for place in (0, 1) if number % 2 else (1, 0):
            make, implementation = (here, there)[place]
            examiner = make()  # which has seen nothing yet
            aspects = examiner.aspects(case, implementation) if with_relations else case.aspects
            took[place].append(milliseconds(examine, examiner, case, aspects, implementation))
    return min(took[1]) - min(took[0])


def main():
    torch.set_num_threads(1)
    workers = Workers()
    here = Examiner, find("native")[0]
    there = (lambda: Examiner(workers.observe, workers.observe_all)), workers.find("native")[0]
    cases = [case for case in load_all() if case.question.mode != "compile" and not case.is_huge]
    for with_relations, title in ((False, "a case"), (True, "a case with all its relations")):
        longer = {case.id: more(case, here, there, with_relations) for case in cases[:: 4 if with_relations else 1]}
        values = sorted(longer.values())
        print(f"{title} costs in a worker, of {len(values)} cases, each {ROUNDS} times in either place:")
        print(
            f"  median {statistics.median(values):.2f} ms, mean {statistics.mean(values):.2f} ms, 95 % below {values[int(0.95 * len(values))]:.2f} ms more"
        )
        for name in sorted(longer, key=longer.get)[-4:]:
            print(f"  most: {name} {longer[name]:.2f} ms")
    restarts = []
    for _ in range(ROUNDS):
        workers._serving["native"].end()
        restarts.append(milliseconds(there[0]().examine, cases[0], "loss", there[1]))
    print(f"  a worker started again, with one case: {statistics.median(restarts):.0f} ms")
    workers.close()


if __name__ == "__main__":
    main()
