"""A ``Case`` is one question to an implementation: shapes, dtype, patterns, ignore values, options, what is expected.

The models below are the one definition of the case format; ``cases/schema.json`` is generated from them (``xentcheck schema``).
Reading files, merging defaults and expanding matrices is ``loader``'s work.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from xentcheck.spec import fields
from xentcheck.spec.aspects import ASPECTS, RELATIONS, Aspect, Relation  # noqa: F401
from xentcheck.spec.capabilities import CAPABILITIES
from xentcheck.spec.case_modes import MODES
from xentcheck.spec.mistakes import Unexpected

Mode = Literal[tuple(MODES)]  # type: ignore[valid-type]
Capability = Literal[tuple(CAPABILITIES)]  # type: ignore[valid-type]
LossWord = Literal["reference", "nan", "inf", "zero", "empty-mean", "finite", "unspecified"]
# The words that stand for one value everywhere.
FIXED_ANSWERS: dict[str, float] = {"nan": math.nan, "inf": math.inf, "zero": 0.0}

MAX_NUMBERS = 2**28  # of one tensor
MAX_NORMALIZER = 2**53
# The smallest and the largest number that a target of each integer type can hold.
_TARGET_LIMITS = {f"int{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)}
_TARGET_LIMITS |= {"uint8": (0, 255), "bool": (0, 1)}


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class _Choice(Model):
    """A model of which exactly one of some keys is given."""

    choices: ClassVar[tuple[str, ...]]

    @model_validator(mode="after")
    def _exactly_one(self) -> _Choice:
        given = [name for name in self.choices if getattr(self, name) is not None and getattr(self, name) is not False]
        if len(given) != 1:
            raise Unexpected(f"exactly one of {', '.join(self.choices)}", ", ".join(given) or "none of them")
        return self


class Pattern(Model):
    """Overwrites the logits at ``rows`` x ``classes`` with ``value``. Rows count the positions of the target, flattened."""

    rows: fields.Chosen | Literal["ignored", "valid", "all"] = "all"
    classes: fields.Chosen | Literal["target", "others", "all"] = "all"
    value: fields.Number


class Logits(_Choice):
    """The input. ``shape`` is torch's: (C,), (N, C) or (N, C, d1, ...). ``tiled`` repeats one block of normal numbers, for
    batches that would take long to draw."""

    choices = ("shape", "values", "file")
    shape: fields.Shape | None = None
    values: fields.Nested | None = None
    file: fields.Text | None = None
    dtype: Literal["int64"] | None = None  # integers, which must be refused; otherwise the logits have the case's dtype
    fill: Literal["normal", "uniform", "constant", "ramp", "tiled"] = "normal"
    scale: fields.Number = 1.0
    shift: fields.Number = 0.0
    set: Annotated[tuple[Pattern, ...], Field(max_length=100)] = ()
    layout: fields.Layout = "contiguous"


class Ignore(_Choice):
    """Which positions of the target are ignored, counted in the flattened target, and with which of the ignore values.

    With several values they are dealt out in turn.
    """

    choices = ("rows", "prefix", "suffix", "every", "fraction")
    rows: fields.Chosen | Literal["all", "none", "first", "last"] | None = None
    prefix: fields.Size | None = None
    suffix: fields.Size | None = None
    every: Annotated[fields.Size, Field(ge=1)] | None = None
    fraction: Annotated[fields.Number, Field(ge=0, le=1)] | None = None
    value: fields.Int | fields.Chosen | None = None


IgnoreWord = Literal["all", "none", "first", "last"]


def _ignore(value: Any) -> Any:
    return {"rows": value} if isinstance(value, str) else value


class Target(Model):
    """The class of each position: drawn from ``classes`` (default: all that are not ignored), literal, or from a file.

    ``probabilities`` makes it a probability for each class instead, in the case's dtype and the logits' shape: drawn, one-hot with
    drawn classes, or literal.
    """

    classes: fields.Chosen | None = None
    probabilities: Literal["random", "one-hot"] | fields.Nested | None = None
    values: fields.NestedClasses | None = None
    file: fields.Text | None = None
    shape: fields.Shape | None = None
    dtype: fields.TargetDtype = "int64"
    layout: fields.Layout = "contiguous"
    ignore: Annotated[Ignore, BeforeValidator(_ignore, json_schema_input_type=Ignore | IgnoreWord)] | None = None

    @model_validator(mode="after")
    def _literal_or_drawn(self) -> Target:
        given = self.model_fields_set
        if (self.values is not None or self.file is not None) and (self.classes is not None or self.ignore is not None):
            found = ", ".join(sorted(given & {"values", "file", "classes", "ignore"}))
            raise Unexpected("either values or file, which show what is ignored, or else classes and ignore", found)
        others = given & {"values", "file", "classes", "ignore", "shape", "dtype"}
        if self.probabilities is not None and others:
            raise Unexpected("probabilities alone, since no position of them is ignored", ", ".join(sorted(others)))
        if self.values is not None and self.file is not None:
            raise Unexpected("either values or file", "both")
        if self.values is not None and self.dtype in _TARGET_LIMITS:
            low, high = _TARGET_LIMITS[self.dtype]
            for number in fields.flat(self.values):
                if not low <= number <= high or number != int(number):
                    raise Unexpected(f"integers that {self.dtype} can hold", f"{number:g}", key="values")
        return self


class Upstream(_Choice):
    """The gradient from above, of the loss's shape: ones, one scalar everywhere, drawn per position, or literal."""

    choices = ("scalar", "per_position", "values")
    scalar: fields.Number | None = None
    per_position: fields.Flag = False
    values: fields.Nested | None = None
    zero: fields.Ints = ()
    layout: fields.Layout = "contiguous"


