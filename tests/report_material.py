"""Records written by hand, and the pages made of them, for the tests of reports."""

import math
from pathlib import Path

from xentcheck.publish import report
from xentcheck.publish.page import Material
from xentcheck.results import record
from xentcheck.run.verdict import Fault, Verdict
from xentcheck.spec import bug_reports, common_claims
from xentcheck.spec.case import Case, Clause, Question
from xentcheck.spec.loader import CASES

CLAUSES = {
    "ignored": Clause(
        clause="ignored",
        title="Ignored",
        requirement="Ignored positions count for nothing.",
        sources=("https://a.example/1",),
    ),
    "plain": Clause(
        clause="plain",
        title="Plain",
        requirement="The loss is the definition's.",
        sources=("https://b.example/2", "https://b.example/3"),
    ),
}
LEAK = {
    "cases": ["ignored/nan"],
    "aspect": "gradient",
    "observed": "NaN gradients",
    "fault": "nan",
    "reason": "0 * NaN is NaN.",
    "link": "https://c.example/4",
    "torch": "<3",
    "max_units": None,
}
STALE = {**LEAK, "cases": ["ignored/elsewhere"], "observed": "something that was not run"}


def verdict(
    implementation, case, aspect, status="pass", units=None, reason="", fault=None, dtype="float32", **conventions
):
    return Verdict(
        implementation, case.split("/")[0], case, aspect, status, units, fault, reason, None, dtype, conventions
    )


def results():
    def claims(description, deviations=(), **conventions):
        return {
            "version": "1.0",
            "description": description,
            "capabilities": ["backward", "float32"],
            "conventions": conventions,
            "deviations": list(deviations),
        }

    run = {
        "kind": "run",
        "format": record.FORMAT,
        "edition": "1",
        "cases": "0123",
        "selection": "all",
        "started": "2026-01-02T03:04:05+00:00",
        "environment": {"torch": "2.0", "gpu": None, "threads": 2, "allocator": {}},
        "implementations": {
            "known": claims("Wrong in a known way.", [LEAK, STALE], empty_mean="nan"),
            "right": claims("Right."),
            "wrong": claims("Wrong | new."),
        },
    }
    verdicts = [
        verdict("known", "ignored/nan", "loss", units=0.25),
        verdict(
            "known",
            "ignored/nan",
            "gradient",
            "deviates",
            fault=Fault("nan", "gradient", 0.0, math.nan, (0, 0), is_ignored=True),
        ),
        verdict("known", "plain/mean", "loss", units=1.5, empty_mean="nan"),
        verdict("known", "plain/half", "loss", "unsupported", reason="not claimed: bfloat16", dtype="bfloat16"),
        verdict("right", "ignored/nan", "loss", units=0.5),
        verdict("right", "ignored/nan", "gradient", units=0.0),
        verdict("right", "plain/mean", "loss", units=2.0, empty_mean="zero"),
        verdict("right", "plain/half", "loss", units=0.125, dtype="bfloat16", half_loss_dtype="input"),
        verdict(
            "wrong",
            "ignored/nan",
            "loss",
            "error",
            fault=Fault("raised", expected="a loss", found="RuntimeError in the call: a | b"),
        ),
        verdict("wrong", "ignored/nan", "gradient", "crash", reason="worker died"),
        verdict(
            "wrong",
            "plain/mean",
            "loss",
            "fail",
            40.0,
            fault=Fault("value", "loss", 1.0, 2.0, units=40.0, worst_units=40.0, allowed_units=3.0, count=1, total=1),
        ),
        verdict(
            "wrong",
            "plain/half",
            "loss",
            "unexpected-pass",
            0.5,
            "this is a known deviation, and it holds; delete x.py:1",
            dtype="bfloat16",
        ),
    ]
    return record.Results(run, tuple(verdicts))


def cases():
    question = Question.model_validate({"logits": {"shape": [2, 3]}})
    return [
        Case(id=i, clause=CLAUSES[i.split("/")[0]], question=question, path=CASES / f"{i.split('/')[0]}.yaml", line=1)
        for i in ("ignored/nan", "plain/mean", "plain/half")
    ]


def questions():
    evidence = [
        {"case": "ignored/nan", "implementation": "known", "status": "deviates", "shows": "NaN in an ignored row"},
        {"case": "plain/mean", "implementation": "right", "shows": "the mean"},
    ]
    claim = {
        "claim": "Ignored rows are harmless.",
        "verdict": "half true",
        "answer": "Only finite ones.",
        "evidence": evidence,
    }
    return (common_claims.Topic.model_validate({"seed": "000", "question": "Are they?", "claims": [claim]}),)


def bugs():
    caught = {"cases": ["ignored/nan", "plain"], "mutants": ["nan_leaks", "no_maximum"]}
    rows = [
        {"id": "AB-01", "where": "cpu", "note": "One of two.", **caught},
        {"id": "AB-02", "where": "gpu", "needs": "linear", "why_not": "It has weights | of its own."},
        {"id": "AB-03", "where": "gpu", **caught},
    ]
    common = {"project": "Some", "links": ["https://github.com/a/b/issues/1", "https://d.example/2"]}
    rows = [{**common, "symptom": f"Wrong as {row['id']}.", **row} for row in rows]
    return (bug_reports.Theme.model_validate({"prefix": "AB", "title": "Things and more", "reports": rows}),)


def material(shown=None):
    return Material(shown or results(), cases())


def made(shown=None, folder=Path("nowhere")):
    def script(implementation, case):
        return f"print('{implementation}, {case}')\n"

    return report.pages(material(shown), questions(), bugs(), script, folder)


def pages(folder, shown=None):
    report.write(made(shown, folder), folder)
    return folder
