"""The specification is worth what it catches: every case kills the mutants that it names, and no correct loss fails anywhere.

``mutants/`` holds wrong losses, one bug each; ``lookalikes/`` correct ones, written in different ways.
"""

from collections import defaultdict
from pathlib import Path

import pytest

from xentcheck.casefile import load_all
from xentcheck.examine import Examiner
from xentcheck.implementation import find
from xentcheck.judge import GOOD

HERE = Path(__file__).parent


def found_in(folder):
    """What ``--impl`` takes for each public function of the folder's files."""
    files = sorted(f for f in (HERE / folder).glob("*.py") if not f.name.startswith("_"))
    return {i.name: i.source for file in files for i in find(f"{file}:*")}


CASES = load_all()
MUTANTS, LOOKALIKES = found_in("mutants"), found_in("lookalikes")
NAMED = defaultdict(list)  # (entry of a case file, mutant): the expanded cases
for _case in CASES:
    for _name in _case.kills:
        NAMED[_case.id.partition("[")[0], _name.replace("-", "_")].append(_case)


def faults(case, implementation, examiner):
    verdicts = [examiner.examine(case, aspect, implementation) for aspect in examiner.aspects(case, implementation)]
    return [v for v in verdicts if v.status not in GOOD]


@pytest.mark.parametrize("entry", sorted({entry for entry, _ in NAMED}))
def test_a_case_kills_the_mutants_it_names(entry):
    examiner = Examiner()
    for (named_by, name), cases in NAMED.items():
        if named_by == entry:
            if any(case.is_huge for case in cases):
                pytest.skip(f"more than 2^31 logits: pytest suite/ --huge --cases {entry} --impl {MUTANTS[name]}")
            mutant = find(MUTANTS[name])[0]  # executed anew: what it kept from other cases may not decide
            assert any(faults(case, mutant, examiner) for case in cases), f"{name} survives {entry}"


# torch.compile costs seconds a case, and a bare callable does not claim it.
ASKED = [case for case in CASES if case.question.mode != "compile" and not case.is_huge]


@pytest.mark.parametrize("name", LOOKALIKES)
def test_a_correct_loss_fails_nowhere(name):
    examiner, lookalike = Examiner(), find(LOOKALIKES[name])[0]
    wrong = [v for case in ASKED for v in faults(case, lookalike, examiner)]
    assert not wrong, "\n".join(f"{v.case} {v.aspect}: {v.message}" for v in wrong)


def test_there_are_enough_of_both():
    assert len(MUTANTS) >= 80
    assert len(LOOKALIKES) >= 15


def test_every_case_names_a_mutant():
    assert [case.id for case in CASES if not case.kills] == []


def test_every_mutant_is_named_by_a_case():
    assert MUTANTS.keys() - {name for _, name in NAMED} == set()
