"""Drawn documents in which one thing is made wrong, so that the call must be refused."""

from __future__ import annotations

from hypothesis import strategies as st

from xentcheck.explore.drawing import Facts, nested
from xentcheck.spec.capabilities import OPTIONS


def _refusable(facts: Facts) -> bool:
    """Only a plain call with positions is made wrong, since there every implementation can notice it."""
    target = facts.entry.get("target", {})
    if not facts.count or target.get("dtype", "int64") != "int64" or "probabilities" in target:
        return False
    for key in ("normalizer", "mode", "upstream", "padded_to"):
        facts.entry.pop(key, None)
    return True


def _spoil_target(facts: Facts) -> None:
    if not _refusable(facts) or facts.count > 6:
        return
    outside = (facts.classes, -1, -100, facts.classes + 1, 255, 2**31, 2**32, -(2**63))
    wrong = [v for v in outside if v not in facts.ignore_values and not 0 <= v < facts.classes]
    right = [c for c in range(facts.classes) if c not in facts.ignore_values] or [0]
    flat = facts.draw(st.lists(st.sampled_from(right), min_size=facts.count, max_size=facts.count))
    flat[facts.draw(st.integers(0, facts.count - 1))] = facts.one_of(*wrong)
    facts.entry["target"] = {"values": nested(flat, facts.positions)}
    facts.entry["expect"] = {"error": {}}


def _spoil_smoothing(facts: Facts) -> None:
    if facts.can("label_smoothing") and _refusable(facts):
        facts.entry |= {"label_smoothing": facts.one_of(1.5, -0.5, 2, -1e-3), "expect": {"error": {}}}


def _spoil_reduction(facts: Facts) -> None:
    if facts.can("reduction_option") and _refusable(facts):
        facts.entry |= {"reduction": facts.one_of("average", "MEAN", "max"), "expect": {"error": {}}}


def _spoil_weight(facts: Facts) -> None:
    if facts.can("weight") and facts.classes <= 8 and _refusable(facts):
        length = facts.one_of(facts.classes + 1, *([facts.classes - 1] if facts.classes > 1 else []))
        facts.entry |= {"weight": [1] * length, "expect": {"error": {}}}


def _spoil_shape(facts: Facts) -> None:
    if not _refusable(facts) or not facts.positions:
        return
    first, *rest = facts.positions
    shape = facts.one_of([first + 1, *rest], [*facts.positions, 1], [1, *facts.positions], [first + 1])
    if tuple(shape) != facts.positions:
        label = next((c for c in range(facts.classes) if c not in facts.ignore_values), 0)
        facts.entry["target"] = {"classes": [label], "shape": shape}
        facts.entry["logits"].pop("set", None)  # which may select rows by their targets
        facts.entry["expect"] = {"error": {}}


def _ask_for_refusal(facts: Facts) -> None:
    """An option that is not claimed must be refused. Only values that would change the answer are drawn."""
    options = {  # by capability, in alphabetical order
        "label_smoothing": {"label_smoothing": 0.5},
        "reduction_none": {"reduction": "none"},
        "reduction_sum": {"reduction": "sum"},
        "weight": {"weight": "random"},
    }
    missing = [option for name, option in options.items() if name in OPTIONS and not facts.can(name)]
    if missing and facts.classes > 1 and _refusable(facts):
        facts.entry |= {**facts.one_of(*missing), "expect": {"refused_unless_claimed": True}}


SPOILED = (_spoil_target, _spoil_smoothing, _spoil_reduction, _spoil_weight, _spoil_shape, _ask_for_refusal)
