"""A case and an implementation as a script that needs torch, NumPy and the implementation's own library, but not this suite.

It contains the text of the functions of ``definition`` and of the case's mode in ``modes``, so it computes and calls what the suite does.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch

from xentcheck.implementation import Implementation
from xentcheck.reference import definition
from xentcheck.repro import source as script_source
from xentcheck.repro.literals import options_literal, tensor_literal
from xentcheck.run import modes
from xentcheck.spec.batch import Batch
from xentcheck.spec.case import Case
from xentcheck.spec.needs import as_taken

_COMPARISON = """
print("expected loss", *expected_loss.reshape(-1).tolist()[:20])
print("found loss", *loss.detach().reshape(-1).tolist()[:20])
difference = (loss.detach().double() - torch.as_tensor(expected_loss)).abs()
print("largest difference of the loss", difference.max().item() if loss.numel() else "none, it is empty")
"""
_GRADIENTS = """
for name, expected_gradient in expected_gradients.items():
    quantity = "gradient" if name == "input" else f"gradient of {name}"
    if gradients[name] is None:
        print("found no", quantity)
        continue
    found_gradient, expected_gradient = gradients[name].detach().double(), torch.as_tensor(expected_gradient)
    difference = (found_gradient - expected_gradient).abs().nan_to_num(torch.inf)
    for i in difference.reshape(-1).topk(min(5, difference.numel())).indices:
        where = tuple(n.item() for n in torch.unravel_index(i, difference.shape))
        print(quantity, "at", list(where), "expected", expected_gradient[where].item(), "found", found_gradient[where].item())
"""
_OVERWRITTEN = """
if not torch.equal(kept.nan_to_num(), {input}.detach().nan_to_num()):
    print("the {words} were overwritten")
"""
_REFUSED = """
try:
    print("expected an error; found", loss_function({input}, target, **options))
except Exception as error:
    print("an error, as expected:", type(error).__name__, error)
"""
_ARRAYS = """
kept = {input}.clone()
loss, found = (torch.as_tensor(value) for value in loss_function({input}, target, upstream, **options))
gradients = {"input": found}
"""


def script(case: Case, implementation: Implementation, batch: Batch) -> str:
    """The script's text. Run, it prints the difference that the suite found."""
    batch = as_taken(batch, implementation.capabilities)
    parts = ["# --- the case", _data(batch)]
    if case.expects_error:
        parts += [_REFUSED]
    else:
        parts += ["# --- the right answer, by the definition", _expectation(batch), "# --- the call"]
        has_gradient = case.has_gradient and "backward" in implementation.capabilities
        parts += [_ARRAYS if implementation.form == "loss_and_gradient" else _call(batch, has_gradient)]
        parts += [_COMPARISON, _GRADIENTS if has_gradient else "", _OVERWRITTEN]
    words = "hidden states" if batch.is_linear else "logits"
    parts = [part.replace("{input}", _input(batch)).replace("{words}", words) for part in parts]
    rest = "\n\n".join(part.strip() for part in parts if part)
    imports = _imports(rest)
    function = script_source.definition(implementation, batch.is_linear, script_source.defined(f"{imports}\n{rest}"))
    anomaly = 'if "--anomaly" in sys.argv:\n    torch.autograd.set_detect_anomaly(True)'
    return "\n\n".join([_head(case, implementation), imports, anomaly, "# --- the loss", function, rest]) + "\n"


def _head(case: Case, implementation: Implementation) -> str:
    lines = [f"{case.id}, {implementation.name} {implementation.version}".rstrip(), "", case.clause.requirement]
    lines += [f"({case.why})"] if case.why else []
    lines += [*case.clause.sources, "", "With --anomaly autograd names the operation whose backward pass returned NaN."]
    text = "\n".join(lines)
    if '"""' in text or "\\" in text:
        return "\n".join(f"# {line}".rstrip() for line in lines)
    return f'"""{text}\n"""'


