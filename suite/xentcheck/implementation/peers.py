"""The libraries that run in environments of their own: which there are, and installing them by name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from xentcheck.implementation import environments
from xentcheck.implementation.declare import Implementation, ImplementationError
from xentcheck.implementation.environments import Environment
from xentcheck.implementation.load import FOLDER, declared_in, names
from xentcheck.spec.mistakes import UsageError
from xentcheck.spec.patterns import nearest


def find_all(own: Path | None = None) -> list[Implementation]:
    """All that the shipped files, and those of a user's own folder, declare with an environment. A file that cannot be read is named on
    stderr and left out."""
    found = []
    for folder in filter(None, (own, FOLDER)):
        for stem in names(folder):
            try:
                found += [one for one in declared_in(folder / f"{stem}.py") if one.environment]
            except ImplementationError as error:
                print(f"xentcheck: left out: {error}", file=sys.stderr)
    return found


def install(wanted: Sequence[str], own: Path | None = None) -> list[str]:
    """Installs libraries, one after another; says on stderr which of them failed, and why.

    Args:
        wanted: names of environments or of implementations.
        own: the user's own folder of implementations.

    Returns:
        The environments that could not be installed.

    Raises:
        ImplementationError: a name is not known, or there is none, or two implementations want different things of one environment.
    """
    by_environment = _by_environment(find_all(own))
    known = {name: name for name in by_environment}
    known |= {one.name: name for name, (_, users) in by_environment.items() for one in users}
    if not wanted:
        raise ImplementationError(
            f"expected names to install, some of {', '.join(by_environment) or 'none'}; found none"
        )
    for name in wanted:
        if name not in known:
            raise ImplementationError(
                f"{name}: there is no library of that name{nearest(name, known)} `xentcheck peers` lists all"
            )
    failed = []
    for name in dict.fromkeys(known[one] for one in wanted):
        environment, users = by_environment[name]
        try:
            environments.install(environment)
        except UsageError as error:
            print(f"xentcheck: {error}", file=sys.stderr)
            failed.append(name)
        else:
            print(f"{name}: installed; pytest suite/ --impl {','.join(one.name for one in users)}")
    return failed


def table(found: Sequence[Implementation]) -> str:
    """A line for each environment: its name, the version that is installed, its implementations, and what it requires."""
    rows = [("library", "installed", "implementations", "requirements")]
    for name, (environment, users) in _by_environment(found).items():
        version = (environment.version() or "yes") if environment.is_installed else "no"
        rows.append((name, version, " ".join(one.name for one in users), " ".join(environment.requires)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "".join(
        "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]]).rstrip() + "\n"
        for row in rows
    )


def _by_environment(found: Sequence[Implementation]) -> dict[str, tuple[Environment, list[Implementation]]]:
    """By name. Implementations of one environment differ in variables at most."""
    groups: dict[str, tuple[Environment, list[Implementation]]] = {}
    for one in found:
        assert one.environment is not None
        first, users = groups.setdefault(one.environment.name, (one.environment, []))
        if not first.is_made_like(one.environment):
            raise ImplementationError(
                f"{one.name}: expected the requirements of {users[0].name}, which has the same environment {first.name}: "
                f"{', '.join(first.requires)}; found {', '.join(one.environment.requires)}; give it another name as environment"
            )
        users.append(one)
    return groups
