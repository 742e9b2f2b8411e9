"""No false alarm: correct losses, written in different ways, fail nowhere, with one thread and with two.

A test is an entry of a case file put to all of ``lookalikes/``, so that its batches are made once.
"""

from collections import defaultdict
from pathlib import Path

import pytest
import torch

from kill_matrix import found_in
from kill_page import asked, entry, size
from xentcheck.implementation import find
from xentcheck.run.examiner import Examiner
from xentcheck.spec.loader import load_all

pytestmark = pytest.mark.slow

LOOKALIKES = [find(source)[0] for source in found_in(Path(__file__).parent / "lookalikes").values()]
(NATIVE,) = find("native")
CASES = asked(load_all())
ENTRIES = defaultdict(list)
for _case in CASES:
    ENTRIES[entry(_case)].append(_case)
PARALLEL = 2**15  # elements from which torch shares its work out among threads


def wrong(cases, relations=LOOKALIKES):
    """relations: those who are also asked about the relations to other batches."""
    examiner = Examiner(native=lambda: NATIVE)  # what hands the work to torch is right where torch is known to be wrong
    verdicts = [
        examiner.examine(case, aspect, lookalike)
        for case in cases
        for lookalike in LOOKALIKES
        for aspect in (examiner.aspects(case, lookalike) if lookalike in relations else case.aspects)
    ]
    return [f"{v.implementation} {v.case} {v.aspect}: {v.message}" for v in verdicts if not v.status.is_good]


@pytest.mark.parametrize("name", ENTRIES)
def test_correct_losses_fail_nowhere(name):
    """With the relations of a matrix's first case, asked of a fifth of them in turn; `make older-torch` asks all about all."""
    first, *others = ENTRIES[name]
    turn = list(ENTRIES).index(name) % 5
    assert wrong([first], LOOKALIKES[turn::5]) + wrong(others, ()) == []


LARGE = [case for case in CASES if size(case) >= PARALLEL]
OTHERS = [case for case in CASES if size(case) < PARALLEL][::40]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", [*LARGE, *OTHERS], ids=lambda case: case.id)
def test_correct_losses_fail_nowhere_with_two_threads(case, two_threads):
    # Relations ask for a dozen batches of the same size, so they are left to the smaller ones of those that are shared out.
    assert wrong([case], LOOKALIKES[::5] if size(case) < 2 * PARALLEL else ()) == []


def test_there_are_enough_large_cases_for_two_threads():
    assert len(LARGE) >= 20


@pytest.mark.parametrize("capability", ["class_probabilities", "normalizer", "ignore_index_list", "label_smoothing"])
def test_each_option_is_offered_by_several(capability):
    offering = [i for i in LOOKALIKES if capability in i.capabilities - i.tentative or _takes_it(i, capability)]
    assert len(offering) >= 6


def _takes_it(lookalike, capability):
    """A bare callable is asked about class probabilities, and may refuse them."""
    if capability not in lookalike.tentative:
        return False
    try:
        lookalike.cross_entropy(torch.zeros(2, 3), torch.full((2, 3), 1 / 3))
    except (TypeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("capability", ["double_backward", "compile", "vmap", "func_grad"])
def test_each_mode_is_offered_by_one(capability):
    assert any(capability in i.capabilities for i in LOOKALIKES)


def test_both_answers_to_the_mean_over_nothing_are_stated():
    assert {i.empty_mean for i in LOOKALIKES} == {None, "nan", "zero"}
