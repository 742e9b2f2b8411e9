"""The first line of a record: which cases, of which implementations, where. Validated when it is read, and compared before it is gone on with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from xentcheck.implementation import Implementation
from xentcheck.results.environment import edition, environment, now
from xentcheck.spec import loader
from xentcheck.spec.case import Case

FORMAT = 3
# What an answer may depend on. A run that is gone on with has the same of all; merged results are kept apart by the former.
APART = ("torch", "gpu", "capability")
SAME = (*APART, "python", "cpu", "threads")

Name = Annotated[str, Field(min_length=1, max_length=300)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")


class _Environment(_Part):
    torch: Name
    cpu: str = ""
    gpu: str | None = None
    capability: str = ""
    python: str = ""
    threads: int = 1


class _Deviation(_Part):
    cases: list[str]
    aspect: str | None
    observed: str
    fault: str
    certain: bool = True


class _Claims(_Part):
    version: str
    capabilities: list[str]
    description: str = ""
    conventions: dict[str, str] = {}
    precision: dict[str, str] = {}
    adapter_does: list[str] = []
    refuses: str = ""
    requires: list[str] = []
    deviations: list[_Deviation] = []


class _Start(_Part):
    started: Name
    environment: _Environment


class RunLine(_Start):
    """What a run line must hold. ``runs``: of merged results, when and where each was."""

    kind: Literal["run"]
    format: Literal[3]
    edition: Name
    cases: Name
    questions: dict[Name, Name]
    selection: str = "all"
    implementations: dict[Name, _Claims]
    runs: list[_Start] = []


def run_line(implementations: Sequence[Implementation], cases: Iterable[Case], selection: str) -> dict[str, Any]:
    """The ``run`` line of a run that begins. Raises CaseFileError for a file of a case that cannot be read."""
    cases = list(cases)
    return {
        "kind": "run",
        "format": FORMAT,
        "edition": edition(),
        "cases": loader.digest(cases),
        "questions": loader.questions(cases),
        "selection": selection,
        "started": now(),
        "environment": environment(),
        "implementations": {i.name: claims(i) for i in implementations},
    }


def claims(implementation: Implementation) -> dict[str, Any]:
    """What an implementation says of itself, so that pages need no code of its."""
    environment = implementation.environment
    said = {
        "adapter_does": sorted(implementation.adapter_does),
        "refuses": "" if implementation.refuses == "raise" else implementation.refuses,
        "requires": list(environment.requires) if environment else [],
    }
    return {name: value for name, value in said.items() if value} | {
        "version": implementation.version,
        "description": implementation.description,
        "capabilities": sorted(implementation.capabilities),
        "conventions": implementation.conventions,
        "precision": implementation.precision,
        "deviations": [
            {
                "cases": list(d.patterns),
                "aspect": d.aspect,
                "observed": d.observed,
                "fault": d.fault,
                "reason": d.reason,
                "link": d.link,
                "torch": d.torch,
                "max_units": d.max_units,
                "certain": d.certain,
            }
            for d in implementation.deviations
        ],
    }


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What keeps a run from being gone on with: its name, as it was, as it is now."""
    new = json.loads(json.dumps(new))
    for name in ("edition", "cases"):
        if old[name] != new[name]:
            yield name, old[name], new[name]
    for name in SAME:
        was, now_ = (line["environment"].get(name) for line in (old, new))
        if was != now_:
            yield name, was, now_
    for name, claimed in new["implementations"].items():
        was = old["implementations"].get(name)
        if was is None:
            yield f"implementation {name}", "absent", "asked for"
        elif was != claimed:
            same = was["version"] == claimed["version"]
            now_ = "of the same version with other claims" if same else claimed["version"]
            yield f"implementation {name}", was["version"], now_