def _upstream(value: Any) -> Any:
    if value == "unit":
        return {"scalar": 1.0}
    if value == "per-position":
        return {"per_position": True}
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {"scalar": value}
    return {"values": value} if isinstance(value, (list, tuple)) else value


class ZeroDim(Model):
    """A number as a 0-d tensor: int64 for an integer, float32 for others."""

    tensor: Annotated[fields.Int | fields.Number, Field(union_mode="left_to_right")]


class HiddenPattern(Model):
    """Overwrites the hidden states at ``rows`` x ``features`` with ``value``."""

    rows: fields.Chosen | Literal["ignored", "valid", "all"] = "all"
    features: fields.Chosen | Literal["all"] = "all"
    value: fields.Number


class Linear(Model):
    """Asks for the loss of a linear layer's output: the input is hidden states (N, H), and the call gets a matrix (C, H) as well.

    N and C are those of ``logits.shape``, H is ``features``; hidden states and matrix are drawn so that the logits have the scale
    ``logits.scale``, or literal. ``bias``: drawn, or C literal numbers.
    """

    features: Annotated[fields.Size, Field(ge=1)] = 8
    hidden: fields.Nested | None = None
    matrix: fields.Nested | None = None
    bias: fields.Flag | fields.Numbers = False
    set: Annotated[tuple[HiddenPattern, ...], Field(max_length=100)] = ()
    layout: fields.Layout = "contiguous"
    matrix_layout: fields.Layout = "contiguous"


class ExpectedError(Model):
    """An exception, in the call or in the backward pass. Its type and text hold ``match``, or one of several texts with ``|`` between
    them; a dot stands for any character, and case does not count."""

    phase: Literal["call", "backward"] = "call"
    match: fields.Match | None = None


class Expect(Model):
    """The answer. ``reference`` is computed from the definition (module ``reference``).

    ``zero``: exactly zero everywhere. ``empty-mean``: the mean over no position, NaN or zero by convention. ``finite``: any finite
    value. ``unspecified``: recorded, not judged. ``error``: the call must raise. ``refused_unless_claimed``: an implementation that
    does not claim an option used here must raise; one that claims it gives the answer. ``convention``: a convention under which
    the call may also be refused.
    """

    loss: LossWord | fields.Nested = "reference"
    gradient: LossWord | fields.Nested = "reference"
    error: ExpectedError | None = None
    refused_unless_claimed: fields.Flag = False
    convention: Literal["int32_target"] | None = None

    @model_validator(mode="after")
    def _an_answer_or_an_error(self) -> Expect:
        given = self.model_fields_set
        if self.error is not None and given != {"error"}:
            raise Unexpected("error alone, since a call that raises gives no answer", ", ".join(sorted(given)))
        return self


