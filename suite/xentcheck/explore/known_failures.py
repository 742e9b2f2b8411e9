"""Where a fault shows: the features of the batches it needs, so that a failure can be told from those that are known.

A failure is known where a known situation has the same aspect and kind of fault, only features that the failing batch has as well, and an
error no smaller. Known are the shipped cases that deviate, each without all that can be taken from it while it still does. So a new
fault hides behind a known one only in batches that hold the features of both, and in a smaller batch it stands alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from xentcheck.implementation import Implementation
from xentcheck.run.examiner import Examiner
from xentcheck.run.status import Status
from xentcheck.run.verdict import Fault, Verdict
from xentcheck.spec.batch import Batch, build
from xentcheck.spec.case import RELATIONS, Case

LARGE = 50_000  # cases with more logits are known as they stand: taking things from them would take long
SPELLED_OUT = 24  # so many logits and no more are written as numbers
# What a document may do without; a dot leads into a mapping.
OPTIONAL = (
    *("mode", "upstream", "upstream.layout", "upstream.zero", "target.layout", "logits.layout", "logits.set"),
    *("logits.fill", "logits.shift", "logits.scale", "target.dtype", "weight", "label_smoothing", "reduction"),
    *("target.ignore", "ignore_index", "target.classes", "target", "dtype"),
)
Entry = dict[str, Any]


@dataclass(frozen=True)
class Situation:
    """max_units: None where the size of the error does not matter. name: what it was learned from."""

    aspect: str
    fault: str
    features: frozenset[str]
    max_units: float | None
    name: str

    def explains(self, verdict: Verdict, seen: frozenset[str]) -> bool:
        units = np.inf if verdict.error_units is None else verdict.error_units
        return kind(verdict) == (self.aspect, self.fault) and self.features <= seen and units <= _limit(self)


def explanation(known: Iterable[Situation], verdict: Verdict, seen: frozenset[str]) -> str | None:
    """The name of the known situation that explains a failure in a batch with these features, if one does."""
    here = [s for s in known if s.aspect == verdict.aspect and s.features <= seen]
    same = [s for s in here if s.fault == kind(verdict)[1]]
    # Where two known faults meet, such as rounding and NaN, the size of the one is lost in the infinity of the other.
    two = verdict.error_units is None and len({s.fault for s in here}) > 1
    return next((s.name for s in same if two or s.explains(verdict, seen)), None)


def first_new(known: Iterable[Situation], wrong: Iterable[Verdict], seen: frozenset[str]) -> tuple[Verdict | None, str]:
    """The first failure in a batch with these features that nothing known explains, and the name of what explains those before it.

    Relations compare the answer with another one: where it is wrong in a known way itself, they are broken for that reason.
    """
    known, explained = list(known), ""
    for verdict in wrong:
        if explained and verdict.aspect in RELATIONS and verdict.kind != "harness":
            continue
        by = explanation(known, verdict, seen)
        if by is None:
            return verdict, explained
        explained = explained or by
    return None, explained


def kind(verdict: Verdict) -> tuple[str, str]:
    """A failure's aspect and fault."""
    return verdict.aspect, verdict.kind or verdict.status


def failures(case: Case, implementation: Implementation, examiner: Examiner) -> list[Verdict]:
    """What is wrong with the answer, whatever is declared: a pattern of a deviation that matches a drawn id was not meant to. Where
    the suite itself fails, that is a failure as well, of the fault ``harness``. Raises CaseFileError where no batch can be made."""
    examiner.batch(case)
    bare = replace(implementation, deviations=())
    found = []
    for aspect in examiner.aspects(case, bare):
        try:
            found.append(examiner.examine(case, aspect, bare))
        except Exception as error:
            message = f"a failure of the suite itself: {type(error).__name__}: {error}"
            found.append(
                Verdict(
                    implementation.name,
                    case.clause.clause,
                    case.id,
                    aspect,
                    Status.ERROR,
                    fault=Fault("harness", expected="a verdict", found=message),
                )
            )
    return [v for v in found if not v.status.is_good]


