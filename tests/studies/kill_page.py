"""What a run of ``kill_matrix`` found out, as a page: ``reports/mutants.md``."""

from __future__ import annotations

import ast
import inspect
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from xentcheck.spec.case import RELATIONS, Case

DIGEST = re.compile(r"<!-- digest ([0-9a-f]+) -->")
CAPTURED = 2**15  # elements, about: the logits that training runs left in files


@dataclass(frozen=True)
class Mutant:
    """name: of its function. theme: of its file. bug: the first line of its docstring. links: where the bug was a real one."""

    name: str
    theme: str
    bug: str
    links: tuple[str, ...]


@dataclass(frozen=True)
class Matrix:
    """kills: for each case id, the mutants that fail it and the aspect that shows it first. sources: ``path/to/file.py:name`` of each
    mutant. An entry is what stands in a case file: one case, or all that its matrix expands to."""

    cases: Sequence[Case]
    sources: Mapping[str, str]
    kills: Mapping[str, Mapping[str, str]]
    digest: str

    @cached_property
    def mutants(self) -> list[Mutant]:
        files = {Path(source.rpartition(":")[0]) for source in self.sources.values()}
        return [m for file in sorted(files) for m in _described(file) if m.name in self.sources]

    @cached_property
    def entries(self) -> dict[str, list[Case]]:
        """Those that were asked."""
        found: dict[str, list[Case]] = defaultdict(list)
        for case in asked(self.cases):
            found[entry(case)].append(case)
        return dict(found)

    @cached_property
    def out_of_reach(self) -> list[str]:
        """Mutants that survive, and that only entries that were not asked name."""
        unasked = {entry(case) for case in self.cases} - self.entries.keys()
        survive = [name for name, cases in self.killers.items() if not cases]
        return [name for name in survive if self.named_by.get(name) and self.named_by[name] <= unasked]

    @cached_property
    def killers(self) -> dict[str, dict[str, str]]:
        """For each mutant, the cases that it fails, and how it shows."""
        found: dict[str, dict[str, str]] = {name: {} for name in self.sources}
        for case in self.cases:
            for name, aspect in self.kills.get(case.id, {}).items():
                found[name][case.id] = aspect
        return found

    @cached_property
    def killing_entries(self) -> dict[str, set[str]]:
        return {name: {case.partition("[")[0] for case in cases} for name, cases in self.killers.items()}

    @cached_property
    def killed_by_entry(self) -> dict[str, set[str]]:
        return {e: {n for n, killing in self.killing_entries.items() if e in killing} for e in self.entries}

    @cached_property
    def named_by(self) -> dict[str, set[str]]:
        """For each mutant, the entries whose ``kills`` name it."""
        found: dict[str, set[str]] = defaultdict(set)
        for case in self.cases:
            for name in case.kills:
                found[name.replace("-", "_")].add(entry(case))
        return found

    @cached_property
    def smallest(self) -> dict[str, str]:
        """For each mutant that is killed, the id of the case with the fewest logits that kills it; the first of several."""
        sizes = {case.id: size(case) for case in self.cases}
        return {name: min(cases, key=sizes.__getitem__) for name, cases in self.killers.items() if cases}

    def only_by_relations(self) -> list[str]:
        return [n for n, cases in self.killers.items() if cases and set(cases.values()) <= set(RELATIONS)]

    def problems(self) -> list[str]:
        """What contradicts: every mutant is killed, by the entries that name it, and every entry kills something."""
        survivors = [name for name, cases in self.killers.items() if not cases and name not in self.out_of_reach]
        found = [f"{name}: survives every case" for name in survivors]
        found += [f"{name}: no case names it in its kills" for name in self.sources if name not in self.named_by]
        for name, entries in self.named_by.items():
            if name not in self.sources:
                found.append(f"{name}: named in the kills of {', '.join(sorted(entries))}, but there is no such mutant")
            else:
                missing = entries & self.entries.keys() - self.killing_entries[name]
                found += [f"{name}: survives {e}, which names it in its kills" for e in sorted(missing)]
        return found + [f"{e}: kills no mutant" for e, killed in self.killed_by_entry.items() if not killed]


def asked(cases: Iterable[Case]) -> list[Case]:
    """All that fit in an ordinary machine's memory."""
    return [case for case in cases if not case.is_huge]


def entry(case: Case) -> str:
    return case.id.partition("[")[0]


def size(case: Case) -> int:
    """How many logits it has."""
    logits = case.question.logits
    if logits.file:
        return CAPTURED
    samples, *rest = np.shape(logits.values) if logits.shape is None else logits.shape
    return (case.question.padded_to or samples) * math.prod(rest)


def _described(file: Path) -> list[Mutant]:
    functions = [n for n in ast.parse(file.read_text()).body if isinstance(n, ast.FunctionDef) and n.name[0] != "_"]
    docs = {f.name: inspect.cleandoc(ast.get_docstring(f) or "") for f in functions}
    return [
        Mutant(
            name, file.stem, " ".join(doc.partition("\n\n")[0].split()), tuple(re.findall(r"https?://[^\s,)]+", doc))
        )
        for name, doc in docs.items()
    ]


def summary(matrix: Matrix) -> str:
    killed = [name for name, cases in matrix.killers.items() if cases]
    idle = [e for e, mutants in matrix.killed_by_entry.items() if not mutants]
    return (
        f"{len(killed)} of {len(matrix.sources)} mutants are killed by {len(asked(matrix.cases))} cases ({len(matrix.entries)} entries of case files); "
        f"{len(idle)} entries kill nothing"
    )


