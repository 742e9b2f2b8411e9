"""Executes the files of implementations, each as a module of its own."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import re
import sys
from pathlib import Path
from types import ModuleType

from xentcheck.implementation.declare import BrokenError, ImplementationError

_count = itertools.count()
_importable: set[str] = set()  # the names under which files were loaded and can be imported


def is_of_file(module: str) -> bool:
    """Whether a module, or its package, was loaded from a file by its path."""
    return module.startswith("xentcheck_loaded_") or module.partition(".")[0] in _importable


def load_file(path: Path, importable: bool = False) -> ModuleType:
    """Executes a file as a new module. Modules beside it can be imported meanwhile.

    Args:
        path: the file.
        importable: whether other processes shall be able to import it by its name, as ``pickle`` does under multiprocessing's spawn.
            If nothing else has that name, it is kept, and the file's folder becomes the last one of ``sys.path``.

    Raises:
        BrokenError: it cannot be executed; names the failing line.
    """
    path = path.resolve()
    private = f"xentcheck_loaded_{next(_count)}_{re.sub(r'[^0-9a-zA-Z]', '_', path.stem)}"
    importable = importable and _is_free(path)
    spec = importlib.util.spec_from_file_location(path.stem if importable else private, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent))
    before = set(sys.modules)
    done = False
    try:
        spec.loader.exec_module(module)
        done = True
    except KeyboardInterrupt:
        raise
    except ImplementationError as error:
        raise BrokenError(str(error)) from error
    except BaseException as error:
        lines = [frame.lineno for frame in inspect.trace() if frame.filename == str(path)]
        line = lines[-1] if lines else getattr(error, "lineno", "?")
        raise BrokenError(
            f"{path}:{line}: the file cannot be imported: {type(error).__name__}: {text_of(error)}"
        ) from error
    finally:
        sys.path.remove(str(path.parent))
        # Modules that the file imports from its own folder belong to this execution alone. They stay in sys.modules under another
        # name, since torch.compile looks up the module of each function by its name.
        new = sys.modules.keys() - before
        for name in [n for n in new if _lies_in(path.parent, sys.modules.get(n.partition(".")[0]))]:
            own = sys.modules.pop(name)
            own.__name__ = f"{private}_{name}"
            sys.modules[own.__name__] = own
        if importable and not done:
            sys.modules.pop(spec.name, None)
    if importable:
        _importable.add(spec.name)
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))
    return module


def _is_free(path: Path) -> bool:
    """Whether nothing else can be imported by the name that a file has without its suffix."""
    if not path.stem.isidentifier() or path.stem in sys.modules:
        return False
    try:
        spec = importlib.util.find_spec(path.stem)
    except (ImportError, ValueError):
        return False
    return spec is None or (spec.origin is not None and Path(spec.origin).resolve() == path)


def text_of(error: BaseException) -> str:
    return str(error)[:2000]


def _lies_in(folder: Path, module: ModuleType | None) -> bool:
    """Whether a top-level module or package lies in a folder, and not in a library that is installed below it."""
    places = [*getattr(module, "__path__", []), getattr(module, "__file__", None) or "/"]
    return any(Path(place).parent == folder for place in places)