def features(case: Case, batch: Batch) -> frozenset[str]:
    """What is special about a batch, in words. A float32 mean over finite logits with nothing ignored has none."""
    question, options = case.question, batch.options
    weight, smoothing = options.get("weight"), options.get("label_smoothing")
    found = {
        question.dtype: question.dtype != "float32",
        f"mode {question.mode}": question.mode != "eager",
        f"reduction {question.reduction}": question.reduction in ("sum", "none"),
        "an unknown reduction": question.reduction not in (None, "mean", "sum", "none"),
        f"{question.target.dtype} targets": question.target.dtype != "int64",
        "upstream": batch.upstream is not None and not bool((batch.upstream == 1).all()),
        "layout of upstream": question.upstream.layout != "contiguous",
        "layout of logits": question.logits.layout != "contiguous",
        "layout of targets": question.target.layout != "contiguous",
        "unbatched": batch.input.dim() == 1,
        "more than two dimensions": batch.input.dim() > 2,
        "many classes": batch.classes > 256,
        "many positions": batch.target.numel() > 1000,
        "no position": batch.target.numel() == 0,
        "a refusal is asked for": case.expects_error or question.expect.refused_unless_claimed,
        "weights": weight is not None,
        "a weight of 0": weight is not None and bool((weight == 0).any()),
        "a negative weight": weight is not None and bool((weight < 0).any()),
        "smoothing": bool(smoothing),
        "smoothing 1": smoothing == 1,
        "smoothing outside [0, 1]": smoothing is not None and not 0 <= smoothing <= 1,
        "several ignore values": isinstance(options.get("ignore_index"), list),
        "an ignored class": any(0 <= v < batch.classes for v in batch.ignore_values),
    }
    shape = batch.input.shape
    found["class probabilities"] = batch.has_probabilities
    found["a normalizer"] = "normalizer" in options
    if batch.target.shape == (shape[:1] + shape[2:] if len(shape) > 1 else ()):
        found |= _features_of_rows(batch)
    elif not batch.has_probabilities:
        found["shapes that do not fit"] = True
    found["shapes that do not fit"] = "shapes that do not fit" in found or (
        weight is not None and weight.shape != (batch.classes,)
    )
    return frozenset(name for name, holds in found.items() if holds)


def _features_of_rows(batch: Batch) -> dict[str, bool]:
    target = batch.target.numpy().reshape(-1)
    rows = batch.input.double().movedim(min(1, batch.input.dim() - 1), -1).reshape(target.size, batch.classes).numpy()
    ignored = np.isin(target, batch.ignore_values)
    undefined = np.isnan(rows).any(axis=1) | np.isposinf(rows).any(axis=1) | ~np.isfinite(rows).any(axis=1)
    minus, of_target = np.isneginf(rows), np.arange(batch.classes) == target[:, None]
    return {
        "an ignored position": bool(ignored.any()),
        "a target out of range": bool((~ignored & ((target < 0) | (target >= batch.classes))).any()),
        "every position ignored": bool(ignored.all()) and bool(target.size),
        "an ignored row without a softmax": bool((ignored & undefined).any()),
        "a valid row without a softmax": bool((~ignored & undefined).any()),
        "a target at -inf": bool((minus & of_target)[~ignored].any()),
        "another class at -inf": bool((minus & ~of_target)[~ignored].any()),
        "logits beyond 1e9": bool((np.isfinite(rows) & (abs(rows) > 1e9)).any()),
    }


def of_deviations(implementation: Implementation, specification: Iterable[Case]) -> list[Situation]:
    """The situations in which an implementation is known to fail, from the shipped cases that do deviate here."""
    known, examiner = [], Examiner()
    for case in specification:
        aspects = () if case.question.mode == "compile" or case.is_huge else examiner.aspects(case, implementation)
        for aspect in aspects:
            deviation = implementation.deviation_for(case.id, aspect)
            if deviation is not None and examiner.examine(case, aspect, implementation).status == "deviates":
                core = _core(case, (aspect, deviation.fault), implementation)
                known.append(
                    Situation(aspect, deviation.fault, features(core, build(core)), deviation.max_units, case.id)
                )
    return _widest(known)


