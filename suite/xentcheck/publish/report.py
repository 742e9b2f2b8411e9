"""A record to its pages. Every number on them comes from the record, none from the machine that makes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xentcheck.publish import (
    page_accuracy,
    page_answers,
    page_bugs,
    page_conformance,
    page_conventions,
    page_deviations,
    page_summary,
)
from xentcheck.publish.page import Material, Script
from xentcheck.publish.plots import accuracy
from xentcheck.spec.bug_reports import Theme
from xentcheck.spec.common_claims import Topic

RECORD = "record.jsonl.gz"


def pages(
    material: Material, topics: Sequence[Topic], bugs: Sequence[Theme], script: Script, folder: Path
) -> dict[str, bytes]:
    """The files that the folder should hold, by path within it. folder: where the pages of other commands are, which are linked."""
    further = frozenset(name for name in page_summary.FURTHER if (folder / name).is_file())
    texts = {
        "README.md": page_summary.page(material, further),
        "conformance.md": page_conformance.page(material),
        **page_deviations.pages(material, script),
        "accuracy.md": page_accuracy.page(material),
        "conventions.md": page_conventions.page(material),
        "answers.md": page_answers.page(material, topics),
        "wild-bugs.md": page_bugs.page(material, bugs),
    }
    return {name: text.encode() for name, text in texts.items()} | {"accuracy.svg": accuracy(material.frame)}


def write(made: dict[str, bytes], folder: Path) -> None:
    """Writes the pages, and removes scripts that no page links."""
    for name, content in made.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    for path in superfluous(made, folder):
        path.unlink()


def superfluous(made: dict[str, bytes], folder: Path) -> list[Path]:
    """Scripts that belong to earlier pages."""
    known = {folder / name for name in made}
    return sorted(path for path in (folder / page_deviations.FOLDER).glob("*.py") if path not in known)