def _imports(text: str) -> str:
    standard = {
        "import base64": "base64.",
        "import sys": "",
        "import zlib": "zlib.",
        "from contextlib import contextmanager": "@contextmanager",
        "from types import SimpleNamespace": "SimpleNamespace(",
    }
    others = {"import numpy as np": r"\bnp\.", "import torch": "", "from torch import Tensor": r"\bTensor\b"}
    lines = [line for line, use in standard.items() if use in text]
    return "\n".join([*lines, "", *(line for line, use in others.items() if re.search(use, text))])


def _data(batch: Batch) -> str:
    lines = [tensor_literal(_input(batch), batch.input), tensor_literal("target", batch.target)]
    lines += [options_literal(batch.options)]
    lines += ["upstream = None" if batch.upstream is None else tensor_literal("upstream", batch.upstream)]
    if batch.direction is not None:
        lines.append(tensor_literal("direction", torch.from_numpy(batch.direction).to(batch.input.dtype)))
    return "\n".join(lines)


def _input(batch: Batch) -> str:
    return "hidden" if batch.is_linear else "logits"


# --- the right answer


def _expectation(batch: Batch) -> str:
    """The function ``expected``, which computes float64 cases in a wider type, and the functions of ``definition`` that it calls."""
    is_double = batch.input.dtype == torch.float64
    widened, narrowed = (".astype(np.longdouble)", ".astype(np.float64)") if is_double else ("", "")
    positions, classes, s = len(batch.valid), batch.classes, batch.options.get("label_smoothing")
    if batch.has_probabilities:
        lines = [f"valid, t = np.ones({positions}, dtype=bool), None", f"wanted = {_rows('target', batch)}"]
    else:
        lines = ["t = target.numpy().reshape(-1).astype(np.int64)"]
        lines += [f"valid = ~np.isin(t, {list(batch.ignore_values)})", "t = t[valid]"]
        lines += [f"wanted = one_hot(t, {classes})"]
    if batch.is_linear:
        bias = 'numbers(options["linear_bias"])' if "linear_bias" in batch.options else "None"
        lines += ['h, matrix = numbers(hidden)[valid], numbers(options["linear_weight"])']
        lines += [f"x = linear(h, matrix, {bias})"]
    else:
        lines += [f"x = {_rows('logits', batch)}[valid]"]
    lines += ['w = numbers(options["weight"])' if "weight" in batch.options else f"w = np.ones({classes})"]
    lines += [f"wq = w * smoothed(wanted, {s!r})" if s else "wq = w * wanted"]
    lines += ["A, lse = wq.sum(axis=1, keepdims=True), log_sum_exp(x)"]
    above = "np.ones(1)" if batch.upstream is None else "numbers(upstream).reshape(-1)"
    lines += [f"u = np.broadcast_to({above}, {positions})[valid, None]"]
    if batch.reduction == "mean":
        normalizer = batch.options.get("normalizer")
        normalizer = None if normalizer is None else float(normalizer)
        lines += [f"D = denominator('mean', {normalizer}, w, t, {positions})"]
        lines += ["loss, u = losses(wq, x, lse).sum() / D, u / D"]
    elif batch.reduction == "sum":
        lines += ["loss = losses(wq, x, lse).sum()"]
    else:
        lines += [f"loss = scatter(losses(wq, x, lse), valid).reshape({batch.positions})"]
    lines += ["d = u * gradient(A, softmax(x, lse), wq)"]
    if batch.is_linear:
        lines += ["gradients = {name: a @ b for name, (a, b) in linear_gradients(d, h, matrix).items()}"]
        lines += ['gradients["input"] = scatter(gradients["input"], valid)']
        lines += ['gradients["linear_bias"] = gradients["linear_bias"][:, 0]']
        names = list(batch.differentiated)
        lines += [f"return loss{narrowed}, {{name: gradients[name]{narrowed} for name in {names}}}"]
    else:
        back = "scatter(d, valid)"
        if len(batch.input.shape) != 2:
            back = f"np.moveaxis({back}.reshape({(*batch.positions, classes)}), -1, {batch.class_axis})"
        lines += [f'return loss{narrowed}, {{"input": {back}{narrowed}}}']
    body = "\n".join(f"    {line}" for line in lines)
    function = f'@np.errstate(all="ignore")\ndef expected():\n    """Loss and gradient, with the ignored positions deleted."""\n{body}'
    numbers = f"def numbers(tensor):\n    return tensor.detach().double().numpy(){widened}"
    of_definition = [f for f in vars(definition).values() if inspect.isfunction(f) and f"{f.__name__}(" in body]
    functions = [*map(_source, of_definition), numbers, function]
    return "\n\n\n".join(functions) + "\n\n\nexpected_loss, expected_gradients = expected()"


