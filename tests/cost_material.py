"""Tiny speed cases, and lines of costs written by hand, for the tests of costs, of their pages and of the gate."""

import numpy as np

from xentcheck.results.record import Results
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
BYTES = {"forward": 100, "kept": 100, "backward": 300, "retained": 0, "uncounted": 0}


def memory(case="speed/one", name="mine", **more):
    return line("memory", case, name) | {"bytes": BYTES | more}


def line(measure, case="speed/one", name="mine"):
    return {
        "kind": "cost",
        "measure": measure,
        "profile": "quick",
        "implementation": name,
        "source": f"path.py:{name}",
        "case": case,
        "question": "q1",
        "device": "cpu",
        "status": "pass",
        "message": "",
        "logits": {"bytes": 100},
        "settings": {"threads": 1},
    }


def speed(ratio=1.0, noise=0.01, control=1.0, control_noise=0.01, case="speed/one", name="mine", seed=0):
    draw = np.random.default_rng(seed)

    def lane(factor, spread):
        return {"both": [factor * float(np.exp(v)) for v in draw.normal(0, spread, 15)]}

    rounds = {
        "native": {"both": [1.0] * 15},
        "candidate": lane(ratio, noise),
        "control": lane(control, control_noise),
    }
    return line("speed", case, name) | {"rounds": rounds}


def verdict(status="pass", case="plain/one", aspect="loss", name="mine"):
    return Verdict(name, "plain", case, aspect, status, reason="" if status == "pass" else "expected 1; found 2")


PASSED = verdict()


def results(
    *costs, verdicts=(PASSED,), capabilities=("weight", "vmap"), complete=True, environment=ENVIRONMENT, name="mine"
):
    header = {
        "kind": "run",
        "format": 2,
        "cases": "c1",
        "started": "2026-01-01",
        "environment": environment,
        "implementations": {name: {"version": "1", "capabilities": list(capabilities)}},
    }
    return Results(header, tuple(verdicts), costs, complete)