def _widest(known: list[Situation]) -> list[Situation]:
    """Without those that another one covers."""
    kept: list[Situation] = []
    for one in sorted(known, key=lambda s: (len(s.features), -_limit(s))):
        if not any(
            (s.aspect, s.fault) == (one.aspect, one.fault) and s.features <= one.features and _limit(s) >= _limit(one)
            for s in kept
        ):
            kept.append(one)
    return kept


def _limit(situation: Situation) -> float:
    return np.inf if situation.max_units is None else situation.max_units


def _core(case: Case, wanted: tuple[str, str], implementation: Implementation) -> Case:
    """A shipped case without all that it can do without and still fail like this. Its id stays, and with it the values drawn from it."""
    if case.expects_error or build(case).input.numel() > LARGE:
        return case  # what is to be refused must stay what it is
    taken: list[Callable[[Entry], Entry | None]] = [_with_fewer_positions]
    taken += [partial(without, key=key) for key in OPTIONAL]
    for take in taken:
        entry = take(case.question.model_dump(exclude_unset=True))
        if entry is None:
            continue
        try:
            smaller = case.model_copy(update={"question": type(case.question).model_validate(entry)})
            if any(kind(v) == wanted for v in failures(smaller, implementation, Examiner())):
                case = smaller
        except ValueError:  # what is left is no question, or no batch can be made of it
            continue
    return case


def _with_fewer_positions(entry: Entry) -> Entry | None:
    shape = list(entry["logits"].get("shape") or ())
    if len(shape) < 2 or shape[0] < 1000:
        return None
    return {**entry, "logits": {**entry["logits"], "shape": [500, *shape[1:]]}}


def without(entry: Entry, key: str) -> Entry | None:
    """The document without a key, or None where it does not have it."""
    first, _, rest = key.partition(".")
    if first not in entry or (rest and not (isinstance(entry[first], dict) and rest in entry[first])):
        return None
    if rest and len(entry[first]) > 1:
        return {**entry, first: {k: v for k, v in entry[first].items() if k != rest}}
    return {k: v for k, v in entry.items() if k != first}


def simplified(entry: Entry, still_fails: Callable[[Entry], Batch | None]) -> Entry:
    """What Hypothesis leaves, with less: no key that is not needed, numbers instead of fills, and plain ones.

    still_fails: the batch of a document that fails as before, or None.
    """
    if {"error", "convention"} & set(entry.get("expect", {})):
        return entry  # what is expected would stay when its cause is gone
    entry = _in_a_smaller_shape(_without_needless_keys(entry, still_fails), still_fails)
    batch = still_fails(entry)
    if batch is None or not 0 < batch.input.numel() <= 8 * SPELLED_OUT:
        return entry
    for digits in (1, 2, 3, 4, 6, 9, 17):
        written = _spelled_out(entry, batch, digits)
        if still_fails(written) is not None:
            written = _without_needless_keys(written, still_fails)  # once more: now the numbers stay as they are
            written = _smaller(written, still_fails)
            is_readable = len(list(_flat(written["logits"]["values"]))) <= SPELLED_OUT
            return _plainer(written, still_fails) if is_readable else entry
    return entry


def _without_needless_keys(entry: Entry, still_fails: Callable[[Entry], Batch | None]) -> Entry:
    for key in OPTIONAL:
        smaller = without(entry, key)
        if smaller is not None and still_fails(smaller) is not None:
            entry = smaller
    return entry


def _in_a_smaller_shape(entry: Entry, still_fails: Callable[[Entry], Batch | None]) -> Entry:
    for axis, size in enumerate(entry["logits"].get("shape", ())):
        for less in (1, 2, 3, 4, 5, 8, 17):
            shape = [less if i == axis else n for i, n in enumerate(entry["logits"]["shape"])]
            smaller = {**entry, "logits": {**entry["logits"], "shape": shape}}
            if less < size and still_fails(smaller) is not None:
                entry = smaller
                break
    return entry


