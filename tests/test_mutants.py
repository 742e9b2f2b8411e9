"""The specification is worth what it catches: every case kills the mutants that it names.

``mutants/`` holds wrong losses, one bug each. Here each is put to the cases that name it; ``make mutants`` puts it to all of them.
"""

from collections import defaultdict

import pytest

from kill_matrix import FOLDER, found_in, loaded
from xentcheck.run.examiner import Examiner
from xentcheck.spec.loader import load_all

pytestmark = pytest.mark.slow

CASES = load_all()
MUTANTS = found_in(FOLDER)
NAMED = defaultdict(list)  # (entry of a case file, mutant): the expanded cases
for _case in CASES:
    for _name in _case.kills:
        NAMED[_case.id.partition("[")[0], _name.replace("-", "_")].append(_case)


def faults(case, implementation, examiner):
    verdicts = [examiner.examine(case, aspect, implementation) for aspect in examiner.aspects(case, implementation)]
    return [v for v in verdicts if not v.status.is_good]


@pytest.mark.parametrize("entry", sorted({entry for entry, _ in NAMED}))
def test_a_case_kills_the_mutants_it_names(entry):
    named = {name: cases for (named_by, name), cases in NAMED.items() if named_by == entry}
    if any(case.is_huge for cases in named.values() for case in cases):
        pytest.skip(f"more than 2^31 logits: pytest suite/ --huge --cases {entry} --impl {MUTANTS[next(iter(named))]}")
    examiner, survivors = Examiner(), []
    for name, cases in named.items():
        mutant = loaded(MUTANTS[name])[0]  # executed anew: what it kept from other cases may not decide
        if not any(faults(case, mutant, examiner) for case in cases):
            survivors.append(name)
    assert survivors == []


def test_all_are_there():
    assert len(MUTANTS) == 319, "a wrong loss is taken away only together with the reason why it was there"


def test_every_case_names_a_mutant():
    assert [case.id for case in CASES if not case.kills] == []


def test_every_mutant_is_named_by_a_case():
    assert MUTANTS.keys() - {name for _, name in NAMED} == set()
