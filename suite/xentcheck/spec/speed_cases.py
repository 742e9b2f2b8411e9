"""The speed cases: ``cases/speed/*.yaml``, in the format of all cases. Each file names the profile that it belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from xentcheck.spec.case import Case, Expect
from xentcheck.spec.case_modes import MODES
from xentcheck.spec.loader import CASES, SPEED, check_ids, load
from xentcheck.spec.mistakes import CaseFileError, Mistake
from xentcheck.spec.patterns import matches, nearest

QUICK = "quick"  # part of every run
CUDA = "cuda"  # measured on a CUDA device only
FOLDER = CASES / SPEED


def load_profiles(names: str | None = None, folder: Path = FOLDER) -> list[Case]:
    """The cases of the profiles and of the patterns over ids that are named, separated by commas; ``all`` is all of them.

    None: the quick profile. Raises CaseFileError for a name that is neither a profile nor matches an id.
    """
    cases = load_speed(folder)
    known = [*dict.fromkeys(case.clause.profile or "" for case in cases), "all"]
    wanted = [name.strip() for name in (QUICK if names is None else names).split(",") if name.strip()]
    if not wanted:
        raise CaseFileError(f"--profile names no profile; expected some of {', '.join(known)}")
    chosen: set[str] = set()
    for name in wanted:
        found = {c.id for c in cases if name in ("all", c.clause.profile) or ("/" in name and matches(name, c.id))}
        if not found:
            hint = f"{nearest(name, [*known, *(case.id for case in cases)])} Known: {', '.join(known)}"
            raise CaseFileError(f"--profile {name}: there is no such profile or speed case{hint}")
        chosen |= found
    return [case for case in cases if case.id in chosen]


def load_speed(folder: Path = FOLDER) -> list[Case]:
    """Every speed case. Raises CaseFileError that lists those that cannot be timed, or whose id another one has."""
    cases = [case for path in sorted(folder.glob("*.yaml")) for case in load(path)]
    mistakes = [mistake for case in cases for mistake in _mistakes(case)]
    if mistakes:
        raise CaseFileError(*mistakes)
    check_ids(cases)
    return cases


def is_for(device: str, case: Case) -> bool:
    """Whether the case is measured on the device: what only a GPU can take in reasonable time is not, on the CPU."""
    return device == CUDA or case.clause.profile != CUDA


def _mistakes(case: Case) -> Iterator[Mistake]:
    """What keeps a valid case from being timed."""
    question = case.question
    if not case.clause.profile:
        yield Mistake("expected the name that --profile takes; found none", case.path, 1, key="profile")
    if not MODES[question.mode].is_timed or question.expect != Expect():
        text = "expected mode eager, compile or no_grad and no expect, since a plain step is timed"
        yield Mistake(text, case.path, case.line, case.id)
    if question.target.probabilities is not None:
        text = "expected classes, which large batches have as targets; found probabilities"
        yield Mistake(text, case.path, case.line, case.id, "target.probabilities")
    if question.logits.shape is not None and len(question.logits.shape) < 2:
        text = f"expected (N, C, ...); found {question.logits.shape}"
        yield Mistake(text, case.path, case.line, case.id, "logits.shape")