class Question(Model):
    """All that a case asks, apart from its name. Options that are left out are not passed to the implementation.

    ``padded_to``: ignored samples are spread among those of the batch, up to this number; the answer is that of the batch alone.
    """

    dtype: fields.Dtype = "float32"
    logits: Logits
    target: Target = Target()
    ignore_index: fields.Int | fields.Ints | None = None
    weight: fields.Numbers | Literal["random"] | None = None
    weight_layout: fields.Layout = "contiguous"
    label_smoothing: fields.Number | None = None
    reduction: fields.Text | None = None
    normalizer: Annotated[fields.Int | fields.Number | ZeroDim | None, Field(union_mode="left_to_right")] = None
    padded_to: Annotated[fields.Size, Field(ge=1)] | None = None
    upstream: Annotated[
        Upstream,
        BeforeValidator(_upstream, json_schema_input_type=Upstream | Literal["unit", "per-position"] | fields.Nested),
    ] = Upstream(scalar=1.0)
    mode: Mode = "eager"  # type: ignore[valid-type]
    linear: Linear | None = None
    needs: tuple[Capability, ...] = ()  # type: ignore[valid-type]
    memory_limit: fields.Bytes | None = (
        None  # of a call and its backward pass, beside the input, where cost is measured
    )
    expect: Expect = Expect()

    @model_validator(mode="after")
    def _consistent(self) -> Question:
        if self.expect.error is None:
            self._check_options()
        self._check_mode()
        if self.linear is not None:
            self._check_linear(self.linear)
        return self

    def _check_options(self) -> None:
        """What is out of range may be asked only where an error is expected."""
        if self.reduction not in (None, "mean", "sum", "none"):
            raise Unexpected("mean, sum or none, or expect.error", repr(self.reduction), key="reduction")
        if not 0 <= (self.label_smoothing or 0) <= 1:
            raise Unexpected("a number in [0, 1], or expect.error", f"{self.label_smoothing}", key="label_smoothing")
        if self.normalizer is not None and self.reduction not in (None, "mean"):
            found = f"reduction: {self.reduction}"
            raise Unexpected("reduction: mean, whose denominator it is", found, key="normalizer")
        number = self.normalizer.tensor if isinstance(self.normalizer, ZeroDim) else self.normalizer
        if number is not None and not abs(number) <= MAX_NORMALIZER:
            raise Unexpected("a number up to 2 ** 53, or expect.error", f"{number:g}", key="normalizer")

    def _check_mode(self) -> None:
        if self.target.ignore is not None and self.target.ignore.rows != "none" and not self.ignore_values:
            raise Unexpected("an ignore value", "an empty list as ignore_index", key="target.ignore")
        if self.mode == "vmap" and (self.reduction != "none" or self.upstream != Upstream(scalar=1.0)):
            expected = "reduction: none and no upstream with vmap, which calls the loss once per position"
            found = "an upstream" if self.reduction == "none" else f"reduction: {self.reduction or 'mean'}"
            raise Unexpected(expected, found, key="mode")
        if self.mode == "accumulated" and self.reduction == "none":
            expected = "reduction: mean or sum with accumulated, which adds up the losses of micro-batches"
            raise Unexpected(expected, "reduction: none", key="mode")
        if self.padded_to is not None and (self.mode != "eager" or self.expect.error is not None):
            found = f"mode: {self.mode}" if self.mode != "eager" else "expect.error"
            raise Unexpected("mode: eager and an answer beside it", found, key="padded_to")

    def _check_linear(self, linear: Linear) -> None:
        given = self.logits.model_dump(exclude_defaults=True).keys()
        if given - {"shape", "scale"} or len(self.logits.shape or ()) != 2:
            found = f"logits with {', '.join(given)}" if given - {"shape", "scale"} else f"{self.logits.shape}"
            raise Unexpected("logits with a shape (N, C), and a scale at most", found, key="linear")
        if not MODES[self.mode].takes_linear:
            wanted = ", ".join(name for name, mode in MODES.items() if mode.takes_linear)
            raise Unexpected(f"one of the modes {wanted}", f"mode: {self.mode}", key="linear")
        (samples, classes), features = self.logits.shape or (0, 0), linear.features
        shapes = {"hidden": (samples, features), "matrix": (classes, features), "bias": (classes,)}
        for name, shape in shapes.items():
            literal = getattr(linear, name)
            if literal is not None and not isinstance(literal, bool) and fields.shape_of(literal) != shape:
                raise Unexpected(f"the shape {shape}", f"{fields.shape_of(literal)}", key=f"linear.{name}")

    @property
    def sizes(self) -> dict[str, int]:
        """How many numbers a tensor will hold, by the key that sets it."""
        shape, target = self.logits.shape or (), self.target.shape or ()
        features = self.linear.features * max(shape, default=0) if self.linear is not None else 0
        return {"logits.shape": math.prod(shape), "target.shape": math.prod(target), "linear.features": features}

    @property
    def ignore_values(self) -> tuple[int, ...]:
        """The values whose positions are ignored; -100 where the option is left out, as in torch."""
        value = -100 if self.ignore_index is None else self.ignore_index
        return (value,) if isinstance(value, int) else value


