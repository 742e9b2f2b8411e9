"""Libraries in environments of their own: ``.peers/NAME``, made by ``xentcheck peers install NAME``. Imports only Python's own library.

An environment that shares torch finds all that the running Python has installed, after its own packages, by a ``.pth`` file. One that
does not has NumPy, ml_dtypes (for bfloat16) and what its library requires.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from xentcheck.spec.mistakes import UsageError
from xentcheck.spec.resources import checkout

FOLDER = "XENTCHECK_PEERS"  # the environment variable that names another folder than .peers
_MARKER = "installed.json"  # written last: an installation that was interrupted has none
_WITHOUT_TORCH = ("numpy", "ml_dtypes")
# What the shared torch must not be replaced or joined by.
_HEAVY = re.compile(r"torch|(nvidia|cuda)-.*")
_LINES = 15  # of what pip says last


@dataclass(frozen=True)
class Environment:
    """Where a library is installed and how.

    name: of its folder in ``.peers``. requires: requirements as pip takes them. no_deps: whether nothing else is installed.
    shares_torch: whether it sees what the running Python has installed, torch included. variables: environment variables of its
    processes, by name.
    """

    name: str
    requires: tuple[str, ...]
    no_deps: bool = False
    shares_torch: bool = True
    variables: tuple[tuple[str, str], ...] = ()

    @property
    def folder(self) -> Path:
        return peers_folder() / self.name

    @property
    def python(self) -> Path:
        windows = sys.platform == "win32"
        return self.folder / ("Scripts/python.exe" if windows else "bin/python")

    @property
    def packages(self) -> Path:
        """Its folder ``site-packages``."""
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        inside = ("Lib",) if sys.platform == "win32" else ("lib", version)
        return self.folder.joinpath(*inside, "site-packages")

    @property
    def is_installed(self) -> bool:
        """Whether it was installed to the end, from these requirements and for this Python."""
        try:
            found = json.loads((self.folder / _MARKER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(found, dict) and found.get("made_from") == self._made_from()

    def why_missing(self) -> str:
        """Which command installs it; empty where it is installed."""
        return "" if self.is_installed else f"xentcheck peers install {self.name}"

    def versions(self) -> dict[str, str]:
        """The packages that are installed in it, with their versions."""
        found = metadata.distributions(path=[str(self.packages)])
        return {_normal(d.metadata["Name"]): d.version for d in found if d.metadata["Name"]}

    def version(self) -> str:
        """The version of its library, the first of its requirements; empty where it is not there."""
        return self.versions().get(_name_of(self.requires[0]), "")

    def process_variables(self) -> dict[str, str]:
        """All environment variables of its processes."""
        own = {name: value for name, value in os.environ.items() if self.shares_torch or name != "PYTHONPATH"}
        return own | dict(self.variables)

    def is_made_like(self, other: Environment) -> bool:
        """Whether one installation serves both."""
        return self._made_from() == other._made_from()

    def _made_from(self) -> dict[str, Any]:
        return {
            "requires": list(self.requires),
            "no_deps": self.no_deps,
            "shares_torch": self.shares_torch,
            "python": sys.version,
        }


def peers_folder() -> Path:
    """Where the environments are: in the folder that XENTCHECK_PEERS names, else ``.peers`` in the checkout or in the current folder."""
    given = os.environ.get(FOLDER)
    return Path(given).expanduser().resolve() if given else (checkout() or Path.cwd()) / ".peers"


def install(environment: Environment, say: Callable[[str], Any] = print) -> None:
    """Makes the environment anew and installs the library into it.

    Args:
        environment: what to install.
        say: gets a line for each step.

    Raises:
        UsageError: it cannot be installed. The text says why, with what pip said last.
    """
    folder = environment.folder
    with suppress(FileNotFoundError):
        (folder / _MARKER).unlink()
    say(f"{environment.name}: making {folder}")
    _run(environment, [sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)], "venv")
    requires = list(environment.requires)
    constraints: list[str] = []
    if environment.shares_torch:
        shared = [path for path in map(os.path.abspath, sys.path) if _holds_packages(path)]
        (environment.packages / "xentcheck_shared.pth").write_text("".join(f"{path}\n" for path in shared))
        constraints = [f"{name}=={version}" for name in ("torch", "triton") if (version := _installed(name))]
    else:
        requires += [name for name in _WITHOUT_TORCH if name not in map(_name_of, environment.requires)]
    for requirement in requires:
        _check_is_light(environment, requirement, requirement)
    if not environment.no_deps:
        requires += _dependencies(environment, requires, constraints, say)
    say(f"{environment.name}: installing {', '.join(requires)}")
    _pip(environment, ["--no-deps", *requires])
    made = {"made_from": environment._made_from(), "versions": environment.versions()}
    (folder / _MARKER).write_text(json.dumps(made, indent=1), encoding="utf-8")


def _dependencies(
    environment: Environment, requires: Sequence[str], constraints: Sequence[str], say: Callable[[str], Any]
) -> list[str]:
    """What the requirements need beside themselves, pinned. pip chooses it and installs nothing yet."""
    say(f"{environment.name}: choosing what {', '.join(requires)} need")
    with tempfile.TemporaryDirectory(prefix="xentcheck-") as temporary:
        report, file = Path(temporary) / "report.json", Path(temporary) / "constraints.txt"
        file.write_text("".join(f"{one}\n" for one in constraints))
        _pip(environment, ["--dry-run", "--report", str(report), "--constraint", str(file), *requires])
        chosen = [item["metadata"] for item in json.loads(report.read_text(encoding="utf-8"))["install"]]
    for one in chosen:
        _check_is_light(environment, one["name"], f"{one['name']} {one['version']}")
    asked = set(map(_name_of, requires))
    return [f"{one['name']}=={one['version']}" for one in chosen if _normal(one["name"]) not in asked]


def _check_is_light(environment: Environment, requirement: str, shown: str) -> None:
    if not _HEAVY.fullmatch(_name_of(requirement)):
        return
    why = "torch is shared with the running Python" if environment.shares_torch else "it is made without torch"
    raise UsageError(
        f"{environment.name}: expected requirements without torch and CUDA packages, since {why}; found {shown}; "
        "name what the library needs in requires, and add no_deps=True"
    )


def _pip(environment: Environment, arguments: Sequence[str]) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(environment.python), "install", "--no-input", "--quiet"]
    _run(environment, [*command, "--disable-pip-version-check", *arguments], "pip")


def _run(environment: Environment, command: Sequence[str], what: str) -> None:
    variables = environment.process_variables() | {"PYTHONNOUSERSITE": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    except OSError as error:
        raise UsageError(f"{environment.name}: {what} cannot be started: {error}") from error
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()][-_LINES:]
        raise UsageError(
            f"{environment.name}: {what} failed; it said last:\n" + "\n".join(f"  {line}" for line in said)
        )


def _holds_packages(path: str) -> bool:
    return os.path.isdir(path) and bool({"site-packages", "dist-packages"} & {*Path(path).parts})


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement.strip())
    return _normal(found.group()) if found else ""


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def make(
    name: str,
    requires: Sequence[str],
    no_deps: bool = False,
    shares_torch: bool = True,
    variables: Mapping[str, str] | None = None,
) -> Environment:
    """An Environment, checked. name: if empty, that of the first requirement's package. Raises UsageError."""
    if isinstance(requires, str) or not requires:
        raise UsageError(f"requires: expected a list of requirements such as ['optax==0.2.8']; found {requires!r:.80}")
    for requirement in requires:
        if not isinstance(requirement, str) or not _name_of(requirement):
            raise UsageError(f"requires: expected requirements as pip takes them; found {requirement!r:.80}")
    name = name or _name_of(requires[0])
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise UsageError(f"environment: expected the name of a folder; found {name!r:.80}")
    pairs = tuple(sorted((str(key), str(value)) for key, value in (variables or {}).items()))
    return Environment(name, tuple(requires), bool(no_deps), bool(shares_torch), pairs)
