"""A user's own folders of cases and implementations: from the command line, or from ``[tool.xentcheck]`` in their pyproject.toml."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest brings

from xentcheck.spec.mistakes import UsageError
from xentcheck.spec.patterns import nearest


@dataclass(frozen=True)
class Settings:
    """cases: a folder whose case files are asked beside the shipped ones. implementations: a folder of files that ``--impl`` finds by name."""

    cases: Path | None = None
    implementations: Path | None = None


KEYS = tuple(Settings.__dataclass_fields__)


def read_settings(root: Path) -> Settings:
    """The settings of the project in a folder; empty where its pyproject.toml has none. Raises UsageError that names file and key."""
    path = root / "pyproject.toml"
    if not path.is_file():
        return Settings()
    try:
        document: Any = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: expected TOML: {error}") from error
    tools = document.get("tool", {})
    table = tools.get("xentcheck", {}) if isinstance(tools, dict) else {}
    if not isinstance(table, dict):
        raise UsageError(
            f"{path}: tool.xentcheck: expected a table with the keys {', '.join(KEYS)}; found {table!r:.80}"
        )
    for key, value in table.items():
        if key not in KEYS:
            raise UsageError(
                f"{path}: tool.xentcheck.{key}: unknown key{nearest(key, KEYS)} Expected one of: {', '.join(KEYS)}"
            )
        if not isinstance(value, str):
            raise UsageError(f"{path}: tool.xentcheck.{key}: expected the path of a folder; found {value!r:.80}")
    return Settings(**{key: folder(root / value, f"{path}: tool.xentcheck.{key}") for key, value in table.items()})


def folder(path: Path, where: str) -> Path:
    """The path, resolved. Raises UsageError where it is not a folder."""
    try:
        home = path.expanduser()
    except RuntimeError as error:  # ~ of a user who does not exist
        raise UsageError(f"{where}: expected a folder; found {path}: {error}") from error
    if not home.is_dir():
        raise UsageError(f"{where}: expected a folder; found none at {path}")
    return home.resolve()


def with_own(specification: str, implementations: Path | None) -> str:
    """What ``--impl`` takes, with the names of files in the user's folder replaced by their places. They come before shipped ones."""
    if implementations is None:
        return specification
    parts = [part.strip() for part in specification.split(",")]
    own = {path.stem: path for path in implementations.glob("*.py")}

    def place(name: str) -> str:
        if name in own:
            return f"{own[name]}:implementation"
        files = [stem for stem in own if name.startswith(f"{stem}_") and ":" not in name]  # which holds several
        return f"{own[max(files, key=len)]}:{name}" if files else name

    return ",".join(map(place, parts))
