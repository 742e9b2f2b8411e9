"""Proves the gate: runs it on identical code and on injected slow-downs and buffers, and counts how often it is right.

``python tests/studies/gate_trials.py`` writes each trial to a file as soon as it is over and goes on where it stopped; ``--report`` makes
``reports/gate.md`` of them. A trial is a whole run of pytest with ``--gate``, a process of its own; in every second one another
process loads the machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from xentcheck.gate.baseline import as_text, make_baseline
from xentcheck.implementation import find
from xentcheck.results import record
from xentcheck.results.environment import environment, now
from xentcheck.results.markdown import table
from xentcheck.results.merge import merge
from xentcheck.spec.resources import suite_folder

SUITE = suite_folder()
# kind: how many trials, what is injected, and whether the gate has to be red
KINDS: dict[str, tuple[int, str, bool]] = {
    "identical": (40, "nothing", False),
    "slower-10": (20, "a slow-down of 10 %", True),
    "slower-25": (20, "a slow-down of 25 %", True),
    "slower-100": (20, "a slow-down to twice the time", True),
    "one-more-buffer": (10, "one more buffer of the logits' size", True),
}
BASELINES = 3  # runs that the baseline is made of
CASES = ("few-classes", "scattered-tokens", "pixels")
LONGEST = 30.0  # seconds that a trial may take
_CANDIDATE = f"import sys\n\nsys.path.append({str(Path(__file__).parent)!r})\nfrom gate_trials import inject\n\ncandidate = inject({{kind!r}})\n"


def inject(kind: str) -> Callable[..., Tensor]:
    """maskedce with the fault of a kind of trial: a function of torch's signature."""
    function = find("maskedce")[0].cross_entropy
    assert function is not None
    share = int(kind.partition("slower-")[2] or 0) / 100

    def candidate(
        input: Tensor,
        target: Tensor,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        weight: Tensor | None = None,
    ) -> Tensor:
        start = time.perf_counter()
        if kind == "one-more-buffer":
            input = _Copied.apply(input)
        began = [0.0]
        x = _Waited.apply(input, share, began)
        options: dict[str, Any] = {"label_smoothing": label_smoothing, "weight": weight}
        loss = function(x, target, ignore_index=ignore_index, reduction=reduction, **options)
        if loss.requires_grad:
            loss.register_hook(lambda gradient: began.__setitem__(0, time.perf_counter()))
        _wait(start, share)
        return loss

    return candidate


class _Waited(torch.autograd.Function):
    """The input itself; its backward pass comes last, and waits for a share of what the pass has taken."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float, began: list[float]) -> Tensor:
        ctx.share, ctx.began = share, began
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        _wait(ctx.began[0], ctx.share)
        return gradient, None, None


class _Copied(torch.autograd.Function):
    """A copy of the input, kept for the backward pass as a saved tensor is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.buffer = torch.empty_like(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def _wait(start: float, share: float) -> None:
    now = time.perf_counter()
    while share and time.perf_counter() < now + share * (now - start):
        pass


# --- running them


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python tests/studies/gate_trials.py", description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path("reports/results/gate-trials"), help="where the trials are kept"
    )
    parser.add_argument("--most", type=int, default=10**9, help="stop after so many trials; the next call goes on")
    parser.add_argument("--report", type=Path, help="write the page of the trials so far, and run none")
    options = parser.parse_args(arguments)
    file = options.folder / "trials.jsonl"
    if options.report:
        options.report.write_text(page(done(file)), encoding="utf-8")
        print(f"wrote {options.report}")
        return 0
    options.folder.mkdir(parents=True, exist_ok=True)
    prepare(options.folder)
    already = {(t["kind"], t["number"]) for t in done(file)}
    left = [trial for trial in plan() if trial not in already]
    for number, (kind, index) in enumerate(left[: options.most], 1):
        trial = run(options.folder, kind, index)
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(trial) + "\n")
        right = "right" if is_right(trial) else "WRONG"
        print(
            f"{number} of {len(left)}: {kind} {index}: {trial['outcome']} in {trial['seconds']:.0f} s, {right}",
            flush=True,
        )
    return 0


def plan() -> list[tuple[str, int]]:
    """Every trial, the kinds in turn, so that a run that is cut short has some of each."""
    most = max(count for count, _, _ in KINDS.values())
    return [(kind, n) for n in range(most) for kind, (count, _, _) in KINDS.items() if n < count]


def prepare(folder: Path) -> None:
    """The candidates, and the baseline of the one to which nothing is done."""
    for kind in KINDS:
        (folder / kind).mkdir(exist_ok=True)
        (folder / kind / "candidate.py").write_text(_CANDIDATE.format(kind=kind))
    if (folder / "baseline.json").exists():
        return
    parts = []
    for number in range(BASELINES):
        where = folder / f"baseline-{number}"
        _pytest(folder, "identical", ["--results", str(where)])
        parts.append(record.load(where))
    made, left_out = make_baseline(merge(parts))
    for text in left_out:
        print(f"left out of the baseline: {text}", file=sys.stderr)
    (folder / "baseline.json").write_text(as_text(made), encoding="utf-8")


