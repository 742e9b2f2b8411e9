"""Exploration: an implementation is tested on case documents drawn at random; a new kind of failure is shrunk and stored as a case file."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import hypothesis
import yaml
from hypothesis import HealthCheck, Phase, Verbosity

from xentcheck.explore.known_failures import Situation, failures, features, first_new, kind
from xentcheck.explore.minimise import Entry, minimised
from xentcheck.explore.strategies import documents, unclear
from xentcheck.implementation import Implementation
from xentcheck.run.examiner import Examiner
from xentcheck.run.verdict import Verdict
from xentcheck.spec import loader
from xentcheck.spec.batch import Batch
from xentcheck.spec.case import Case
from xentcheck.spec.fields import MAX_TEXT
from xentcheck.spec.mistakes import CaseFileError, one_line
from xentcheck.spec.yaml_document import Document

HEADER = {
    "clause": "found",
    "title": "Found by exploration",
    "requirement": "Loss and gradient are those of the definition, and what has none is refused.",
    "sources": ["https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html"],
}

# Documents of one run of Hypothesis. After ten, it makes five variations of each, with parts of a document copied to other places.
# That finds what depends on equal parts, but then only every sixth document is a new one.
AT_ONCE = 10


@dataclass(frozen=True)
class Find:
    """A failing case: its document, and its first verdict that is not known. after: how many cases were drawn before it."""

    entry: Entry
    case: Case
    verdict: Verdict
    features: frozenset[str]
    after: int = 0


@dataclass
class Exploration:
    """What one exploration gave. known: failures by the name of what explains them. problem: why it ended early."""

    implementation: str
    seed: int
    examples: int = 0
    unsupported: int = 0
    unclear: int = 0
    known: Counter[str] = field(default_factory=Counter)
    finds: list[Find] = field(default_factory=list)
    seconds: float = 0.0
    problem: str = ""

    def summary(self) -> str:
        counts = f"cases drawn: {self.examples}, of these unsupported: {self.unsupported}; without a clear answer: {self.unclear} more"
        outcome = f"new kinds of failure: {len(self.finds)}; failures of known kinds: {self.known.total()}"
        return f"{self.implementation}: {counts}; {outcome}; seed {self.seed}, {self.seconds:.1f} s{self.problem and '; '}{self.problem}"


def explore(
    implementation: Implementation,
    examples: int,
    seed: int,
    known: Iterable[Situation],
    folder: Path,
    progress: Callable[[Exploration], None] = lambda _: None,
) -> Exploration:
    """Draws so many cases; the same seed draws the same ones.

    known: see ``of_deviations``; what is stored in ``folder`` and still fails is known as well. Every find is in ``folder`` before it is
    shrunk, and stays there if the run is interrupted. Raises OSError where nothing can be written there.
    """
    search = _Search(implementation, folder, seed, progress)
    search.known += known
    for path in stored(implementation, folder):
        with suppress(CaseFileError):  # its replay reports that the file is no longer valid
            search.learn(loader.load(path)[0])
    return search.run(examples)


@dataclass(frozen=True)
class Replay:
    """What became of a stored find. status: fixed (it passes), known (a deviation explains it now), failing, or gone (no longer a valid case)."""

    status: str
    message: str = ""
    case: Case | None = None
    verdict: Verdict | None = None


def replay(path: Path, implementation: Implementation, known: Iterable[Situation]) -> Replay:
    """Tests the implementation on a stored find again."""
    try:
        case = loader.load(path)[0]
        examiner = Examiner()
        wrong = failures(case, implementation, examiner)
    except CaseFileError as error:
        return Replay("gone", f"no longer a valid case: {error}")
    if not wrong:
        return Replay("fixed", f"passes now; move the case to cases/ or delete {path}", case)
    seen = features(case, examiner.batch(case))
    new, _ = first_new(known, wrong, seen)
    return Replay("failing", new.message, case, new) if new else Replay("known", wrong[0].message, case, wrong[0])


# --- cases and files


def stored(implementation: Implementation, folder: Path) -> list[Path]:
    """The files of what was found in an implementation, by name."""
    name = re.compile(rf"{_slug(implementation)}-[0-9a-f]{{8}}\.yaml")
    return sorted(path for path in folder.glob("*.yaml") if name.fullmatch(path.name))


def as_yaml(entry: Entry) -> str:
    """An entry as it stands under ``cases:``."""
    text = yaml.safe_dump([entry], sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    return "".join(f"  {line}\n" for line in text.splitlines())


def to_case(entry: Entry, implementation: Implementation, path: Path) -> Case:
    """A drawn document as a case, through the code that reads case files. Its id is a digest of its content, so that the values drawn
    from the id are always the same. Raises CaseFileError."""
    question = {key: value for key, value in entry.items() if key not in ("id", "why")}
    digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:8]
    named = {**entry, "id": f"{_slug(implementation)}-{digest}"}
    return loader.expanded(Document({**HEADER, "cases": [named]}, {("cases", 0): 1}), path)[0]


def _slug(implementation: Implementation) -> str:
    return re.sub(r"[^a-z0-9]+", "-", implementation.name.lower()).strip("-") or "unnamed"


def _store(find: Find, implementation: Implementation, folder: Path) -> Find:
    name = find.case.id.partition("/")[2]
    aspect, fault = kind(find.verdict)
    name_and_version = f"{implementation.name} {implementation.version}".strip()
    why = one_line(f"{name_and_version}, {aspect}, {fault}: {find.verdict.message}", MAX_TEXT)
    entry = as_yaml({"id": name, "why": why, **find.entry})
    folder.mkdir(parents=True, exist_ok=True)
    path, temporary = folder / f"{name}.yaml", folder / f"{name}.tmp"
    temporary.write_text(f"{yaml.safe_dump(HEADER, sort_keys=False, width=120)}cases:\n{entry}", encoding="utf-8")
    temporary.replace(path)
    return replace(find, case=loader.load(path)[0])


# --- the search


class _Failed(Exception):
    """Tells Hypothesis that an example failed; the search itself remembers which."""


class _Search:
    """Runs Hypothesis in rounds. Each ends with the first failure that is not known, shrunk; the next draws the examples that are left,
    with that failure among the known ones."""

    def __init__(
        self, implementation: Implementation, folder: Path, seed: int, progress: Callable[[Exploration], None]
    ) -> None:
        self.implementation, self.folder, self.progress = implementation, folder, progress
        self.result = Exploration(implementation.name, seed)
        self.known: list[Situation] = []
        self.examiner = Examiner()
        self.asked: set[str] = set()  # ids of cases, which are digests of their content
        self.first: Find | None = None  # of this round, as it was drawn; stored
        self.smallest: Find | None = None  # the smallest that it was shrunk to

    def learn(self, case: Case) -> None:
        """Treats all that fails in a case as known from now on, whatever the size of the error. Raises CaseFileError."""
        for verdict in failures(case, self.implementation, self.examiner):
            self.known.append(Situation(*kind(verdict), features(case, self.examiner.batch(case)), math.inf, case.id))

    def run(self, examples: int) -> Exploration:
        started = time.monotonic()
        for number in itertools.count():
            before = self.result.examples
            try:
                self._round(min(AT_ONCE, examples - before), number)
                if self.smallest is not None:
                    entry = minimised(self.smallest.entry, self._batch_if_it_fails)
                    self.smallest = self._failure(entry) or self.smallest
            finally:
                self._keep(self.smallest)
                self.result.seconds = time.monotonic() - started
            if not before < self.result.examples < examples:  # nothing new was drawn, or enough
                break
        return self.result

    def _round(self, examples: int, number: int) -> None:
        name = f"{self.result.seed} {self.implementation.name} {number}"

        @hypothesis.seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))
        @hypothesis.settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            verbosity=Verbosity.quiet,
            print_blob=False,
        )
        @hypothesis.given(documents(self.implementation.capabilities))
        def search(entry: Entry) -> None:
            self._example(entry)

        self.first = self.smallest = None
        try:
            search()
        except (_Failed, hypothesis.errors.Unsatisfiable):
            pass
        except hypothesis.errors.Flaky:
            self.result.problem = "it does not always give the same answer to the same case"

    def _example(self, entry: Entry) -> None:
        drawn = self.first is None
        clear = self._clear(entry)
        if clear is None or (drawn and clear[0].id in self.asked):
            hypothesis.reject()
        found = self._first_new(entry, *clear)
        if drawn:
            self.result.examples += 1
            self.result.unsupported += not self.examiner.exam(clear[0]).concerns(self.implementation)
            if self.result.examples % 20 == 0:
                self.progress(self.result)
        if found is None:
            self.asked.add(clear[0].id)
            return
        if self.first is None or self.smallest is None:
            found = replace(found, after=self.result.examples)
            self.first = self.smallest = _store(found, self.implementation, self.folder)
        elif kind(found.verdict) != kind(self.first.verdict):
            return
        elif len(as_yaml(found.entry)) < len(as_yaml(self.smallest.entry)):
            self.smallest = found
        raise _Failed

    def _clear(self, entry: Entry) -> tuple[Case, Batch] | None:
        """A document's case and batch, where there is an answer that all would accept."""
        try:
            case = to_case(entry, self.implementation, self.folder / "found.yaml")
            batch = self.examiner.batch(case)
        except CaseFileError:
            return None  # for instance what is left of a document that was made wrong on purpose
        if unclear(case, batch):
            self.result.unclear += self.first is None
            return None
        return case, batch

    def _first_new(self, entry: Entry, case: Case, batch: Batch) -> Find | None:
        """The first failure that is not known, if there is one."""
        seen = features(case, batch)
        new, explained = first_new(self.known, failures(case, self.implementation, self.examiner), seen)
        if new is not None:
            return Find(entry, case, new, seen)
        if explained and self.first is None:
            self.result.known[explained] += 1
        return None

    def _failure(self, entry: Entry) -> Find | None:
        clear = self._clear(entry)
        return self._first_new(entry, *clear) if clear else None

    def _batch_if_it_fails(self, entry: Entry) -> Batch | None:
        """The batch of a document that fails as the round's find does."""
        found = self._failure(entry)
        same = found and self.first and kind(found.verdict) == kind(self.first.verdict)
        return self.examiner.batch(found.case) if found and same else None

    def _keep(self, find: Find | None) -> None:
        """Stores the round's find in its last form, in place of its first."""
        if find is None or self.first is None:
            return
        kept = _store(replace(find, after=self.first.after), self.implementation, self.folder)
        if kept.case.path != self.first.case.path:
            self.first.case.path.unlink(missing_ok=True)
        for other in list(self.result.finds):  # had they been found in the other order, this one would have been known
            if kind(other.verdict) == kind(kept.verdict) and kept.features <= other.features:
                self.result.finds.remove(other)
                if other.case.path != kept.case.path:
                    other.case.path.unlink(missing_ok=True)
        self.result.finds.append(kept)
        self.learn(kept.case)
