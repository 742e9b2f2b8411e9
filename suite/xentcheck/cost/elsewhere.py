"""``native`` in a process that no implementation under test has entered: what it takes there, beside what it takes here.

An implementation that slows ``native`` down, by a patch or by a thread in the background, looks fast beside it. So before a speed-up is
believed, ``native`` is timed here and there in turns.
"""

from __future__ import annotations

import atexit
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from xentcheck.cost.measurement import Ratio, ratio
from xentcheck.spec.case import Case

SLOWER = 1.25  # how much slower it may be here: two processes differ in memory and luck
ROUNDS, REPETITIONS = 9, 2
_LIBRARY = Path(__file__).resolve().parents[2]
_START = "import sys; sys.path.insert(0, sys.argv[1]); from xentcheck.cost import elsewhere; elsewhere.serve()"


class Elsewhere:
    """The other process. Started when it is first asked, and ended with this one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def slow_down(self, case: Case, here: Callable[[], float]) -> Ratio:
        """The time of ``native`` here over its time there.

        Args:
            here: the seconds of one step of ``native`` in this process.
        """
        self._ask({"file": str(case.path), "case": case.id, "threads": torch.get_num_threads()})
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            mine = [math.inf] * 2
            for lane in (0, 1, 1, 0):
                for _ in range(REPETITIONS):
                    mine[lane] = min(mine[lane], self._ask({"time": True}) if lane else here())
            for samples, best in zip(seconds, mine, strict=True):
                samples.append(best)
        return ratio(*seconds)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _ask(self, question: dict[str, Any]) -> float:
        if self._process is None:
            command = [sys.executable, "-c", _START, str(_LIBRARY)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            atexit.register(self.close)
        assert self._process.stdin is not None  # a pipe
        assert self._process.stdout is not None  # a pipe
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            return float(self._process.stdout.readline())
        except (OSError, ValueError) as error:
            self.close()
            raise RuntimeError("the process that times native alone ended; its own error stands above") from error


def serve() -> None:
    """Answers on standard output until standard input ends."""
    from xentcheck.cost import timing
    from xentcheck.cost.rotation import Rotation
    from xentcheck.implementation import find
    from xentcheck.reference import blockwise
    from xentcheck.spec import loader
    from xentcheck.spec.batch import build

    (native,) = find("native")
    lane: Callable[[], timing.Seconds] = lambda: (math.nan,) * 3  # noqa: E731
    for line in sys.stdin:
        question = json.loads(line)
        if "time" in question:
            print(max(second for second in lane() if second == second), flush=True)
            continue
        torch.set_num_threads(question["threads"])
        (case,) = [case for case in loader.load(Path(question["file"])) if case.id == question["case"]]
        batch = build(case)
        lane = timing.native_lane(native, Rotation(batch, batch, blockwise.expected(batch)))
        lane()
        print(0.0, flush=True)
