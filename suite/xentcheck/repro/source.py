"""An implementation as text that does not need the suite: an import, its file, or its file as a module of its own."""

from __future__ import annotations

import ast
import itertools
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from xentcheck.implementation import FOLDER, Implementation
from xentcheck.implementation.declare import ModuleCall
from xentcheck.implementation.execute import is_of_file

# Loads the files that are printed as text below it. Declarations of the suite in them become plain namespaces.
_LOADER = '''
import types


def declared(*given, **claims):
    """Stands for Implementation and Deviation of the suite."""
    names = ("name", "cross_entropy", "loss_and_gradient", "linear_cross_entropy")
    return types.SimpleNamespace(**dict(zip(names, given)), **claims)


def load(name, text):
    sys.modules[name] = module = types.ModuleType(name)
    module.__dict__.update(__file__=sys.argv[0], Implementation=declared, Deviation=declared)
    for capabilities in ("CAPABILITIES", "LOGITS_CAPABILITIES", "LINEAR_CAPABILITIES", "ARRAY_CAPABILITIES"):
        setattr(module, capabilities, frozenset())
    exec(compile(text, name, "exec"), module.__dict__)
    return module
'''


def definition(implementation: Implementation, is_linear: bool, taken: Mapping[str, str]) -> str:
    """The lines that define ``loss_function``, which takes input, target and options (and, of arrays, the upstream gradient).

    taken: the names that the rest of the script defines, as ``defined`` gives them.
    """
    function: Any = implementation.function
    module_class = function.module_class if isinstance(function, ModuleCall) else None
    taken = {**taken, "loss_function": "", "fused": "", "module_class": ""}
    text, expression = _defined(module_class or function, implementation, taken)
    if module_class is not None:
        return _wrapped(text, "module_class", expression, "module_class(**options)(input, target)")
    if is_linear:
        return _wrapped(text, "fused", expression, 'fused(input, options.pop("linear_weight"), target, **options)')
    if implementation.form == "linear_cross_entropy":
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


def _defined(function: Any, implementation: Implementation, taken: Mapping[str, str]) -> tuple[str, str]:
    """The lines that define a function, and the expression that gives it."""
    if place := _importable(function):
        module, name = place
        return f"from {module} import {name.split('.')[0]}", name
    where, _, attribute = implementation.source.rpartition(":")
    if where and not where.endswith(".py"):
        return f"from {where} import {attribute.split('.')[0]}", attribute
    path = Path(where) if where else FOLDER / f"{implementation.source}.py"
    loaded = sys.modules.get(getattr(function, "__module__", None) or "")
    text, name = _without_the_suite(path, vars(loaded) if loaded else {}), getattr(function, "__qualname__", "")
    names = defined(text)
    is_free = all(names[n] == taken[n] != "" for n in names.keys() & taken.keys())
    if name.split(".")[0] in names and is_free and not _siblings(path, text):
        return f"# --- {path.name}\n{text}\n# ---", name
    return _as_modules(path, attribute if where else "implementation", implementation.form), "loss_function"


def _importable(value: Any) -> tuple[str, str] | None:
    """The module, with as short a name as possible, and the name by which a script can import a function or class."""
    module, name = getattr(value, "__module__", None) or "", getattr(value, "__qualname__", "")
    for place in itertools.accumulate(module.split("."), "{}.{}".format):
        found: Any = None if is_of_file(place) else sys.modules.get(place)
        for step in name.split("."):
            found = getattr(found, step, None)
        if found is value:
            return place, name
    return None


def _as_modules(path: Path, attribute: str, form: str) -> str:
    """For files whose names the script uses as well, or that import files beside them: every file as a module of its own."""
    texts: dict[str, str] = {}
    seen: set[str] = set()

    def gather(file: Path) -> None:
        seen.add(file.stem)
        text = _without_the_import(file.read_text())
        for sibling in _siblings(file, text):
            if sibling.stem not in seen:
                gather(sibling)
        texts[file.stem] = text

    gather(path)
    variable = {stem: re.sub(r"\W", "_", stem) + "_file" for stem in texts}
    modules = "\n".join(f"{variable[stem]} = load({stem!r}, {_quoted(text)})" for stem, text in texts.items())
    value = f"{variable[path.stem]}.{attribute}"
    return f"{_LOADER.strip()}\n\n\n{modules}\nloss_function = getattr({value}, {form!r}, {value})"


