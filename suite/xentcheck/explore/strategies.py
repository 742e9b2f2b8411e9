"""Case documents for exploration: entries of a case file, drawn by Hypothesis.

A document is a plain dict, one entry of ``cases:`` as a person would write it. Each key of the format has a function here that draws its
value, given what has been drawn so far, and a line in ``KEYS``; a new key of the format needs both. Values that shrink well come first. Not
drawn: ``linear`` (another form), ``memory_limit`` (for speed cases), ``file`` (tensors in another file), ``matrix`` (several cases in
one), ``needs`` (changes no question), expectations weaker than the definition, and ``mode: compile`` (takes seconds).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from xentcheck.explore.drawing import ABSENT, Draw, Facts, nested
from xentcheck.explore.spoiled import SPOILED
from xentcheck.reference.truth import has_no_softmax
from xentcheck.spec.batch import Batch
from xentcheck.spec.capabilities import CAPABILITIES
from xentcheck.spec.case import Case, Question
from xentcheck.spec.case_modes import MODES

LITERAL = 12  # up to so many logits may be written out
# Shipped cases go up to 1e30. Near a dtype's largest number sums overflow in its own arithmetic, which no clause forbids.
NUMBERS = (0, 1, -1, 2, 0.5, -3, 10, -10, 30, 100, -100, 1000, 60000, 1e30, -1e30)
NON_FINITE = ("-inf", "nan", "inf")
SCALES = (1, 3, 10, 30, 100, 0.01, 1000, 1e4, 1e5, 0, 1e-30, 1e30)
# Outside the classes, although some of them become a class when they are converted to a narrower integer.
OUTSIDE = (-1, 255, 256, 257, -255, 1000, 2**31, -(2**31), 2**32, 2**32 + 1, 2**63 - 1, -(2**63))
# Modes in which no upstream gradient can be given.
WITHOUT_UPSTREAM = {"vmap", *(name for name, mode in MODES.items() if not mode.has_gradient)}
LAYOUTS = ("strided", "transposed", "offset", "expanded")


def documents(capabilities: Collection[str] = frozenset(CAPABILITIES)) -> st.SearchStrategy[dict[str, Any]]:
    """Entries of a case file, without ``id``, that need only these capabilities, except for options that must be refused."""

    @st.composite
    def document(draw: Draw) -> dict[str, Any]:
        facts = Facts(draw, frozenset(capabilities))
        for key, value_of in KEYS.items():
            value = value_of(facts)
            if value is not ABSENT:
                facts.entry[key] = value
        if facts.chance(8):
            facts.one_of(*SPOILED)(facts)
        return {key: facts.entry[key] for key in Question.model_fields if key in facts.entry}

    return document()


def unclear(case: Case, batch: Batch) -> str:
    """Why a case has no answer that everybody would accept, or none that can be computed; empty if it has one."""
    weight = batch.options.get("weight")
    values = batch.input.double().numpy()
    valid = batch.valid
    if case.expects_error:
        return ""
    finite = abs(values[np.isfinite(values)])
    if batch.input.dtype != torch.float16 and finite.size and finite.max() > 1e35:
        return "sums of such logits overflow in float32"
    if weight is not None and valid.any():
        rows = batch.logits[valid]
        if bool((weight == 0).any()) and has_no_softmax(rows).any():
            return "a weight of 0 in a row without a softmax; the clauses only say what it does to a single -inf"
        w = weight.double().numpy()
        of_targets = np.ones(1) if batch.has_probabilities else w[batch.target.numpy().reshape(-1)[valid].astype(int)]
        if batch.reduction == "mean" and "normalizer" not in batch.options and of_targets.sum() == 0:
            return "0 / 0 has no answer that all accept; https://github.com/torch/nn/issues/775"
        if (w < 0).any() and (w > 0).any() and (batch.reduction == "mean" or batch.options.get("label_smoothing")):
            return "weights that cancel leave a difference of rounded numbers, whose error no unit describes"
    return ""


# --- the keys, in the order in which they depend on each other


def _dtype(facts: Facts) -> Any:
    names = [name for name in ("float32", "float64", "bfloat16", "float16") if facts.can(name)]
    facts.dtype = facts.one_of(*(["float32"] if "float32" in names else []), *names)
    return ABSENT if facts.dtype == "float32" else facts.dtype


def _logits(facts: Facts) -> Any:
    facts.shape = _shape(facts)
    facts.classes = facts.shape[min(1, len(facts.shape) - 1)]
    size = math.prod(facts.shape)
    logits: dict[str, Any]
    numbers = NUMBERS[:-2] if facts.dtype == "float16" else NUMBERS
    # Half of the patterns and a few of the numbers written out are not finite.
    any_number = special = st.sampled_from(numbers)
    if facts.can("non_finite"):
        special = st.one_of(any_number, st.sampled_from(NON_FINITE))
        any_number = st.sampled_from((*numbers, *NON_FINITE))
    if 0 < size <= LITERAL and facts.chance(2):
        plain = st.floats(-20, 20, width=16, allow_subnormal=False)
        flat = facts.draw(st.lists(st.one_of(any_number, plain), min_size=size, max_size=size))
        logits = {"values": nested(flat, facts.shape)}
    else:
        logits = {"shape": list(facts.shape)}
        if facts.chance(3):
            logits["fill"] = facts.one_of("constant", "ramp", "uniform", "normal")
        if facts.chance(3):
            logits["scale"] = facts.one_of(*SCALES[: -1 if facts.dtype == "float16" else None])
        if facts.chance(5):
            logits["shift"] = facts.one_of(*numbers)
    if facts.count and (facts.likely() if facts.can("non_finite") else facts.chance(4)):
        logits["set"] = [_pattern(facts, special) for _ in range(facts.one_of(1, 2))]
    if facts.can("non_contiguous") and size > 1 and facts.chance(5):
        images = ("channels_last",) if len(facts.shape) == 4 else ()
        logits["layout"] = facts.one_of(*LAYOUTS, *images)
    return logits


def _shape(facts: Facts) -> tuple[int, ...]:
    classes, positions = facts.one_of(2, 3, 4, 5, 1, 7), facts.one_of(1, 2, 3, 4, 6, 2, 3, 4, 5, 0)
    if facts.chance(25):  # beyond the sizes that fit into one vector or block
        many = 4099 if facts.can("many_classes") else 4096
        return facts.one_of((5, 17), (300, 3), (3, 129), (2, 257), (2049, 2), (4, 1025), (2, many))
    kinds = ["rows"] * 5 + ["tokens", "pixels", "volume"] * facts.can("k_dim") + ["unbatched"] * facts.can("unbatched")
    kind = facts.one_of(*kinds)
    if kind == "unbatched":
        return (classes,)
    further = {"rows": 0, "tokens": 1, "pixels": 2, "volume": 3}[kind]
    return (positions, classes, *(facts.one_of(1, 2, 3, 4, 2, 3, 1, 0) for _ in range(further)))


def _pattern(facts: Facts, numbers: st.SearchStrategy[Any]) -> dict[str, Any]:
    pattern: dict[str, Any] = {}
    rows = facts.one_of("ignored", "valid", "all", "some")
    if rows == "some":
        rows = facts.draw(st.lists(st.integers(0, facts.count - 1), min_size=1, max_size=3, unique=True))
    if rows != "all":
        pattern["rows"] = rows
    classes = facts.one_of("all", "some", *(("target", "others") if rows == "valid" else ()))
    if classes == "some":
        classes = facts.draw(st.lists(st.integers(0, facts.classes - 1), min_size=1, max_size=3, unique=True))
    if classes != "all":
        pattern["classes"] = classes
    pattern["value"] = facts.draw(numbers)
    return pattern


def _ignore_index(facts: Facts) -> Any:
    if not facts.can("ignore_index"):
        return ABSENT
    form = facts.one_of("absent", "absent", "one", "one", *(["several"] if facts.can("ignore_index_list") else []))
    if form == "absent":
        return ABSENT
    inside = range(facts.classes) if facts.can("ignore_index_in_range") and facts.classes <= 8 else ()
    values = st.sampled_from((-100, *OUTSIDE, *inside, *inside))
    if form == "one":
        value = facts.draw(values)
        facts.ignore_values = (value,)
        return value
    several = facts.draw(st.lists(values, max_size=3, unique=True))
    facts.ignore_values = tuple(several)
    return several


def _target(facts: Facts) -> Any:
    if facts.can("class_probabilities") and facts.chance(12):
        facts.ignore_values = ()  # none of them could be marked
        facts.entry.pop("ignore_index", None)
        return {"probabilities": _probabilities(facts)}
    dtype = facts.one_of(*["int64"] * 8, "int32", *(["uint8"] if facts.can("uint8_target") else []))
    low, high = {"int64": (-(2**63), 2**63 - 1), "int32": (-(2**31), 2**31 - 1), "uint8": (0, 255)}[dtype]
    if facts.classes > high + 1:
        dtype, high = "int64", 2**63 - 1
    # An ignore value that the dtype cannot hold would wrap to a class.
    facts.usable = usable = [v for v in facts.ignore_values if low <= v <= high] if facts.can("ignore_index") else []
    classes = [c for c in range(facts.classes) if c not in facts.ignore_values]
    target: dict[str, Any] = {}
    if not classes or (facts.count <= 6 and facts.classes <= 8 and facts.chance(2)):
        choices = [*classes, *(v for v in usable if int(float(v)) == v)]  # literal targets are read as floats
        if not choices and facts.count:  # no target is possible; drawn without ignored positions instead
            facts.ignore_values, choices = (), [0]
        flat = facts.draw(st.lists(st.sampled_from(choices or [0]), min_size=facts.count, max_size=facts.count))
        target["values"] = nested(flat, facts.positions)
        if not facts.count and len(facts.positions) > 1:  # [] does not show the other sizes
            target = {"shape": list(facts.positions)}
    else:
        if facts.chance(6) and facts.classes <= 8:
            target["classes"] = facts.draw(st.lists(st.sampled_from(classes), min_size=1, max_size=3, unique=True))
        if usable and facts.likely():
            target["ignore"] = _ignore(facts, usable)
    if dtype != "int64":
        target["dtype"] = dtype
    if facts.can("non_contiguous") and facts.count > 1 and facts.chance(6):
        target["layout"] = facts.one_of(*LAYOUTS)
    return target or ABSENT


def _probabilities(facts: Facts) -> Any:
    size = math.prod(facts.shape)
    if not 0 < size <= LITERAL or facts.chance(2):
        return facts.one_of("one-hot", "random")
    numbers = st.sampled_from((0, 1, 0.5, 0.25, 2))  # taken as they are, whatever they add up to
    return nested(facts.draw(st.lists(numbers, min_size=size, max_size=size)), facts.shape)


def _ignore(facts: Facts, usable: list[int]) -> Any:
    way = facts.one_of("all", "first", "last", "rows", "prefix", "suffix", "every", "fraction", "none")
    ignore: Any
    if way == "rows" and facts.count:
        rows = facts.draw(st.lists(st.integers(0, min(facts.count, 8) - 1), min_size=1, max_size=4, unique=True))
        ignore = {"rows": rows}
    elif way in ("prefix", "suffix", "every"):
        ignore = {way: facts.one_of(1, 2, 3)}
    elif way == "fraction":
        ignore = {way: facts.one_of(0.5, 0.25, 0.9)}
    else:
        ignore = "all" if way == "rows" else way
    if tuple(usable) != facts.ignore_values:  # otherwise the ignore values are used in turn
        rows = {"rows": ignore} if isinstance(ignore, str) else ignore
        ignore = {**rows, "value": usable if len(usable) > 1 else usable[0]}
    return ignore


def _weight(facts: Facts) -> Any:
    if not facts.can("weight") or not facts.chance(3):
        return ABSENT
    if facts.classes > 8 or facts.chance(3):
        return "random"
    numbers = st.sampled_from((1, 2, 0.5, 3, 0, 10, 1e-4, 1e4, -1, -2))
    return facts.draw(st.lists(numbers, min_size=facts.classes, max_size=facts.classes))


def _weight_layout(facts: Facts) -> Any:
    if "weight" not in facts.entry or not facts.can("non_contiguous") or not facts.chance(4):
        return ABSENT
    return facts.one_of("strided", "offset")


def _label_smoothing(facts: Facts) -> Any:
    if not facts.can("label_smoothing") or not facts.chance(3):
        return ABSENT
    return facts.one_of(0.5, 0.1, 1.0, 0.0, 0.9, 1e-6)


def _reduction(facts: Facts) -> Any:
    named = [n for n in ("mean", "sum", "none") if facts.can("reduction_option") and facts.can(f"reduction_{n}")]
    return facts.one_of(ABSENT, *named)


def _normalizer(facts: Facts) -> Any:
    if not facts.can("normalizer") or facts.entry.get("reduction", "mean") != "mean" or not facts.chance(4):
        return ABSENT
    return facts.one_of(3, 1, 2.5, 1000, {"tensor": 4})


def _mode(facts: Facts) -> Any:
    is_split = len(facts.shape) > 1 and facts.shape[0] > 2 and facts.entry.get("reduction") != "none"
    plain = ["no_grad", "inference_mode", "twice", "two_losses", "edited", "detached", "deterministic"]
    plain = [*plain, *["accumulated"] * is_split] if facts.can("backward") else []
    claimed = [m for m in ("double_backward", "func_grad", "autocast", "vmap") if facts.can(m)]
    # vmap calls the loss once per position, with a batch of one.
    if facts.entry.get("reduction") != "none" or len(facts.shape) == 1 or not facts.shape[0]:
        claimed = [m for m in claimed if m != "vmap"]
    return facts.one_of(*[ABSENT] * 12, *plain, *claimed)


def _upstream(facts: Facts) -> Any:
    if facts.entry.get("mode") in WITHOUT_UPSTREAM or not facts.chance(2):
        return ABSENT
    scalars = (2, -1, 0.5, 0, 100, -256, 1e-3)
    if facts.entry.get("reduction") != "none":
        return facts.one_of(*scalars)
    form = facts.one_of("scalar", "per-position", "values", "mapping")
    if form == "scalar":
        return facts.one_of(*scalars)
    if form == "values" and 0 < facts.count <= 6:
        numbers = st.sampled_from((1, *scalars))
        return nested(facts.draw(st.lists(numbers, min_size=facts.count, max_size=facts.count)), facts.positions)
    if form == "mapping":
        upstream: dict[str, Any] = {"per_position": True} if facts.chance(2) else {"scalar": facts.one_of(*scalars)}
        if facts.count and facts.chance(2):
            rows = st.integers(0, facts.count - 1)
            upstream["zero"] = facts.draw(st.lists(rows, min_size=1, max_size=2, unique=True))
        if facts.can("non_contiguous") and facts.count > 1:
            upstream["layout"] = facts.one_of(*LAYOUTS)
        return upstream
    return "per-position"


def _padded_to(facts: Facts) -> Any:
    is_plain = "mode" not in facts.entry and len(facts.shape) > 1 and not {"upstream", "normalizer"} & set(facts.entry)
    if not is_plain or not facts.usable or not facts.chance(5):
        return ABSENT
    return facts.shape[0] + facts.one_of(1, 2, 5, 100)


def _expect(facts: Facts) -> Any:
    if facts.entry.get("target", {}).get("dtype") == "int32":
        return {"convention": "int32_target"}
    return ABSENT


KEYS: dict[str, Callable[[Facts], Any]] = {
    "dtype": _dtype,
    "logits": _logits,
    "ignore_index": _ignore_index,
    "target": _target,
    "weight": _weight,
    "weight_layout": _weight_layout,
    "label_smoothing": _label_smoothing,
    "reduction": _reduction,
    "normalizer": _normalizer,
    "mode": _mode,
    "upstream": _upstream,
    "padded_to": _padded_to,
    "expect": _expect,
}