def _spelled_out(entry: Entry, batch: Batch, digits: int) -> Entry:
    """The same batch in numbers of so many digits, so that it no longer depends on the case's id."""
    kept = {k: v for k, v in entry.get("logits", {}).items() if k == "layout"}
    entry = {**entry, "logits": {"values": _numbers(batch.input, digits), **kept}}
    kept = {k: v for k, v in entry.get("target", {}).items() if k in ("layout", "dtype")}
    if batch.target.numel() == batch.input.numel() // max(batch.classes, 1):
        entry["target"] = {"values": batch.target.tolist(), **kept}
    if entry.get("weight") == "random":
        entry["weight"] = _numbers(batch.options["weight"], digits)
    if batch.upstream is not None and batch.upstream.dim() and entry.get("upstream") == "per-position":
        entry["upstream"] = _numbers(batch.upstream, digits)
    return entry


def _smaller(entry: Entry, still_fails: Callable[[Entry], Batch | None]) -> Entry:
    """Without the positions and classes of (N, C) logits that are not needed."""
    rows, target = entry["logits"]["values"], entry.get("target", {}).get("values")
    if not (isinstance(rows[0], list) and isinstance(target, list)) or isinstance(rows[0][0], list):
        return entry
    for n in reversed(range(len(rows))):
        shorter = _cut(entry, ("logits", "target"), n)
        if isinstance(entry.get("upstream"), list):
            shorter["upstream"] = [*entry["upstream"][:n], *entry["upstream"][n + 1 :]]
        entry = shorter if len(shorter["target"]["values"]) and still_fails(shorter) is not None else entry
    for n in range(len(entry["target"]["values"])):
        target = [0 if i == n else t for i, t in enumerate(entry["target"]["values"])]
        other = {**entry, "target": {**entry["target"], "values": target}}
        entry = other if other != entry and still_fails(other) is not None else entry
    for c in reversed(range(len(rows[0]))):
        target = entry["target"]["values"]
        narrower = {
            **entry,
            "logits": {**entry["logits"], "values": [[*r[:c], *r[c + 1 :]] for r in entry["logits"]["values"]]},
        }
        narrower["target"] = {**entry["target"], "values": [t - (c < t < len(rows[0])) for t in target]}
        if isinstance(entry.get("ignore_index"), int):
            narrower["ignore_index"] = entry["ignore_index"] - (c < entry["ignore_index"] < len(rows[0]))
        if isinstance(entry.get("weight"), list):
            narrower["weight"] = [*entry["weight"][:c], *entry["weight"][c + 1 :]]
        entry = narrower if c not in target and still_fails(narrower) is not None else entry
    return entry


def _cut(entry: Entry, keys: tuple[str, ...], n: int) -> Entry:
    return {
        **entry,
        **{k: {**entry[k], "values": [*entry[k]["values"][:n], *entry[k]["values"][n + 1 :]]} for k in keys},
    }


def _plainer(entry: Entry, still_fails: Callable[[Entry], Batch | None]) -> Entry:
    """Each number of the logits in turn replaced by a plainer one."""
    for index, value in enumerate(_flat(entry["logits"]["values"])):
        for plain in (0, 1, round(value) if isinstance(value, float) else 0):
            smaller = {
                **entry,
                "logits": {**entry["logits"], "values": _replaced(entry["logits"]["values"], index, plain)},
            }
            if plain == value:
                break
            if still_fails(smaller) is not None:
                entry = smaller
                break
    return entry


def _numbers(tensor: torch.Tensor, digits: int) -> Any:
    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(v) for v in value]
        if not np.isfinite(value):
            return str(value)
        short = float(f"{value:.{digits}g}")
        return int(short) if short == int(short) and abs(short) < 1e6 else short

    return plain(tensor.double().tolist())


def _flat(values: Any) -> Iterator[Any]:
    if isinstance(values, list):
        for value in values:
            yield from _flat(value)
    else:
        yield values


def _replaced(values: Any, index: int, plain: Any) -> Any:
    flat = list(_flat(values))
    flat[index] = plain
    new = iter(flat)

    def rebuilt(part: Any) -> Any:
        return [rebuilt(p) for p in part] if isinstance(part, list) else next(new)

    return rebuilt(values)