def _without_the_import(text: str) -> str:
    """A file's source without the import of the suite, whose names the loader defines."""
    lines = text.splitlines()
    nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom)]
    for node in sorted(nodes, key=lambda node: -node.lineno):
        if _module(node) == "xentcheck.implementation":
            renamed = [f"{alias.asname} = {alias.name}" for alias in node.names if alias.asname]
            rest = " " * node.col_offset + ("; ".join(renamed) or "pass")
            lines[node.lineno - 1 : node.end_lineno] = [rest] if renamed or node.col_offset else []
    return "\n".join(lines)


def _quoted(text: str) -> str:
    plain = "'''" not in text and "\\" not in text and not text.endswith("'")
    return f"'''{text}'''" if plain else repr(text)


def _without_the_suite(path: Path, loaded: Mapping[str, Any]) -> str:
    """A file's source without what ties it to the suite: the import, the statements that use what it imports, and the imports that
    only these need. What it gets through a file beside it, but from an installed package, is imported from there.

    loaded: the names of the file as it was loaded.
    """
    text = path.read_text()
    tree = ast.parse(text)
    siblings = {file.stem for file in _siblings(path, text)}
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    suite = {_bound(a) for node in imports if _module(node) == "xentcheck.implementation" for a in node.names}
    statements = [
        node
        for node in tree.body
        if node not in imports and (isinstance(node, (ast.FunctionDef, ast.ClassDef)) or not suite & _names(node))
    ]
    needed = set().union(*map(_names, statements)) - suite
    lines, parts = text.splitlines(), []
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            parts += [(text, True) for text in _needed_imports(node, needed, siblings, loaded)]
        elif node in statements:
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            parts.append(("\n".join(lines[first - 1 : node.end_lineno]), False))
    gaps = ["\n" if before and after else "\n\n\n" for (_, before), (_, after) in itertools.pairwise(parts)]
    return "".join(itertools.chain(*zip([text for text, _ in parts], [*gaps, ""], strict=True)))


def _needed_imports(
    node: ast.Import | ast.ImportFrom, needed: set[str], siblings: set[str], loaded: Mapping[str, Any]
) -> Iterator[str]:
    node.names = [alias for alias in node.names if _bound(alias) in needed]
    for alias in list(node.names) if _module(node) in siblings else ():
        if place := _importable(loaded.get(_bound(alias))):
            node.names.remove(alias)
            module, name = place
            yield f"from {module} import {name}" + (f" as {alias.asname}" if alias.asname else "")
    if node.names:
        yield ast.unparse(node)


def _module(node: ast.Import | ast.ImportFrom) -> str:
    return node.module or "" if isinstance(node, ast.ImportFrom) else ""


def _bound(alias: ast.alias) -> str:
    """The name that an import defines."""
    return (alias.asname or alias.name).split(".")[0]


def _siblings(path: Path, text: str) -> list[Path]:
    """The files beside a file that it imports, except where a package of the same name is imported from elsewhere."""
    modules: dict[str, None] = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules |= dict.fromkeys([_module(node)] if _module(node) else [alias.name for alias in node.names])
    files = [path.parent / f"{module.split('.')[0]}.py" for module in modules]
    return [file for file in files if file.is_file() and not _is_elsewhere(file)]


def _is_elsewhere(file: Path) -> bool:
    """Whether a module of that name was imported from another place than this file, such as an installed package."""
    origin = getattr(sys.modules.get(file.stem), "__file__", None)
    return origin is not None and Path(origin).resolve() != file.resolve()


def _names(node: ast.stmt) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