class Named(Model):
    """The name of a case in a file, why it is there, and the wrong losses that it catches."""

    id: fields.Name
    why: fields.Text | None = None
    kills: Annotated[fields.Texts, Field(max_length=100)] = ()


class Defaults(Question):
    logits: Logits | None = None  # type: ignore[assignment]
    matrix: dict[str, Any] = {}


class Entry(Defaults, Named):
    """A case as written in a file, with a matrix of the values that it is asked with."""


class Clause(Model):
    """One sentence that an implementation can break, and where it comes from."""

    clause: fields.Name
    title: fields.Text
    requirement: fields.Text
    sources: Annotated[fields.Texts, Field(min_length=1)]
    profile: fields.Name | None = None  # of a speed case: the name that --profile takes


class CaseFile(Clause):
    """A whole file, for the JSON schema that editors use."""

    model_config = ConfigDict(title="xentcheck case file")
    defaults: Defaults = Field(default=None)  # type: ignore[assignment]
    cases: Annotated[tuple[Entry, ...], Field(min_length=1)]


class Case(Model):
    """One expanded case. ``id`` is permanent: ``clause/name[label-label]``."""

    id: str
    clause: Clause
    question: Question
    why: str | None = None
    kills: tuple[str, ...] = ()
    path: Path
    line: int

    @property
    def folder(self) -> Path:
        """Where the files that the case names are looked for."""
        return self.path.parent

    @property
    def expects_error(self) -> bool:
        return self.question.expect.error is not None

    @property
    def has_gradient(self) -> bool:
        return not self.expects_error and MODES[self.question.mode].has_gradient

    @property
    def is_huge(self) -> bool:
        """More than 2^31 logits: beyond what 32-bit indices reach, and many gigabytes."""
        samples, *rest = self.question.logits.shape or (0,)
        return (self.question.padded_to or samples) * math.prod(rest) > 2**31

    @property
    def aspects(self) -> tuple[Aspect, ...]:
        """The sides from which the answer to this case is judged."""
        if self.expects_error:
            return ("rejection", "purity")
        value: tuple[Aspect, ...] = ("loss", "gradient", "shape") if self.has_gradient else ("loss", "shape")
        rejection: tuple[Aspect, ...] = ("rejection",) if self.question.expect.refused_unless_claimed else ()
        return (*value, *rejection, "purity")
