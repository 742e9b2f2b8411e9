"""What a judgement consists of: facts, until ``describe`` puts them into words for whoever reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any, NamedTuple

from xentcheck.run.status import Status

Value = float | str | tuple[Any, ...]
NUMERIC = ("value", "nan", "inf", "nonzero")  # the kinds of fault that are a wrong number at an index


class Key(NamedTuple):
    """What a verdict is about; no two verdicts of a run have the same."""

    implementation: str
    case: str
    aspect: str


@dataclass(frozen=True)
class Fault:
    """What is wrong with an answer.

    kind: one of ``claims.FAULT_KINDS``. quantity: what was looked at, such as ``loss`` or ``gradient of linear_weight``. expected, found: the
    values at ``index``, shapes, dtypes, or words; several expected numbers are alternatives. index: the first place where a number is
    wrong, empty for a scalar. is_ignored: whether that is an ignored position. units, worst_units: the error there and the largest of all;
    None where it is not one of size. count, total: how many values are wrong, of how many. context: how the batch that was compared with was
    made, where a relation is broken.
    """

    kind: str
    quantity: str = ""
    expected: Value = ""
    found: Value = ""
    index: tuple[int, ...] = ()
    is_ignored: bool = False
    units: float | None = None
    worst_units: float | None = None
    allowed_units: float | None = None
    count: int | None = None
    total: int | None = None
    context: str = ""


@dataclass(frozen=True)
class Verdict:
    """The judgement of one aspect of one case.

    error_units: the largest error, of what passed as of what did not. fault: what is wrong, None where nothing is or nothing was asked.
    reason: why nothing was asked, or why a pass is unexpected. known_units: how large the fault may be by a known deviation, where it is
    larger. conventions: the answers that the implementation was seen to give.
    """

    implementation: str
    clause: str
    case: str
    aspect: str
    status: Status
    error_units: float | None = None
    fault: Fault | None = None
    reason: str = ""
    known_units: float | None = None
    dtype: str = ""
    conventions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "status", Status(self.status))

    @property
    def key(self) -> Key:
        return Key(self.implementation, self.case, self.aspect)

    @property
    def kind(self) -> str:
        """The kind of its fault; empty where it has none."""
        return self.fault.kind if self.fault else ""

    @property
    def message(self) -> str:
        return self.reason if self.fault is None else describe(self.fault, self.known_units)


def describe(fault: Fault, known_units: float | None = None) -> str:
    """A fault as a person reads it: what was expected, what was found, where, and by how much. known_units: how large it may be by a known
    deviation, where it is larger."""
    beyond = "" if known_units is None else f"; a deviation is known up to {counted(known_units, 'unit')}"
    before = f"{fault.context}: " if fault.context else ""
    return f"{before}expected {_expected(fault)}; found {_shown(fault.found)}{_where(fault)}{_size(fault)}{_extent(fault)}{beyond}"


def counted(number: float, unit: str) -> str:
    """``1 unit``, ``3.2 units``."""
    return f"{number:.3g} {unit}" + ("" if number == 1 else "s")


def _expected(fault: Fault) -> str:
    name, value = fault.quantity, fault.expected
    if not name:
        return _shown(value)
    if fault.kind in ("shape", "dtype"):
        return f"a {name} of {fault.kind} {_shown(value)}"
    if isinstance(value, str):
        return f"a {value} {name}" if value else f"a {name}"
    alternatives = value if isinstance(value, tuple) else (value,)
    return f"a {name} of {' or '.join(dict.fromkeys(map(_shown, alternatives)))}"


def _shown(value: Value) -> str:
    return value if isinstance(value, str) else repr(value)


def _where(fault: Fault) -> str:
    at = f" at {list(fault.index)}" if fault.index else ""
    return at + (", an ignored position" if fault.is_ignored else "")


def _size(fault: Fault) -> str:
    if fault.units is None or fault.allowed_units is None:
        return ""
    are = "is" if fault.allowed_units == 1 else "are"
    return f", off by {counted(fault.units, 'unit')} where {fault.allowed_units:g} {are} allowed"


def _extent(fault: Fault) -> str:
    if fault.count is None or fault.total is None or fault.total < 2:
        return ""
    are = "value is" if fault.count == 1 else "values are"
    worst = fault.worst_units if fault.count > 1 else None
    return f"; {fault.count} of {fault.total} {are} wrong" + (
        "" if worst is None else f", the worst by {counted(worst, 'unit')}"
    )


# --- as JSON


def to_json(verdict: Verdict) -> dict[str, Any]:
    """All fields that are not at their default, with NaN and infinities as words, which JSON has not."""
    fault = None if verdict.fault is None else _given(verdict.fault)
    plain = _given(replace(verdict, fault=None))
    return plain if fault is None else {**plain, "fault": fault}


def from_json(item: Mapping[str, Any]) -> Verdict:
    """The inverse. Raises TypeError or ValueError for what is not a verdict."""
    values = {name: _read(value) for name, value in item.items() if name not in ("fault", "conventions")}
    values |= {name: item[name] for name in ("fault", "conventions") if name in item}
    if "fault" in values:
        values["fault"] = Fault(**{name: _read(value) for name, value in values["fault"].items()})
    return Verdict(**values)


def _given(instance: Any) -> dict[str, Any]:
    values = {f: getattr(instance, f.name) for f in fields(instance)}
    return {f.name: _plain(value) for f, value in values.items() if not _is_default(value, f)}


def _is_default(value: Any, f: Field[Any]) -> bool:
    default = {} if f.default is MISSING else f.default
    return type(value) is type(default) and value == default


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return str(value) if isinstance(value, Status) else value


def _read(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_read(v) for v in value)
    if isinstance(value, dict):
        return float(value["float"])
    return value