def run(folder: Path, kind: str, number: int) -> dict[str, Any]:
    """One trial: the gate's exit status, what it found, how long it took."""
    loaded = number % 2 == 1
    started, start = now(), time.perf_counter()
    with _load() if loaded else _nothing():
        status, screen = _pytest(folder, kind, ["--gate", str(folder / "baseline.json")])
    seconds = time.perf_counter() - start
    summary = screen.partition("## Gate: ")[2]
    if not summary:
        raise RuntimeError(f"the gate of {kind} {number} did not speak:\n{screen[-3000:]}")
    inconclusive = int(summary.partition(" inconclusive")[0].rpartition(" ")[2])
    outcome = "red" if status == 1 else "inconclusive" if inconclusive else "green"
    return {
        "kind": kind,
        "number": number,
        "loaded": loaded,
        "status": status,
        "outcome": outcome,
        "seconds": seconds,
        "summary": summary,
        "started": started,
        "environment": environment(),
    }


def is_right(trial: dict[str, Any]) -> bool:
    return (trial["outcome"] == "red") == KINDS[trial["kind"]][2]


def done(file: Path) -> list[dict[str, Any]]:
    """The trials on disk; one that was cut off while it was written is made again."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _pytest(folder: Path, kind: str, more: list[str]) -> tuple[int, str]:
    tests = [f"{SUITE}/test_{measure}.py" for measure in ("memory", "speed")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    # The same path for each kind, as the same file at another commit would be.
    link = folder / "candidate.py"
    link.write_text((folder / kind / "candidate.py").read_text())
    command += ["--impl", f"{link}:candidate", "--profile", ",".join(f"quick/{case}" for case in CASES), *more]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    made = subprocess.run(command, capture_output=True, text=True, env=environment)
    return made.returncode, made.stdout + made.stderr


@contextmanager
def _load() -> Iterator[None]:
    """Another process that computes and moves memory on one core."""
    code = f"import os, torch; torch.set_num_threads(1); x = torch.ones(2**22)\nwhile os.getppid() == {os.getpid()}: x.exp_().mul_(0.1)"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


# --- the page


def wilson(hits: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a rate (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    if not count:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate, z2 = hits / count, z * z / count
    middle = (rate + z2 / 2) / (1 + z2)
    half = z / (1 + z2) * math.sqrt(rate * (1 - rate) / count + z2 / (4 * count))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def page(trials: Sequence[dict[str, Any]]) -> str:
    """reports/gate.md: the rates with their 95 % intervals."""
    rows = []
    for kind, (planned, injected, _) in KINDS.items():
        for loaded in (None, False, True):
            mine = [t for t in trials if t["kind"] == kind and (loaded is None or t["loaded"] is loaded)]
            red = sum(t["outcome"] == "red" for t in mine)
            low, high = wilson(red, len(mine))
            rows.append(
                {
                    "injected": injected if loaded is None else "",
                    "machine": {None: "all", False: "as it is", True: "with another process"}[loaded],
                    "trials": f"{len(mine)} of {planned}" if loaded is None else str(len(mine)),
                    "red": str(red),
                    "inconclusive": str(sum(t["outcome"] == "inconclusive" for t in mine)),
                    "rate of red": f"{100 * red / len(mine):.0f} % ({100 * low:.0f} to {100 * high:.0f} %)"
                    if mine
                    else "",
                }
            )
    planned = sum(count for count, _, _ in KINDS.values())
    longest = max((t["seconds"] for t in trials), default=0.0)
    parts = [
        "# How often the gate is right",
        "> **These trials are not complete.** Go on with them by `make gate-trials`.\n"
        if len(trials) < planned
        else "",
        "The gate is run on an implementation to which something is done, against a baseline of the same implementation as it is. Red on nothing "
        "is a false alarm; everything else has to be red. In every second trial another process loads one of the cores.",
        table(rows),
        "**rate of red**: with its 95 % interval (Wilson). **inconclusive**: not red, but said: the control did not come out as 1, or a second process did not "
        f"confirm. A trial is one run of `pytest --gate` over the speed cases {', '.join(f'`quick/{case}`' for case in CASES)}, its confirming processes included; "
        f"the longest took {longest:.0f} seconds.",
        "Made by `make gate-trials`, which goes on where it was stopped.",
        *_when_and_where(trials),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _when_and_where(trials: Sequence[dict[str, Any]]) -> list[str]:
    places: dict[str, list[str]] = {}
    for trial in trials:
        where = trial["environment"]
        places.setdefault(f"torch {where['torch']}, {where['cpu']}, {where['os']}", []).append(trial["started"])
    return [f"From {min(times)} to {max(times)}; {place}." for place, times in places.items()]


if __name__ == "__main__":
    sys.exit(main())
