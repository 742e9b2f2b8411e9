"""A case and an implementation as a script that needs neither this suite nor pytest: torch, and the implementation's own library."""

from __future__ import annotations

import ast
import base64
import math
import sys
import zlib
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from xentcheck.batch import Batch
from xentcheck.case import Case
from xentcheck.declare import ModuleCall
from xentcheck.implementation import FOLDER, Implementation

LITERAL = 400  # up to so many values are written out; more are packed
WIDTH = 8  # values in a line

_EXPECTED = '''
def expected(logits, target):
    """Loss and gradient by the definition, in float64, with the ignored positions deleted."""
    axis = 0 if logits.dim() == 1 else 1
    shape = [n for i, n in enumerate(logits.shape) if i != axis]
    x = torch.atleast_2d(logits.detach().double().movedim(axis, -1)).flatten(0, -2)
    weight = options.get("weight", torch.ones(x.shape[1])).double()
    if target.is_floating_point():  # class probabilities
        q, mass = torch.atleast_2d(target.double().movedim(axis, -1)).flatten(0, -2), torch.ones(len(x)).double()
        valid = torch.ones(len(x), dtype=torch.bool)
    else:
        t = target.reshape(-1).long()
        valid = ~torch.isin(t, torch.tensor(ignored))
        q, mass = torch.nn.functional.one_hot(t[valid], x.shape[1]).double(), weight[t[valid]]
    smoothing = options.get("label_smoothing", 0.0)
    wq = weight * (smoothing / x.shape[1] + (1 - smoothing) * q)
    lse = x[valid].logsumexp(1, keepdim=True)
    losses = torch.zeros(len(x), dtype=torch.float64)
    losses[valid] = torch.where(wq != 0, wq * (lse - x[valid]), 0.0).sum(1)
    reduction = options.get("reduction", "mean")
    divisor = float(options.get("normalizer", mass.sum())) if reduction == "mean" else 1.0
    loss = losses.reshape(shape) if reduction == "none" else losses.sum() / divisor
    above = torch.ones(1) if upstream is None else upstream
    above = above.double().reshape(-1).expand(len(x))[valid, None] / divisor
    gradient = torch.zeros_like(x)
    gradient[valid] = above * (wq.sum(1, keepdim=True) * (x[valid] - lse).exp() - wq)
    return loss, gradient.reshape(*shape, logits.shape[axis]).movedim(-1, axis)
'''

_EXPECTED_LINEAR = '''
def expected(hidden, target):
    """Loss and gradients of a linear layer and a loss by the definition, in float64, with the ignored positions deleted."""
    valid = ~torch.isin(target.long(), torch.tensor(ignored))
    h, t = hidden.detach().double()[valid], target[valid].long()
    matrix = options["linear_weight"].detach().double()
    x = h @ matrix.T + options.get("linear_bias", torch.zeros(len(matrix))).detach().double()
    weight = options.get("weight", torch.ones(len(matrix))).double()
    smoothing = options.get("label_smoothing", 0.0)
    wq = weight * torch.full_like(x, smoothing / len(matrix)).scatter_add(1, t[:, None], torch.full_like(x[:, :1], 1 - smoothing))
    lse = x.logsumexp(1, keepdim=True)
    losses = torch.zeros(len(target), dtype=torch.float64)
    losses[valid] = torch.where(wq != 0, wq * (lse - x), 0.0).sum(1)
    reduction = options.get("reduction", "mean")
    divisor = weight[t].sum() if reduction == "mean" else 1.0
    above = torch.ones(1) if upstream is None else upstream
    d = above.double().expand(len(target))[valid, None] / divisor * (wq.sum(1, keepdim=True) * (x - lse).exp() - wq)
    of_hidden = torch.zeros(hidden.shape, dtype=torch.float64)
    of_hidden[valid] = d @ matrix
    gradients = {"hidden": of_hidden, "linear_weight": d.T @ h, "linear_bias": d.sum(0)}
    return losses if reduction == "none" else losses.sum() / divisor, gradients
'''


_ABOVE = """
def above(loss):
    return None if upstream is None else upstream.to(loss.dtype)
"""

