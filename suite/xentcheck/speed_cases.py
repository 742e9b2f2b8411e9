"""The speed cases: ``cases/speed/*.yaml``, in the format of all cases, each file with the profile that it belongs to."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from xentcheck.case import Case, Expect
from xentcheck.loader import CASES, SPEED, load
from xentcheck.patterns import nearest
from xentcheck.yaml_document import CaseFileError

QUICK = "quick"  # part of every run
CUDA = "cuda"  # measured on a CUDA device only
FOLDER = CASES / SPEED


def load_profiles(names: str | None = None, folder: Path = FOLDER) -> list[Case]:
    """The cases of the profiles named, separated by commas; ``all`` is all of them. None: the quick one."""
    cases = load_speed(folder)
    known = [*dict.fromkeys(case.clause.profile or "" for case in cases), "all"]
    wanted = [name.strip() for name in (QUICK if names is None else names).split(",") if name.strip()]
    if not wanted:
        raise CaseFileError(f"--profile names no profile; expected some of {', '.join(known)}")
    for name in wanted:
        if name not in known:
            raise CaseFileError(
                f"--profile {name}: there is no such profile{nearest(name, known)} Known: {', '.join(known)}"
            )
    return [case for case in cases if "all" in wanted or case.clause.profile in wanted]


def load_speed(folder: Path = FOLDER) -> list[Case]:
    """Every speed case. Raises CaseFileError where one is none, or an id stands twice."""
    cases = [case for path in sorted(folder.glob("*.yaml")) for case in load(path)]
    mistakes = list(_mistakes(cases))
    if mistakes:
        raise CaseFileError("\n".join(mistakes))
    return cases


def is_for(device: str, case: Case) -> bool:
    """Whether the case is measured on the device: what only a GPU can take in reasonable time is not, on the CPU."""
    return device == CUDA or case.clause.profile != CUDA


def _mistakes(cases: Iterable[Case]) -> Iterable[str]:
    seen: dict[str, Case] = {}
    for case in cases:
        where = f"{case.path}:{case.line}: case {case.id}"
        if not case.clause.profile:
            yield f"{case.path}:1: profile: expected the name that --profile takes; found none"
        if case.question.mode not in ("eager", "compile", "no_grad") or case.question.expect != Expect():
            yield f"{where}: expected mode eager, compile or no_grad and no expect; what is timed is a plain step"
        if case.question.target.probabilities is not None:
            yield f"{where}: target.probabilities: expected classes, of which large batches are; found probabilities"
        if case.question.logits.shape is not None and len(case.question.logits.shape) < 2:
            yield f"{where}: logits.shape: expected (N, C, ...); found {case.question.logits.shape}"
        if case.id in seen:
            yield f"{where}: stands a second time; the first is {seen[case.id].path}:{seen[case.id].line}"
        seen.setdefault(case.id, case)
