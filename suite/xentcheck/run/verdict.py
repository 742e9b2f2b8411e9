"""Verdicts and faults as facts; ``describe`` puts them into words when they are shown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, NamedTuple

from xentcheck.run.status import Status
from xentcheck.spec.capabilities import CONVENTIONS, GRADES
from xentcheck.spec.mistakes import one_line

Value = float | str | tuple[Any, ...]
MAX_TEXT = 2000  # characters of a text that an implementation may have written, such as the message of an exception


class Key(NamedTuple):
    """Identifies a verdict within a run."""

    implementation: str
    case: str
    aspect: str


@dataclass(frozen=True)
class Fault:
    """What is wrong with an answer.

    kind: one of ``spec.capabilities.FAULT_KINDS``. quantity: what was compared, such as ``loss`` or ``gradient of linear_weight``. expected,
    found: the values at ``index``, shapes, dtypes, or words; several expected numbers are alternatives. index: the first place where a
    number is wrong, empty for a scalar. is_ignored: whether that is an ignored position. units, worst_units: the error there and the
    largest of all; None where it is infinite. count, total: how many values are wrong, of how many. context: how the other batch was made,
    where a relation does not hold.
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

    def __post_init__(self) -> None:
        for name in ("expected", "found", "context"):
            object.__setattr__(self, name, _harmless(getattr(self, name)))


@dataclass(frozen=True)
class Verdict:
    """The judgement of one aspect of one case.

    error_units: the largest error, whether it passed or not, in the units of the best grades of accuracy. fault: what is wrong; None where nothing is, or nothing was tested. reason: why
    nothing was tested, or why a pass is unexpected. known_units: the largest error that a known deviation covers, where the fault is
    larger. conventions: the answers that the implementation gave. same_as: the implementation that is known to do exactly the same. by_adapter:
    whether the answer is an adapter's and not its library's.
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
    same_as: str = ""
    by_adapter: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "status", Status(self.status))
        object.__setattr__(self, "reason", _harmless(self.reason))

    @property
    def key(self) -> Key:
        return Key(self.implementation, self.case, self.aspect)

    @property
    def kind(self) -> str:
        """The kind of its fault; empty where it has none."""
        return self.fault.kind if self.fault else ""

    @property
    def lower_grades(self) -> tuple[str, ...]:
        """The grades of accuracy, such as ``sums``, of which it reached less than the best."""
        return tuple(g for g in GRADES if self.conventions.get(g, CONVENTIONS[g][1][0]) != CONVENTIONS[g][1][0])

    @property
    def message(self) -> str:
        if self.fault is None:
            return self.reason
        same = f"; {self.same_as} does the same" if self.same_as else ""
        return describe(self.fault, self.known_units) + same


def is_same(one: Fault, other: Fault) -> bool:
    """Whether two answers are wrong in the same places by the same numbers, but for rounding."""
    return (
        (one.kind, one.quantity, one.index, one.count, one.total)
        == (other.kind, other.quantity, other.index, other.count, other.total)
        and _is_near(one.found, other.found)
        and _is_near(one.worst_units or 0.0, other.worst_units or 0.0)
    )


def _is_near(one: Value, other: Value) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (one != one and other != other) or math.isclose(one, other, rel_tol=1e-3)
    return one == other


def _harmless(value: Any) -> Any:
    """A text cut to ``MAX_TEXT`` characters, with escapes in place of control characters other than line breaks."""
    if isinstance(value, tuple):
        return tuple(_harmless(one) for one in value)
    if not isinstance(value, str):
        return value
    cut = value if len(value) <= MAX_TEXT else value[: MAX_TEXT - 3] + "..."
    lines = "\n".join(one_line(line, MAX_TEXT) for line in cut.split("\n"))
    return lines if len(lines) <= MAX_TEXT else lines[: MAX_TEXT - 3] + "..."


def describe(fault: Fault, known_units: float | None = None) -> str:
    """A fault in words: what was expected, what was found, where, and by how much. known_units: see ``Verdict``."""
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


# --- JSON


def to_json(verdict: Verdict) -> dict[str, Any]:
    """All fields that are not at their default, with NaN and infinities in a form that JSON has."""
    return _fields_given(verdict)


def from_json(item: Mapping[str, Any]) -> Verdict:
    """The inverse. Raises TypeError or ValueError for what is not a verdict."""
    values = {name: value if name in ("fault", "conventions") else _read(value) for name, value in item.items()}
    if "fault" in values:
        values["fault"] = Fault(**{name: _read(value) for name, value in values["fault"].items()})
    return Verdict(**values)


def _fields_given(instance: Any) -> dict[str, Any]:
    given = {}
    for field_ in fields(instance):
        value, default = getattr(instance, field_.name), {} if field_.default is MISSING else field_.default
        if type(value) is not type(default) or value != default:
            given[field_.name] = _plain(value)
    return given


def _plain(value: Any) -> Any:
    if isinstance(value, Fault):
        return _fields_given(value)
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
