"""A case and an implementation as a script that needs neither this suite nor pytest: torch, and the implementation's own library."""

from __future__ import annotations

import ast
import base64
import inspect
import math
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xentcheck.batch import Batch
from xentcheck.case import Case
from xentcheck.implementation import Implementation

LITERAL = 400  # up to so many values are written out; more are packed
WIDTH = 8  # values in a line

_EXPECTED = '''
def expected(logits, target):
    """Loss and gradient by the definition, in float64, with the ignored positions deleted."""
    axis = 0 if logits.dim() == 1 else 1
    x = logits.detach().double().movedim(axis, -1).reshape(-1, logits.shape[axis])
    t = target.reshape(-1).long()
    valid = ~torch.isin(t, torch.tensor(ignored))
    weight = options.get("weight", torch.ones(x.shape[1])).double()
    smoothing = options.get("label_smoothing", 0.0)
    q = torch.full_like(x[valid], smoothing / x.shape[1]).scatter_add(1, t[valid, None], torch.full_like(x[valid, :1], 1 - smoothing))
    wq = weight * q
    lse = x[valid].logsumexp(1, keepdim=True)
    losses = torch.zeros(len(t), dtype=torch.float64)
    losses[valid] = torch.where(wq != 0, wq * (lse - x[valid]), 0.0).sum(1)
    reduction = options.get("reduction", "mean")
    divisor = weight[t[valid]].sum() if reduction == "mean" else 1.0
    loss = losses.reshape(target.shape) if reduction == "none" else losses.sum() / divisor
    above = torch.ones(1) if upstream is None else upstream
    above = above.double().reshape(-1).expand(len(t))[valid, None] / divisor
    gradient = torch.zeros_like(x)
    gradient[valid] = above * (wq.sum(1, keepdim=True) * (x[valid] - lse).exp() - wq)
    shape = [n for i, n in enumerate(logits.shape) if i != axis]
    return loss, gradient.reshape(*shape, -1).movedim(-1, axis)
'''


def script(case: Case, implementation: Implementation, batch: Batch) -> str:
    """The script's text. Printed values show the same difference that the suite found."""
    function, definition = _function(implementation)
    question = case.question
    parts = [
        f'"""{case.id}, {implementation.name} {implementation.version}'.rstrip(),
        "",
        case.clause.requirement,
        *([f"({case.why})"] if case.why else []),
        *case.clause.sources,
        "",
        "Run it as it is; with --anomaly autograd names the operation whose backward pass returned NaN.",
        '"""',
        "",
        "import sys",
        "",
        "import torch",
        "",
        definition,
        "",
        'if "--anomaly" in sys.argv:',
        "    torch.autograd.set_detect_anomaly(True)",
        "",
        _tensor("logits", batch.input),
        _tensor("target", batch.target),
        _options(batch),
        f"ignored = {list(batch.ignore_values)}",
        "upstream = None" if batch.upstream is None else _tensor("upstream", batch.upstream),
        "",
        *([_EXPECTED.strip(), ""] if not case.expects_error else []),
        f"kept = logits.clone()  # mode: {question.mode}",
    ]
    return "\n".join([*parts, *_run(case, function, implementation)]) + "\n"


def _run(case: Case, function: str, implementation: Implementation) -> list[str]:
    mode = case.question.mode
    if case.expects_error:
        return [
            "try:",
            f"    print('expected an error, found', {function}(logits, target, **options))",
            "except Exception as error:",
            "    print('an error, as expected:', type(error).__name__, error)",
        ]
    show = "print('expected loss', *expected_loss.reshape(-1).tolist()[:20])"
    lines = ["expected_loss, expected_gradient = expected(logits, target)", show]
    call = f"{function}(logits, target, **options)"
    if implementation.loss_and_gradient is not None:
        lines += [f"loss, gradient = {function}(logits, target, upstream, **options)", "loss, gradient = torch.as_tensor(loss), torch.as_tensor(gradient)"]
    elif mode == "vmap":
        one = f"lambda x, t: (lambda loss: (loss.sum(), loss.squeeze(0)))({function}(x.unsqueeze(0), t.unsqueeze(0), **options))"
        lines += [f"gradient, loss = torch.func.vmap(torch.func.grad({one}, has_aux=True))(logits, target)"]
    elif mode == "func_grad":
        lines += [
            f"loss, pull_back = torch.func.vjp(lambda logits: {call}, logits)",
            "gradient = pull_back(torch.ones_like(loss) if upstream is None else upstream.to(loss.dtype))[0]",
        ]
    else:
        before = {
            "no_grad": "torch.set_grad_enabled(False)",
            "compile": f"compiled = torch.compile({function})",
            "inference_mode": "torch.set_grad_enabled(False)",
        }.get(mode)
        call = call.replace(f"{function}(", "compiled(", 1) if mode == "compile" else call
        lines += [*([before] if before else []), "logits.requires_grad_()"]
        lines += ['with torch.autocast("cpu", dtype=torch.bfloat16):', f"    loss = {call}"] if mode == "autocast" else [f"loss = {call}"]
        if case.has_gradient:
            above = "upstream if upstream is None else upstream.to(loss.dtype)"
            if mode == "twice":
                lines += [f"loss.backward({above}, retain_graph=True)", "logits.grad = None"]
            if mode == "double_backward":
                lines += [f"gradient, = torch.autograd.grad(loss, logits, {above}, create_graph=True)", "print('gradient of the gradient along itself', torch.autograd.grad(gradient.square().sum() / 2, logits)[0])"]
            else:
                lines += ["print('found loss   ', *loss.detach().reshape(-1).tolist()[:20])", f"loss.backward({above})", "gradient = logits.grad"]
    lines += ["print('found loss   ', *loss.detach().reshape(-1).tolist()[:20])"] if "print('found loss   '" not in "\n".join(lines) else []
    lines += ["print('largest difference of the loss', (loss.detach().double() - expected_loss).abs().max().item() if loss.numel() else 'none, it is empty')"]
    if case.has_gradient:
        lines += [
            "if gradient is None:",
            "    print('found no gradient')",
            "else:",
            "    difference = (gradient.detach().double() - expected_gradient).abs()",
            "    print('largest difference of the gradient', difference.max().item() if difference.numel() else 'none, it is empty')",
            "    for i in difference.nan_to_num(torch.inf).reshape(-1).topk(min(5, difference.numel())).indices.tolist():",
            "        where = [n.item() for n in torch.unravel_index(torch.tensor(i), difference.shape)]",
            "        print('gradient at', where, 'expected', expected_gradient[tuple(where)].item(), 'found', gradient[tuple(where)].item())",
        ]
    lines += ["if not torch.equal(kept.nan_to_num(), logits.detach().nan_to_num()):", "    print('the logits were overwritten')"]
    return lines


