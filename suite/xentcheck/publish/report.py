"""A record to its pages. Every number on them comes from the record, none from the machine that makes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xentcheck.publish import (
    page_accuracy,
    page_answers,
    page_bugs,
    page_choose,
    page_conformance,
    page_conventions,
    page_deviations,
    page_field,
    page_implementation,
    page_summary,
)
from xentcheck.publish.page import Material, Script
from xentcheck.publish.plots import accuracy
from xentcheck.spec.bug_reports import Theme
from xentcheck.spec.common_claims import Topic

RECORD = "record.jsonl.gz"
FIELD = "field.jsonl.gz"  # the record of other libraries, which ``xentcheck field`` writes


def pages(
    material: Material,
    topics: Sequence[Topic],
    bugs: Sequence[Theme],
    script: Script,
    folder: Path,
    field: Material | None = None,
) -> dict[str, bytes]:
    """The files that the folder should hold, by path within it.

    Args:
        material: the record of the shipped implementations.
        topics, bugs: what the pages of answers and of reported bugs say.
        script: makes the script that reproduces a case.
        folder: where the pages of other commands are, which are linked.
        field: the record of other libraries; None where there is none.
    """
    further = frozenset(name for name in page_summary.FURTHER if (folder / name).is_file())
    texts = {
        "README.md": page_summary.page(material, further),
        "conformance.md": page_conformance.page(material),
        **page_deviations.pages(material, script),
        "accuracy.md": page_accuracy.page(material),
        "conventions.md": page_conventions.page(material, field),
        "answers.md": page_answers.page(material, topics),
        "wild-bugs.md": page_bugs.page(material, bugs),
        **(_of_the_field(material, field) if field else {}),
    }
    return {name: text.encode() for name, text in texts.items()} | {"accuracy.svg": accuracy(material.frame)}


def _of_the_field(material: Material, field: Material) -> dict[str, str]:
    return {
        "field.md": page_field.page(field, material.results.run),
        "choose.md": page_choose.page(material, field),
        **page_implementation.pages(field, material),
    }


def write(made: dict[str, bytes], folder: Path) -> None:
    """Writes the pages, and removes scripts and pages of implementations that no page links."""
    for name, content in made.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    for path in superfluous(made, folder):
        path.unlink()


def superfluous(made: dict[str, bytes], folder: Path) -> list[Path]:
    """Scripts, and pages of implementations, that belong to earlier pages."""
    known = {folder / name for name in made}
    patterns = (f"{page_deviations.FOLDER}/*.py", f"{page_implementation.FOLDER}/*.md")
    return sorted(path for pattern in patterns for path in folder.glob(pattern) if path not in known)
