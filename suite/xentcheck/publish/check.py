"""Whether the published reports are what the code produces: records against records, and pages against the record that they show.

Between two records of the same cases and implementations, each verdict must have the same status, the same kind of fault and the same
conventions; a deviation that is not certain may show in one and not in the other. Errors in units, the values found and their indices are not compared, since they depend on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from xentcheck.publish.report import superfluous
from xentcheck.results.markdown import count
from xentcheck.results.record import Results
from xentcheck.run.status import Status
from xentcheck.run.verdict import Verdict
from xentcheck.spec.capabilities import GRADES
from xentcheck.spec.patterns import matches

MOST = 10  # differences that are listed
_MACHINE = ("version",)  # fields of an implementation that depend on where it runs


def between(published: Results, new: Results) -> list[str]:
    """How the verdicts of a run differ from the published ones; empty where they agree."""
    old, now = published.run["cases"], new.run["cases"]
    if old != now:
        return [
            f"the published record is of the cases {old}, this run of the cases {now}; run `make conform` and commit reports/"
        ]
    found = [*_claims(published.run["implementations"], new.run["implementations"]), *_verdicts(published, new)]
    more = [f"and {count(len(found) - MOST, 'further difference')}"] if len(found) > MOST else []
    return found[:MOST] + more


def pages(made: Mapping[str, bytes], folder: Path) -> list[str]:
    """The files that differ, in any byte, from what the published record gives."""
    found = []
    for name, content in made.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{path}: is missing")
        elif path.read_bytes() != content:
            found.append(f"{path}{_where(path.read_bytes(), content)}")
    return found + [f"{path}: no page links it" for path in superfluous(dict(made), folder)]


def _claims(published: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in {**published, **new}:
        if name not in new or name not in published:
            yield f"{name}: is {'published, but not in this run' if name in published else 'in this run, but not published'}"
            continue
        for claim in published[name]:
            if claim not in _MACHINE and published[name][claim] != new[name].get(claim):
                yield f"{name}: its {claim} are other than published"


def _verdicts(published: Results, new: Results) -> Iterator[str]:
    shared = published.run["implementations"].keys() & new.run["implementations"].keys()
    old, now = ({v.key: v for v in results.verdicts if v.implementation in shared} for results in (published, new))
    for text, missing in (
        ("published, but not in this run", old.keys() - now.keys()),
        ("in this run, but not published", now.keys() - old.keys()),
    ):
        if missing:
            yield f"{count(len(missing), 'verdict')} {text}; the first: {' '.join(min(missing))}"
    for key in sorted(old.keys() & now.keys()):
        if _facts(old[key]) != _facts(now[key]) and not _is_uncertain(published.run, old[key], now[key]):
            yield f"{' '.join(key)}: published {_shown(old[key])}; found {_shown(now[key])}"


def _is_uncertain(run: Mapping[str, Any], one: Verdict, other: Verdict) -> bool:
    """Whether a deviation is declared that may show or not, such as one that depends on the processor."""
    return {one.status, other.status} == {Status.PASS, Status.DEVIATES} and any(
        deviation["aspect"] == one.aspect and not deviation.get("certain", True)
        for deviation in run["implementations"][one.implementation]["deviations"]
        if any(matches(pattern, one.case) for pattern in deviation["cases"])
    )


def _facts(verdict: Verdict) -> tuple[Any, ...]:
    # Which grade of accuracy is reached may depend on the processor.
    answers = {name: answer for name, answer in verdict.conventions.items() if name not in GRADES}
    return verdict.status, verdict.kind, answers


def _shown(verdict: Verdict) -> str:
    facts = [str(verdict.status), verdict.kind, ", ".join(f"{k} {v}" for k, v in sorted(verdict.conventions.items()))]
    return " ".join([facts[0], *(f"({fact})" for fact in facts[1:] if fact)])


def _where(published: bytes, made: bytes) -> str:
    """The first line that differs, and 100 bytes of it."""
    pairs = enumerate(zip(published, made, strict=False))
    same = made[: next((i for i, (a, b) in pairs if a != b), min(len(published), len(made)))]
    start = max(same.rfind(b"\n") + 1, len(same) - 30)
    was, now = (text[start : start + 100].split(b"\n")[0].decode(errors="replace") for text in (published, made))
    number = same.count(b"\n") + 1
    return f":{number}: is not what the code produces from the published record; published {was!r}, produced {now!r}"