_ACCUMULATED = """
def accumulated(function):
    \"\"\"The loss of the batch from those of three micro-batches, a mean by the share of what counts in each.\"\"\"
    size = len(logits)
    parts = [slice(0, 1), slice(1, 1 + (size - 1) // 3), slice(1 + (size - 1) // 3, size)]
    losses = [function(logits[part], target[part], **options) for part in parts if len(logits[part])]
    if options.get("reduction") == "sum" or "normalizer" in options:
        return sum(losses)
    weight = options.get("weight", torch.ones(logits.shape[1])).double()
    counted = [target[part][~torch.isin(target[part], torch.tensor(ignored))].long() for part in parts if len(logits[part])]
    masses = [weight[t].sum() for t in counted]
    return sum(loss.double() * (mass / sum(masses)) for loss, mass in zip(losses, masses)).to(losses[0].dtype)
"""
_PADDED = """
def padded(function):
    \"\"\"The batch's samples spread among ignored ones, {samples} in all.\"\"\"
    where = torch.linspace(0, {samples} - 1, len(logits), dtype=torch.float64).round().long()
    many = torch.zeros(({samples}, *logits.shape[1:]), dtype=logits.dtype)
    many[where] = logits
    labels = torch.full(({samples}, *target.shape[1:]), ignored[0], dtype=target.dtype)
    labels[where] = target
    loss = function(many, labels, **options)
    return loss[where] if loss.dim() else loss
"""

# What gets from logits and target to a loss and a gradient; see the modes of ``observe``.
_GRADED = """
logits.requires_grad_()
loss = {call}
print("found loss", *loss.detach().reshape(-1).tolist()[:20])
loss.backward(above(loss))
gradient = logits.grad
"""
_MODES = {
    "eager": _GRADED,
    "autocast": _GRADED.replace(
        "loss = {call}", 'with torch.autocast("cpu", dtype=torch.bfloat16):\n    loss = {call}'
    ),
    "compile": _GRADED.replace("{call}", "torch.compile({function})(logits, target, **options)"),
    "twice": _GRADED.replace(
        "loss.backward(above(loss))",
        "loss.backward(above(loss), retain_graph=True)\nlogits.grad = None\nloss.backward(above(loss))",
    ),
    "deterministic": "torch.use_deterministic_algorithms(True)\n" + _GRADED,
    "two_losses": _GRADED.replace("loss = {call}", "other = {call}\nloss = {call}").replace(
        "gradient = logits.grad", "other.backward(above(other))\ngradient = logits.grad / 2"
    ),
    "edited": _GRADED.replace(
        "loss = {call}", "edited = logits.clone()\nloss = {function}(edited, target, **options)"
    ).replace(
        "loss.backward(above(loss))",
        """with torch.no_grad():
    edited.neg_()
try:
    loss.backward(above(loss))
except RuntimeError as error:
    print("autograd noticed the edit, which is right, too:", error)""",
    ),
    "accumulated": _GRADED.replace("loss = {call}", "loss = accumulated({function})"),
    "padded": _GRADED.replace("loss = {call}", "loss = padded({function})"),
    "detached": """
loss = {call}
""",
    "no_grad": """
with torch.no_grad():
    loss = {call}
""",
    "inference_mode": """
with torch.inference_mode():
    loss = {call}
""",
    "func_grad": """
loss, pull_back = torch.func.vjp(lambda logits: {function}(logits, target, **options), logits)
(gradient,) = pull_back(torch.ones_like(loss) if upstream is None else above(loss))
""",
    "vmap": """
def one(x, t):
    loss = {function}(x.unsqueeze(0), t.unsqueeze(0), **options)
    return loss.sum(), loss.squeeze(0)


gradient, loss = torch.func.vmap(torch.func.grad(one, has_aux=True))(logits, target)
""",
    "double_backward": """
logits.requires_grad_()
loss = {call}
(gradient,) = torch.autograd.grad(loss, logits, above(loss), create_graph=True)
(second,) = torch.autograd.grad(gradient, logits, direction)
print("the gradient's derivative along `direction`", second)
""",
}
_ARRAYS = """
loss, gradient = (torch.as_tensor(value) for value in {call})
"""
_REFUSED = """
try:
    print("expected an error; found", {call})
except Exception as error:
    print("an error, as expected:", type(error).__name__, error)
"""
_PRINT_LOSS = """
print("found loss", *loss.detach().reshape(-1).tolist()[:20])
"""
_SHOW_LOSS = """
print("largest difference of the loss", (loss.detach().double() - expected_loss).abs().reshape(-1).max().item() if loss.numel() else "none, it is empty")
"""
_SHOW_GRADIENT = """
if gradient is None:
    print("found no gradient")
else:
    difference = (gradient.detach().double() - expected_gradient).abs().nan_to_num(torch.inf)
    for i in difference.reshape(-1).topk(min(5, difference.numel())).indices:
        where = tuple(n.item() for n in torch.unravel_index(i, difference.shape))
        print("gradient at", list(where), "expected", expected_gradient[where].item(), "found", gradient[where].item())
"""
_SHOW_LINEAR_GRADIENTS = """
for name, tensor in leaves.items():
    if tensor.grad is None:
        print("found no gradient of", name)
        continue
    difference = (tensor.grad.double() - expected_gradient[name]).abs().nan_to_num(torch.inf)
    for i in difference.reshape(-1).topk(min(5, difference.numel())).indices:
        where = tuple(n.item() for n in torch.unravel_index(i, difference.shape))
        print("gradient of", name, "at", list(where), "expected", expected_gradient[name][where].item(), "found", tensor.grad[where].item())
"""
_SHOW_OVERWRITTEN = """
if not torch.equal(kept.nan_to_num(), logits.detach().nan_to_num()):
    print("the logits were overwritten")
"""


