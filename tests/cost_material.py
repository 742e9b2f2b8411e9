"""Tiny speed cases, and measurements made by hand, for the tests of costs, of their pages and of the gate."""

import numpy as np

from xentcheck.cost.measurement import Logits, Measurement, Memory, Settings, Timing
from xentcheck.results.record import Results
from xentcheck.results.run_line import FORMAT
from xentcheck.run.verdict import Verdict

HEADER = """clause: tiny
profile: quick
title: Tiny
requirement: The answer is the definition's.
sources: [https://example.org]
cases:
"""
ONE = "id: one, logits: {shape: [6, 5], fill: tiled}, target: {ignore: {rows: [1]}}, memory_limit: 1 GiB"
TWO = "id: two, logits: {shape: [2, 5, 3], fill: tiled}, reduction: sum, memory_limit: 1 GiB"

ENVIRONMENT = {"torch": "2.13", "cpu": "a CPU", "threads": 1}
BYTES = {"forward": 100, "kept": 100, "backward": 300, "retained": 8, "uncounted": 0}
QUESTIONS = {"plain/one": "q1", "plain/new": "q2", **{f"plain/{n}": "q" for n in range(60)}}
SETTINGS = Settings(threads=1, huge_pages="madvise", environment={"OMP_NUM_THREADS": "1"})


def measurement(measure, case="speed/one", name="mine", **more):
    return Measurement(
        **{
            "measure": measure,
            "profile": "quick",
            "implementation": name,
            "source": f"path.py:{name}",
            "case": case,
            "question": "q1",
            "device": "cpu",
            "status": "pass",
            "logits": Logits(shape=(5, 5), dtype="float32", bytes=100),
            **more,
        }
    )


def broken(measured, **more):
    """The same measurement without figures."""
    without = {"timing": None, "memory": None, "logits": None, "status": "fail", "message": "expected at most 1 GiB"}
    return Measurement(**{**dict(measured), **without, **more})


def memory(case="speed/one", name="mine", question="q1", **more):
    return measurement("memory", case, name, question=question, memory=Memory(**BYTES | more))


def speed(
    ratio=1.0, noise=0.01, control=1.0, control_noise=0.01, case="speed/one", name="mine", seed=0, threads=1, **more
):
    draw = np.random.default_rng(seed)

    def lane(factor, spread):
        return {"both": tuple(factor * float(np.exp(v)) for v in draw.normal(0, spread, 15))}

    timing = Timing(
        rounds={
            "native": {"both": (1.0,) * 15},
            "candidate": lane(ratio, noise),
            "control": lane(control, control_noise),
        },
        repetitions=2,
        bandwidth={"copy": 200, "fill": 100},
        first={"both": 7.0},
        settings=SETTINGS.model_copy(update={"threads": threads}),
    )
    return measurement("speed", case, name, timing=timing, **more)


def verdict(status="pass", case="plain/one", aspect="loss", name="mine"):
    return Verdict(name, "plain", case, aspect, status, reason="" if status == "pass" else "expected 1; found 2")


PASSED = verdict()


def results(
    *costs,
    verdicts=(PASSED,),
    capabilities=("weight", "vmap"),
    complete=True,
    environment=ENVIRONMENT,
    name="mine",
    questions=QUESTIONS,
):
    header = {
        "kind": "run",
        "format": FORMAT,
        "edition": "2026.11",
        "cases": "c1",
        "questions": questions,
        "started": "2026-01-01",
        "environment": environment,
        "implementations": {name: {"version": "1", "capabilities": list(capabilities)}},
    }
    return Results(header, tuple(verdicts), costs, complete)