def _function(implementation: Implementation) -> tuple[str, str]:
    """The name to call, and the lines that define it: an import, or the source of a file that is loaded by path."""
    function: Any = implementation.cross_entropy or implementation.loss_and_gradient or implementation.linear_cross_entropy
    module, name = getattr(function, "__module__", "") or "", getattr(function, "__qualname__", "")
    if implementation.linear_cross_entropy is not None:
        inner, definition = _named(function, module, name)
        return "through_identity", (
            f"{definition}\n\n\ndef through_identity(input, target, **options):\n"
            f"    return {inner}(input, torch.eye(input.shape[-1], dtype=input.dtype), target, **options)\n"
        )
    return _named(function, module, name)


def _named(function: Any, module: str, name: str) -> tuple[str, str]:
    closure = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
    if "module_class" in closure:  # an nn.Module class, taken as cls(**options)(input, target)
        inner, definition = _named(closure["module_class"], closure["module_class"].__module__, closure["module_class"].__qualname__)
        return "cross_entropy", f"{definition}\n\n\ndef cross_entropy(input, target, **options):\n    return {inner}(**options)(input, target)\n"
    if not module.startswith("xentcheck_loaded_"):
        root = name.split(".")[0]
        return name, f"from {module} import {root}"
    path = Path(inspect.getfile(function))
    return name, f"# --- {path.name}\n{_without_the_suite(path.read_text())}\n# ---"


def _without_the_suite(text: str) -> str:
    """A file's source less what ties it to this suite: the import, and the statements that use what it brings."""
    tree = ast.parse(text)
    dropped: set[int] = set()
    names: set[str] = set()
    for node in tree.body:
        imports = isinstance(node, ast.ImportFrom) and (node.module or "") == "xentcheck.implementation"
        if imports:
            names |= {alias.asname or alias.name for alias in node.names}
        uses = not isinstance(node, (ast.FunctionDef, ast.ClassDef)) and any(isinstance(n, ast.Name) and n.id in names for n in ast.walk(node))
        if imports or uses:
            dropped |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
            names |= {t.id for t in getattr(node, "targets", []) if isinstance(t, ast.Name)}
    lines = [line for number, line in enumerate(text.splitlines(), 1) if number not in dropped]
    return "\n".join(lines).strip()


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
        packed = base64.b64encode(zlib.compress(flat.contiguous().view(-1).view(torch.uint8).numpy().tobytes(), 9)).decode()
        lines = "\n".join(f'    "{packed[i : i + 110]}"' for i in range(0, len(packed), 110))
        text = (
            "import base64, zlib\n"
            f"{name} = torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(\n{lines}\n))), dtype={dtype}).reshape({tuple(tensor.shape)})"
        )
    if not tensor.is_contiguous():
        text += f"\n{_strides(name, tensor)}"
    return text


def _strides(name: str, tensor: Tensor) -> str:
    stride, shape = tuple(tensor.stride()), tuple(tensor.shape)
    if any(s == 0 for s in stride):
        index = ", ".join("slice(0, 1)" if s == 0 else "slice(None)" for s in stride)
        return f"{name} = {name}[{index}].clone().expand({shape})"
    size = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    return f"{name} = torch.zeros({size}, dtype={name}.dtype).as_strided({shape}, {stride}).copy_({name})"


def _literal(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)