# Names that the script itself assigns; a file that assigns one of them, too, is kept apart.
_SCRIPT_NAMES = frozenset(
    [
        "above",
        "accumulated",
        "call_module",
        "difference",
        "direction",
        "edited",
        "expected",
        "expected_gradient",
        "expected_loss",
        "gradient",
        "i",
        "ignored",
        "kept",
        "leaves",
        "load",
        "logits",
        "loss",
        "name",
        "tensor",
        "with_matrix",
        "loss_function",
        "one",
        "options",
        "other",
        "padded",
        "pull_back",
        "second",
        "stand_in",
        "target",
        "through_identity",
        "upstream",
        "where",
    ]
)


def script(case: Case, implementation: Implementation, batch: Batch) -> str:
    """The script's text. Printed values show the same difference that the suite found."""
    function, definition = _function(implementation, batch.is_linear)
    head = [f"{case.id}, {implementation.name} {implementation.version}".rstrip(), "", case.clause.requirement]
    head += [f"({case.why})"] if case.why else []
    head += [*case.clause.sources, "", "With --anomaly autograd names the operation whose backward pass returned NaN."]
    data = [
        _tensor("logits", batch.input),
        _tensor("target", batch.target),
        _options(batch),
        f"ignored = {list(batch.ignore_values)}",
    ]
    data += ["upstream = None" if batch.upstream is None else _tensor("upstream", batch.upstream)]
    if batch.direction is not None:
        data.append(_tensor("direction", torch.from_numpy(batch.direction).to(batch.input.dtype)))
    call = f"{function}(logits, target, **options)"
    if case.expects_error:
        steps = [_REFUSED]
    else:
        arrays = implementation.loss_and_gradient is not None
        call = f"{function}(logits, target, upstream, **options)" if arrays else call
        expected = 'expected_loss, expected_gradient = expected(logits, target)\nprint("expected loss", *expected_loss.reshape(-1).tolist()[:20])'
        mode = case.question.mode if batch.padded_to is None else "padded"
        answer = _ARRAYS if arrays else _MODES[mode]
        if batch.is_linear:
            answer = answer.replace("logits.grad = None", "for tensor in leaves.values():\n    tensor.grad = None")
            data.append(_leaves(batch, case.has_gradient))
        steps = [
            "kept = logits.clone()",
            expected,
            answer,
            "" if _PRINT_LOSS.strip() in answer else _PRINT_LOSS,
            _SHOW_LOSS,
        ]
        shown = _SHOW_LINEAR_GRADIENTS if batch.is_linear else _SHOW_GRADIENT
        steps += [shown] if case.has_gradient else []
        steps += [_SHOW_OVERWRITTEN]
    run = "".join(f"{step.strip()}\n" for step in steps if step).replace("{call}", call).replace("{function}", function)
    definition_of_the_loss = _EXPECTED_LINEAR if batch.is_linear else _EXPECTED
    functions = [] if case.expects_error else [definition_of_the_loss.strip(), _ABOVE.strip()]
    if "accumulated(" in run:
        functions.append(_ACCUMULATED.strip())
    if "padded(" in run:
        functions.append(_PADDED.strip().replace("{samples}", str(batch.padded_to)))
    text = "\n".join(head)
    doc = (
        f'"""{text}\n"""'
        if '"""' not in text and "\\" not in text
        else "\n".join(f"# {line}".rstrip() for line in head)
    )
    imports = (
        "import base64\nimport sys\nimport zlib\n\nimport torch"
        if any("base64" in d for d in data)
        else "import sys\n\nimport torch"
    )
    anomaly = 'if "--anomaly" in sys.argv:\n    torch.autograd.set_detect_anomaly(True)'
    return "\n\n".join(
        (doc, imports, "\n" + definition + "\n", *(f"{f}\n" for f in functions), anomaly, "\n".join(data), run)
    )