def page(matrix: Matrix) -> str:
    real = [m for m in matrix.mutants if m.links]
    cells = sum(map(len, matrix.killers.values()))
    relations = matrix.only_by_relations()
    single = [n for n, entries in matrix.killing_entries.items() if len(entries) == 1]
    counts = {
        "mutants": len(matrix.sources),
        "of them bugs that were reported somewhere": len(real),
        "mutants that are killed": sum(map(bool, matrix.killers.values())),
        "mutants that only relations kill": len(relations),
        "mutants that only one entry of the case files kills": len(single),
        "mutants that take a case of more than 2^31 logits, which is not asked here": len(matrix.out_of_reach),
        "cases": len(asked(matrix.cases)),
        "entries of case files, which expand to these": len(matrix.entries),
        "entries that kill nothing": sum(not killed for killed in matrix.killed_by_entry.values()),
        "pairs of a mutant and a case that kills it": cells,
    }
    problems = matrix.problems()
    parts = [
        "# Mutants",
        "Which case catches which bug. A mutant is a deliberately wrong loss with one bug, and every case is put to every mutant: a suite is worth "
        "what it catches. A mutant is killed by a case if any aspect of its answer (loss, gradient, shape, rejection, purity) or any relation "
        "between its answers fails.",
        table({"": name, "count": str(count)} for name, count in counts.items()),
        *([_folded(f"What is wrong: {len(problems)} problems", _items(problems))] if problems else []),
        "## By bug",
        "**cases**: how many of them kill the mutant. **smallest**: of these, the one with the fewest logits. **shows in**: the first aspect that "
        "fails, with the number of cases where it is that one; an answer's own aspects are looked at before relations.",
        *(_theme(matrix, theme) for theme in dict.fromkeys(m.theme for m in matrix.mutants)),
        "## Bugs that only relations catch",
        "No case's own answer gives them away; only two answers that do not fit each other do.",
        table(_relation_rows(matrix, relations)),
        "## By case",
        "An entry stands in a case file; its matrix expands to several cases. **kills**: mutants that any case of the entry kills. **alone**: those "
        "that no other entry kills.",
        *(_clause(matrix, clause) for clause in dict.fromkeys(case.clause.clause for case in matrix.cases)),
        "## How it is made",
        "`make mutants` puts all cases to all mutants, except those of more than 2^31 logits, and exits with 1 where a mutant survives, where a case "
        "does not kill what it names, or where an entry kills nothing. A mutant's case is left at the first aspect that fails. Mutants are loaded "
        "once per process, each in an execution of its file of its own; those whose file keeps a list, dict or set, where something could "
        "outlive a call, are loaded anew for every case, so that no case depends on those before it. Global state is put back after each call. "
        "The mutants offer what their signature shows: capabilities that they do not claim are not asked.",
        f"<!-- digest {matrix.digest} -->",
    ]
    return "\n\n".join(parts) + "\n"


def _theme(matrix: Matrix, theme: str) -> str:
    mine = [m for m in matrix.mutants if m.theme == theme]
    file = Path(matrix.sources[mine[0].name].rpartition(":")[0])
    about = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n\n")[0].replace("\n", " ")
    rows = [
        {
            "mutant": f"`{m.name}`",
            "bug": _escape(m.bug) + "".join(f" [{_short(link)}]({link})" for link in m.links),
            "cases": str(len(matrix.killers[m.name])),
            "smallest": f"`{matrix.smallest[m.name]}`" if m.name in matrix.smallest else "none",
            "shows in": _shown(matrix.killers[m.name].values()),
        }
        for m in mine
    ]
    return f"### {theme}\n\n{about}\n\n{table(rows)}"


def _relation_rows(matrix: Matrix, names: Iterable[str]) -> list[dict[str, str]]:
    return [
        {
            "mutant": f"`{name}`",
            "relations": _shown(matrix.killers[name].values()),
            "smallest": f"`{matrix.smallest[name]}`",
        }
        for name in names
    ]


def _clause(matrix: Matrix, clause: str) -> str:
    rows = []
    for name, cases in matrix.entries.items():
        if cases[0].clause.clause != clause:
            continue
        killed = matrix.killed_by_entry[name]
        alone = sorted(n for n in killed if matrix.killing_entries[n] == {name})
        rows.append(
            {
                "entry": f"`{name.partition('/')[2]}`",
                "cases": str(len(cases)),
                "kills": str(len(killed)),
                "alone": ", ".join(f"`{n}`" for n in alone),
            }
        )
    in_all = {n for name, killed in matrix.killed_by_entry.items() if name.startswith(f"{clause}/") for n in killed}
    return _folded(f"{clause}: {len(rows)} entries kill {len(in_all)} mutants", table(rows))


def _shown(aspects: Iterable[str]) -> str:
    counts = Counter(aspects).most_common()
    return ", ".join(f"{aspect} {count}" for aspect, count in counts) or "nothing"


def _items(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _short(link: str) -> str:
    """``owner/name#123`` for an issue or a pull request; the host for others."""
    issue = re.match(r"https://github\.com/([^/]+/[^/]+)/(?:issues|pull|discussions)/(\d+)", link)
    return f"{issue[1]}#{issue[2]}" if issue else link.split("/")[2]


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def table(rows: Iterable[dict[str, str]]) -> str:
    """Not padded to columns: one long cell would make every line of the source as long as itself."""
    rows = list(rows)
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)] if rows else []
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) or "None."


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
