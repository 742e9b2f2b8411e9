"""Packages of which one file is needed, while their __init__ imports much more than the loss needs."""

import sys
from importlib.util import find_spec, module_from_spec


def hollow(*packages):
    """Enters packages as imported without running their ``__init__``, so that their modules can be imported.

    Args:
        packages: names of packages, an outer one before those in it.

    Raises:
        ModuleNotFoundError: one of them is not installed.
    """
    for name in packages:
        if name in sys.modules:
            continue
        found = find_spec(name)
        if found is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        sys.modules[name] = module_from_spec(found)
        outer, _, inner = name.rpartition(".")
        if outer:
            setattr(sys.modules[outer], inner, sys.modules[name])