def _leaves(batch: Batch, wants_gradient: bool) -> str:
    """The logits are hidden states here, and they are not all that gets a gradient."""
    names = [name for name in ("linear_weight", "linear_bias") if name in batch.options]
    leaves = ", ".join(['"hidden": logits', *(f'"{name}": {name}' for name in names)])
    lines = [f"leaves = {{{leaves}}}"]
    if wants_gradient:
        lines += ["for tensor in leaves.values():", "    tensor.requires_grad_()"]
    return "\n".join(lines)


def _function(implementation: Implementation, is_linear: bool) -> tuple[str, str]:
    """The expression to call, and the lines that define it."""
    form = next(
        f
        for f in ("cross_entropy", "loss_and_gradient", "linear_cross_entropy")
        if getattr(implementation, f) is not None
    )
    function: Any = getattr(implementation, form)
    expression, definition = _defined(function, form, implementation.source)
    if is_linear:
        call = f"{expression}(input, options.pop('linear_weight'), target, **options)"
        return "with_matrix", _wrapper(definition, "with_matrix", call)
    if form == "linear_cross_entropy":
        hidden = "(input.movedim(1, -1) if input.dim() > 2 else input)"
        classes = "input.shape[min(1, input.dim() - 1)]"
        call = f"{expression}({hidden}, torch.eye({classes}, dtype=input.dtype), target, **options)"
        return "through_identity", _wrapper(definition, "through_identity", call)
    return expression, definition


def _defined(function: Any, form: str, source: str) -> tuple[str, str]:
    if isinstance(function, ModuleCall):
        expression, definition = _defined(function.module_class, form, source)
        return "call_module", _wrapper(definition, "call_module", f"{expression}(**options)(input, target)")
    module, name = getattr(function, "__module__", None) or "", getattr(function, "__qualname__", "")
    if not module.startswith("xentcheck_loaded_") and _attribute(sys.modules.get(module), name) is function:
        return name, f"from {module} import {name.split('.')[0]}"
    where, _, attribute = source.rpartition(":")
    if where and not where.endswith(".py"):
        return attribute, f"from {where} import {attribute.split('.')[0]}"
    path = Path(where) if where else FOLDER / f"{source}.py"
    text = _without_the_suite(path.read_text())
    top_level = {n for node in ast.parse(text).body for n in _assigned(node)}
    if name.split(".")[0] in top_level and not top_level & _SCRIPT_NAMES and not _siblings(path, text):
        return name, f"# --- {path.name}\n{text}\n# ---"
    return _in_its_own_namespace(path, attribute or "implementation", form)


