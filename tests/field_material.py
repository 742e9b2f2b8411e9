"""A record of other libraries written by hand, and the pages made of it and of ``report_material``'s."""

import math
from pathlib import Path

from report_material import CLAUSES, bugs, material, questions, verdict
from report_material import cases as own_cases
from xentcheck.field import Row, combine
from xentcheck.publish import report
from xentcheck.publish.page import Material
from xentcheck.run.verdict import Fault
from xentcheck.spec.case import Case, Clause, Question
from xentcheck.spec.loader import CASES

GOLDEN = Path(__file__).parent / "publish" / "golden_field"
PAGES = ("field.md", "choose.md", "conventions.md", "implementations/lib_one.md", "implementations/lib_gpu.md")
_NEW = {
    "all-ignored": ("With every position ignored there is nothing to learn", "all"),
    "bad-input": ("What has no answer is an error", [0]),
}
LINEAR = ["backward", "float32", "ignore_minus_100", "linear"]


def cases():
    found = own_cases()
    for name, (title, ignored) in _NEW.items():
        clause = Clause(clause=name, title=title, requirement=f"{title}.", sources=("https://e.example/1",))
        question = Question.model_validate({"logits": {"shape": [2, 3]}, "target": {"ignore": {"rows": ignored}}})
        found.append(
            Case(
                id=f"{name}/target" if name == "bad-input" else f"{name}/mean",
                clause=clause,
                question=question,
                path=CASES / f"{name}.yaml",
                line=1,
            )
        )
    assert CLAUSES
    return found


def row(*verdicts, edition="1", selection="all", **changes):
    environment = {"torch": "2.0", "gpu": None, "threads": 1}
    measured = {"edition": edition, "cases": "0123", "selection": selection, "environment": environment}
    claims = {"version": "1.5", "description": "A library's loss.", "capabilities": LINEAR, "conventions": {}}
    claims |= {"deviations": [], "requires": ["lib==1.5"], "measured": measured | {"started": "2026-01-03T00:00:00"}}
    return Row(claims | changes, verdicts, {})


def rows():
    nan = Fault("nan", "loss", 1.0, math.nan)
    far = Fault("value", "loss", 1.0, 9.0, units=1e6, worst_units=1e6, allowed_units=3.0, count=1, total=1)
    near = Fault("value", "loss", 1.0, 1.1, units=5.0, worst_units=5.0, allowed_units=3.0, count=1, total=1)
    told = {"cases": ["ignored/nan"], "aspect": "gradient", "observed": "a mask that is too small", "fault": "nonzero"}
    told |= {"reason": "It is made once.", "link": "https://f.example/1", "torch": ""}

    def of(name, case, aspect, status="pass", fault=None, **more):
        made = {k: more.pop(k) for k in ("by_adapter", "same_as") if k in more}
        found = verdict(name, case, aspect, status, fault=fault, **more)
        for key, value in made.items():
            object.__setattr__(found, key, value)
        return found

    return {
        "lib_one": row(
            of("lib_one", "plain/mean", "loss", "fail", near, units=5.0),
            of("lib_one", "plain/half", "loss", "fail", far, units=1e6),
            of("lib_one", "all-ignored/mean", "loss", "fail", nan, by_adapter=True),
            of("lib_one", "ignored/nan", "loss", units=0.5),
            of("lib_one", "ignored/nan", "gradient", "deviates", Fault("nonzero", "gradient", 0.0, 1.0)),
            of("lib_one", "bad-input/target", "rejection", "unsupported", reason="cannot raise an error; found NaN"),
            of("lib_one", "plain/mean", "deletion", "fail", near),
            deviations=[told],
            refuses="nan",
            adapter_does=["divide", "mask"],
        ),
        "lib_two": row(
            of("lib_two", "all-ignored/mean", "loss", units=0.0, empty_mean="zero"),
            of("lib_two", "plain/mean", "loss", units=0.25),
            of("lib_two", "bad-input/target", "rejection"),
            of("lib_two", "ignored/nan", "gradient", "deviates", Fault("nan", "gradient", 0.0, 1.0), same_as="native"),
            edition="0",
            selection="telling",
        ),
        "lib_gpu": row(
            of("lib_gpu", "plain/mean", "loss", "unavailable", reason="needs a CUDA device"),
            capabilities=["backward", "float32"],
        ),
        "lib_forward": row(
            of(
                "lib_forward", "bad-input/target", "rejection", "fail", Fault("accepted", "", "an error", "a loss of 1")
            ),
            of("lib_forward", "plain/mean", "loss", "crash", reason="the process died"),
            capabilities=["float32"],
            requires=[],
        ),
    }


def field(shown=None):
    return Material(combine(shown or rows()), cases())


def made(shown=None, folder=Path("nowhere")):
    return report.pages(material(), questions(), bugs(), lambda implementation, case: "", folder, field(shown))


if __name__ == "__main__":
    for name in PAGES:
        (GOLDEN / name).parent.mkdir(parents=True, exist_ok=True)
        (GOLDEN / name).write_bytes(made()[name])
