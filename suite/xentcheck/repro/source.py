"""An implementation as text that needs no suite: an import, its file, or its file as a module of its own."""

from __future__ import annotations

import ast
import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from xentcheck.implementation import FOLDER, Implementation
from xentcheck.implementation.declare import ModuleCall

# What such a file's own declarations would make; ``{modules}`` are the texts of the files.
_LOADED = '''
import types


def stand_in(*_, **claims):
    """For what the suite's own declarations in a file would make."""
    return types.SimpleNamespace(**claims)


def load(name, text):
    sys.modules[name] = module = types.ModuleType(name)
    module.__dict__.update(__file__=sys.argv[0], Implementation=stand_in, Deviation=stand_in)
    module.__dict__.update(LOGITS_CAPABILITIES=frozenset(), LINEAR_CAPABILITIES=frozenset())
    exec(compile(text, name, "exec"), module.__dict__)
    return module


'''


def definition(implementation: Implementation, is_linear: bool, taken: Mapping[str, str]) -> str:
    """The lines that define ``loss_function``, which takes input, target and options (and, of arrays, the upstream gradient).

    taken: what the rest of the script defines, as ``defined`` gives it.
    """
    forms = ("cross_entropy", "loss_and_gradient", "linear_cross_entropy")
    form = next(f for f in forms if getattr(implementation, f) is not None)
    function: Any = getattr(implementation, form)
    module_class = function.module_class if isinstance(function, ModuleCall) else None
    taken = {**taken, "loss_function": "", "fused": "", "module_class": ""}
    text, expression = _defined(module_class or function, form, implementation.source, taken)
    if module_class is not None:
        return _wrapped(text, "module_class", expression, "module_class(**options)(input, target)")
    if is_linear:
        return _wrapped(text, "fused", expression, 'fused(input, options.pop("linear_weight"), target, **options)')
    if form == "linear_cross_entropy":
        hidden = "(input.movedim(1, -1) if input.dim() > 2 else input)"
        identity = "torch.eye(input.shape[min(1, input.dim() - 1)], dtype=input.dtype)"
        return _wrapped(text, "fused", expression, f"fused({hidden}, {identity}, target, **options)")
    return text if expression == "loss_function" else f"{text}\n\nloss_function = {expression}"


def defined(text: str) -> dict[str, str]:
    """The names that a text defines at its top level, and where it has imported ones from."""
    names: dict[str, str] = {}
    for node in ast.parse(text).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                name = alias.asname or alias.name.split(".")[0]
                origin = node.module if isinstance(node, ast.ImportFrom) else ""
                names[name] = f"{origin}:{alias.name if origin or alias.asname else name}"
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names[node.name] = ""
        else:
            names |= {n.id: "" for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return names


def _wrapped(text: str, name: str, expression: str, call: str) -> str:
    return f"{text}\n\n{name} = {expression}\n\n\ndef loss_function(input, target, **options):\n    return {call}"


def _defined(function: Any, form: str, source: str, taken: Mapping[str, str]) -> tuple[str, str]:
    """The lines that define a function, and the expression that gives it."""
    module, name = getattr(function, "__module__", None) or "", getattr(function, "__qualname__", "")
    if not module.startswith("xentcheck_loaded_") and _attribute(sys.modules.get(module), name) is function:
        return f"from {module} import {name.split('.')[0]}", name
    where, _, attribute = source.rpartition(":")
    if where and not where.endswith(".py"):
        return f"from {where} import {attribute.split('.')[0]}", attribute
    path = Path(where) if where else FOLDER / f"{source}.py"
    text = _without_the_suite(path.read_text())
    names = defined(text)
    is_free = all(names[n] == taken[n] != "" for n in names.keys() & taken.keys())
    if name.split(".")[0] in names and is_free and not _siblings(path, text):
        return f"# --- {path.name}\n{text}\n# ---", name
    return _as_modules(path, attribute if where else "implementation", form), "loss_function"


def _as_modules(path: Path, attribute: str, form: str) -> str:
    """For files whose names are this script's, too, or that import what lies beside them: every file as a module of its own."""
    texts: dict[str, str] = {}

    def gather(file: Path) -> None:
        lines = file.read_text().splitlines()
        text = "\n".join(line for line in lines if not line.startswith("from xentcheck.implementation import"))
        for sibling in _siblings(file, text):
            if sibling.stem not in texts:
                gather(sibling)
        texts[file.stem] = text

    gather(path)
    modules = "\n".join(f"{name}_file = load({name!r}, {text!r})" for name, text in texts.items())
    found = (
        f"loss_function = {path.stem}_file.{attribute}\nloss_function = getattr(loss_function, {form!r}, loss_function)"
    )
    return f"{_LOADED.lstrip()}{modules}\n{found}"


def _attribute(value: Any, path: str) -> Any:
    for step in path.split("."):
        value = getattr(value, step, None)
    return value


def _without_the_suite(text: str) -> str:
    """A file's source less what ties it to this suite: the import, the statements that use what it brings, and the imports that
    only those needed."""
    tree = ast.parse(text)
    suite = {alias.asname or alias.name for node in tree.body if _imports_from_suite(node) for alias in node.names}
    kept = [
        node
        for node in tree.body
        if not _imports_from_suite(node)
        and (isinstance(node, (ast.FunctionDef, ast.ClassDef)) or not suite & _names(node))
    ]
    needed = set().union(*(_names(node) for node in kept))
    kept = [
        node
        for node in kept
        if not isinstance(node, (ast.Import, ast.ImportFrom))
        or needed & {(a.asname or a.name).split(".")[0] for a in node.names}
    ]
    lines = text.splitlines()
    texts = ["\n".join(lines[_first_line(node) - 1 : node.end_lineno]) for node in kept]
    are_imports = [isinstance(node, (ast.Import, ast.ImportFrom)) for node in kept]
    gaps = ["\n" if before and after else "\n\n\n" for before, after in itertools.pairwise(are_imports)]
    return "".join(itertools.chain.from_iterable(zip(texts, [*gaps, ""], strict=True)))


def _imports_from_suite(node: ast.stmt) -> TypeGuard[ast.ImportFrom]:
    return isinstance(node, ast.ImportFrom) and node.module == "xentcheck.implementation"


def _siblings(path: Path, text: str) -> list[Path]:
    """The files beside a file that it imports; none that merely has the name of a package which is imported from elsewhere."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = [
        node.module or "" if isinstance(node, ast.ImportFrom) else alias.name for node in nodes for alias in node.names
    ]
    files = [path.parent / f"{module.split('.')[0]}.py" for module in dict.fromkeys(modules) if module]
    return [file for file in files if file.is_file() and not _is_elsewhere(file)]


def _is_elsewhere(file: Path) -> bool:
    """Whether a module of that name came from another place than this file, such as an installed package."""
    origin = getattr(sys.modules.get(file.stem), "__file__", None)
    return origin is not None and Path(origin).resolve() != file.resolve()


def _names(node: ast.stmt) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