def _rows(name: str, batch: Batch) -> str:
    if batch.input.dim() == 2:
        return f"numbers({name})"
    return f"np.moveaxis(numbers({name}), {batch.class_axis}, -1).reshape({len(batch.valid)}, {batch.classes})"


# --- how the loss is called


def _call(batch: Batch, has_gradient: bool) -> str:
    """The functions of the case's mode, and the lines that run it."""
    mode = modes.mode_of(batch)
    functions = [*mode.helpers, mode.steps, *([mode.wrap] if mode.wrap else [])]
    text = "\n\n\n".join(map(_source, functions))
    tensors = ", ".join(f'"{name}": ' + (_input(batch) if name == "input" else name) for name in batch.differentiated)
    values = {
        "input": _input(batch),
        "target": "target",
        "options": "options",
        "upstream": "upstream",
        "differentiated": f"{{{tensors}}}",
        "direction": "direction",
        "ignore_values": repr(batch.ignore_values),
        "padded_to": repr(batch.padded_to),
        "padding": repr(batch.padding) if batch.padded_to is not None else "",
    }
    fields = {name: values[name] for name in values if re.search(rf"\bbatch\.{name}\b", text)}
    function = "loss_function" if mode.wrap is None else f"{mode.wrap.__name__}(loss_function, batch)"
    lines = [f"batch = SimpleNamespace({', '.join(f'{name}={value}' for name, value in fields.items())})"]
    lines += ["kept = {input}.clone()", f"steps = {mode.steps.__name__}({function}, batch)", "loss = next(steps)"]
    if has_gradient:
        lines += _backward(mode, batch)
    return f"{text}\n\n\n" + "\n".join(lines)


def _backward(mode: modes.Mode, batch: Batch) -> Iterable[str]:
    others = [f'"{name}": {name}.grad' for name in batch.differentiated if name != "input"]
    if mode.steps is modes.double_backward:
        yield "found, second = steps"
        yield 'print("the derivative of the gradient along `direction`", second)'
    elif mode.steps is modes.edited:
        yield from ["try:", "    found = next(steps)", "except RuntimeError as error:", "    found = None"]
        yield '    print("autograd raised an error because of the edit, which is also right:", error)'
    else:
        yield "found = next(steps)"
    gradients = ", ".join(['"input": found', *others])
    yield f"gradients = {{{gradients}}}"


def _source(function: Callable[..., Any]) -> str:
    """A function's text without annotations, whose types a script does not import. Not by ``ast.unparse``, which differs between Pythons."""
    lines = inspect.getsource(function).splitlines()
    spans = []
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.arg) and node.annotation is not None:
            spans.append((node.annotation, node.col_offset + len(node.arg)))
        elif isinstance(node, ast.FunctionDef) and node.returns is not None:
            line = lines[node.returns.lineno - 1]
            spans.append((node.returns, line.rindex(" ->", 0, node.returns.col_offset)))
    for annotation, start in sorted(spans, key=lambda span: -span[1]):
        line = lines[annotation.lineno - 1]
        after = line[annotation.end_col_offset :]
        lines[annotation.lineno - 1] = line[:start] + ("=" + after[3:] if after.startswith(" = ") else after)
    return re.sub(r" +# (noqa|type):.*", "", "\n".join(lines))
