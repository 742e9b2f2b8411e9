"""What differs on an older torch, as ``reports/older-torch.md``.

``make older-torch`` runs ``python tests/studies/older_torch.py ask FOLDER`` under the pinned and under the older torch, which puts all cases to
the shipped implementations and to ``lookalikes/``, and then ``python tests/studies/older_torch.py page PINNED OLDER FILE``.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import torch
from rich.progress import track

from kill_page import asked, table
from xentcheck.implementation import find
from xentcheck.results.record import NAME, Results, Writer, load
from xentcheck.results.run_line import run_line
from xentcheck.run.examiner import Examiner
from xentcheck.spec.loader import load_all

LOOKALIKES = Path(__file__).resolve().parents[1] / "lookalikes"


def ask(folder: Path) -> None:
    """Writes every verdict under the torch that is installed to ``folder/results.jsonl``; goes on where it was interrupted."""
    torch.set_num_threads(1)
    files = sorted(f for f in LOOKALIKES.glob("*.py") if not f.name.startswith("_"))
    implementations = find(",".join(["all", *(f"{file}:*" for file in files)]))
    cases, examiner = asked(load_all()), Examiner()
    interrupted = (folder / NAME).exists() and not load(folder / NAME).complete
    writer = Writer(folder, run_line(implementations, cases, "all"), resume=interrupted)
    for case in track(cases, description=f"torch {torch.__version__}"):
        for implementation in implementations:
            for aspect in examiner.aspects(case, implementation):
                if (implementation.name, case.id, aspect) not in writer.already:
                    writer.verdict(examiner.examine(case, aspect, implementation))
    writer.close()


def page(pinned: Results, older: Results) -> str:
    new, old = pinned.run["environment"]["torch"], older.run["environment"]["torch"]
    before = {v.key: v for v in pinned.verdicts}
    both = [(before[v.key], v) for v in older.verdicts if v.key in before]
    counts, groups = [], defaultdict(list)
    for name in older.run["implementations"]:
        mine = [(a, b) for a, b in both if b.implementation == name]
        counts.append(
            {
                "implementation": f"`{name}`",
                "verdicts": str(len(mine)),
                f"not good on {new}": str(sum(not a.status.is_good for a, _ in mine)),
                f"not good on {old}": str(sum(not b.status.is_good for _, b in mine)),
                "other than on the pinned torch": "not there"
                if {b.status for _, b in mine} == {"unavailable"}
                else str(sum(a.status != b.status for a, b in mine)),
            }
        )
    for a, b in both:
        if a.status != b.status and b.status != "unavailable":
            groups[b.clause, b.aspect, a.status, b.status, b.fault].append((b, b.message or a.message))
    rows = [
        {
            "clause": clause,
            "aspect": aspect,
            new: was,
            old: now,
            "implementations": ", ".join(f"`{n}`" for n in sorted({v.implementation for v, _ in verdicts})),
            "cases": str(len({v.case for v, _ in verdicts})),
            "for instance": f"`{verdicts[0][0].case}`: {verdicts[0][1]}".replace("|", "\\|").replace("\n", " "),
        }
        for (clause, aspect, was, now, _), verdicts in sorted(groups.items())
    ]
    complete = pinned.complete and older.complete
    parts = [
        f"# torch {old} beside torch {new}",
        "The same cases, put to the shipped implementations and to the correct losses of `tests/lookalikes/`, on both. A difference is torch's own. "
        "Good is every verdict that passes, deviates in a way that is known, or is not asked.",
        *([] if complete else ["> **A run did not end; what follows is not complete.**"]),
        table(counts),
        "## Verdicts that differ",
        "The message is that of the torch on which the case does not pass.",
        table(rows),
        f"Made by `make older-torch`; python {older.run['environment']['python']}, {older.run['environment']['capability']}.",
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        ask(Path(sys.argv[2]))
    else:
        pinned, older = (load(Path(folder) / NAME) for folder in sys.argv[2:4])
        Path(sys.argv[4]).write_text(page(pinned, older), encoding="utf-8")
        print(f"written: {sys.argv[4]}")