def _in_its_own_namespace(path: Path, attribute: str, form: str) -> tuple[str, str]:
    """For files whose names are this script's, too, or that import what lies beside them: every file as a module of its own."""
    texts: dict[str, str] = {}

    def gather(file: Path) -> None:
        text = "\n".join(
            line
            for line in file.read_text().splitlines()
            if not line.startswith("from xentcheck.implementation import")
        )
        for sibling in _siblings(file, text):
            if sibling.stem not in texts:
                gather(sibling)
        texts[file.stem] = text

    gather(path)
    lines = [
        "import types",
        "",
        "",
        "def stand_in(*_, **claims):",
        '    """For what the suite\'s own declarations in a file would make."""',
        "    return types.SimpleNamespace(**claims)",
        "",
        "",
        "def load(name, text):",
        "    sys.modules[name] = module = types.ModuleType(name)",
        "    module.__dict__.update(Implementation=stand_in, Deviation=stand_in, LOGITS_CAPABILITIES=frozenset(), LINEAR_CAPABILITIES=frozenset())",
        "    exec(compile(text, name, 'exec'), module.__dict__)",
        "    return module",
        "",
        "",
        *(f"{name}_file = load({name!r}, {text!r})" for name, text in texts.items()),
    ]
    root, *steps = attribute.split(".")
    return "loss_function", "\n".join(
        [
            *lines,
            f"loss_function = {path.stem}_file.{'.'.join([root, *steps])}",
            f"loss_function = getattr(loss_function, {form!r}, loss_function)",
        ]
    )


def _wrapper(definition: str, name: str, call: str) -> str:
    return f"{definition}\n\n\ndef {name}(input, target, **options):\n    return {call}"


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
    return "\n\n\n".join("\n".join(lines[_first_line(node) - 1 : node.end_lineno]) for node in kept)


def _imports_from_suite(node: ast.stmt) -> TypeGuard[ast.ImportFrom]:
    return isinstance(node, ast.ImportFrom) and node.module == "xentcheck.implementation"


def _siblings(path: Path, text: str) -> list[Path]:
    """The files beside a file that it imports."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = [
        node.module or "" if isinstance(node, ast.ImportFrom) else alias.name for node in nodes for alias in node.names
    ]
    files = [path.parent / f"{module.split('.')[0]}.py" for module in dict.fromkeys(modules) if module]
    return [file for file in files if file.is_file()]


def _assigned(node: ast.stmt) -> set[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def _names(node: ast.stmt) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])


def _options(batch: Batch) -> str:
    lines, shown = [], {}
    for name, value in batch.options.items():
        if isinstance(value, Tensor):
            lines.append(_tensor(name, value))
        shown[name] = name if isinstance(value, Tensor) else repr(value)
    return "\n".join([*lines, "options = {" + ", ".join(f'"{n}": {v}' for n, v in shown.items()) + "}"])


def _tensor(name: str, tensor: Tensor) -> str:
    """Assigns a tensor of the same values, dtype and strides."""
    dtype = str(tensor.dtype)
    flat = tensor.detach().reshape(-1)
    if flat.numel() <= LITERAL:
        values = [_literal(v) for v in flat.tolist()]
        rows = [", ".join(values[i : i + WIDTH]) for i in range(0, len(values), WIDTH)]
        body = f"[{rows[0]}]" if len(rows) == 1 else "[\n    " + ",\n    ".join(rows) + ",\n]" if rows else "[]"
        text = f"{name} = torch.tensor({body}, dtype={dtype}).reshape({tuple(tensor.shape)})"
    else:
        packed = base64.b64encode(
            zlib.compress(flat.contiguous().view(-1).view(torch.uint8).numpy().tobytes(), 9)
        ).decode()
        lines = "\n".join(f'    "{packed[i : i + 110]}"' for i in range(0, len(packed), 110))
        text = f"{name} = torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(\n{lines}\n))), dtype={dtype}).reshape({tuple(tensor.shape)})"
    if not tensor.is_contiguous():
        text += f"\n{_strides(name, tensor)}"
    return text


def _strides(name: str, tensor: Tensor) -> str:
    stride, shape = tuple(tensor.stride()), tuple(tensor.shape)
    if any(s == 0 for s in stride):
        index = ", ".join("slice(0, 1)" if s == 0 else "slice(None)" for s in stride)
        return f"{name} = {name}[{index}].clone().expand({shape})"
    size = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    memory = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())  # type: ignore[arg-type]
    gaps = torch.ones(len(memory), dtype=torch.bool)
    gaps[torch.arange(len(memory)).as_strided(shape, stride, tensor.storage_offset())] = False
    filler = _literal(memory[gaps][0].item()) if gaps.any() else "0"
    return f"{name} = torch.full(({size},), {filler}, dtype={name}.dtype).as_strided({shape}, {stride}).copy_({name})"


def _literal(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)
