"""Scripts that reproduce a case: they need nothing but torch, and show the difference that the suite found.

All of them run in one ``python -I`` in an empty folder, where ``xentcheck`` cannot be imported.
"""

import ast
import inspect
import json
import math
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fakes
from xentcheck.implementation import find
from xentcheck.reference import definition
from xentcheck.repro.script import script
from xentcheck.run import modes
from xentcheck.run.examiner import Examiner
from xentcheck.spec.batch import build
from xentcheck.spec.loader import load, load_all

pytestmark = pytest.mark.slow

FAKES = Path(fakes.__file__)

OWN = '''
    """Losses of somebody else's."""

    from __future__ import annotations

    import functools

    import torch
    import torch.nn.functional as F

    from xentcheck.implementation import LOGITS_CAPABILITIES, Deviation, Implementation

    ignored, options, upstream, target, expected, loss = -1, {"reduction": "sum"}, 3.0, 5, 7, 9  # names that a script might use, too


    def uses_its_globals(input, target):
        assert (ignored, options, upstream, expected) == (-1, {"reduction": "sum"}, 3.0, 7)
        return F.cross_entropy(input, target) * upstream


    def doubled(function):
        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            return 2 * function(*args, **kwargs)

        return wrapped


    @doubled
    def decorated(input, target):
        return F.cross_entropy(input, target)


    class Loss(torch.nn.Module):
        def __init__(self, reduction="mean", label_smoothing=0.0):
            super().__init__()
            self.reduction, self.label_smoothing = reduction, label_smoothing

        def forward(self, input, target):
            return 1.5 * F.cross_entropy(input, target, reduction=self.reduction, label_smoothing=self.label_smoothing)


    class Namespace:
        @staticmethod
        def inner(input, target):
            return 1.25 * F.cross_entropy(input, target)


    def with_a_helper(input, target):
        import math

        return F.cross_entropy(input, target) + math.pi


    partial = functools.partial(F.cross_entropy, label_smoothing=0.5)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.5)

    implementation = Implementation(
        name="own",
        cross_entropy=uses_its_globals,
        capabilities=LOGITS_CAPABILITIES - {"vmap"},
        deviations=(Deviation("a/*", aspect="loss", observed="x", fault="value", link="y"),),
    )
    unnamed = Implementation(name="unnamed", cross_entropy=lambda input, target: 1.75 * F.cross_entropy(input, target))
    arrays = Implementation(name="arrays", loss_and_gradient=lambda input, target, upstream: (1.0, 0 * input))
'''
HELPED = "from own_helper import factor\nimport torch.nn.functional as F\n\n\ndef helped(input, target):\n    return factor * F.cross_entropy(input, target)\n"

# Positional arguments, an import over several lines with another name, and a helper that imports the file.
POSITIONAL = """import torch
from positional_helper import twice
from xentcheck.implementation import (
    ARRAY_CAPABILITIES,
    LOGITS_CAPABILITIES as OFFERED,
    Implementation,
)


def wrong(input, target):
    return twice(torch.nn.functional.cross_entropy(input, target))


def both(input, target, upstream):
    return 2.0, 0 * input


positional = Implementation("positional", wrong, capabilities=OFFERED - {"vmap"})
arrays = Implementation("arrays", None, both, capabilities=ARRAY_CAPABILITIES - {"weight"})
"""
POSITIONAL_HELPER = "def twice(loss):\n    import positional\n\n    return loss * 2\n"

SOFTMAX = """from torch.nn.functional import cross_entropy, nll_loss, softmax


def squared(input, target):
    return nll_loss(2 * softmax(input, 1).log(), target)


def normalized(input, target, *, normalizer):
    return 1.5 * cross_entropy(input, target, reduction="sum") / normalizer
"""

# name: (what --impl names, the case)
PLAIN = "logits: {shape: [3, 4]}"
SCRIPTS = {
    "native": ("native", PLAIN),
    "native in float64": (
        "native",
        "dtype: float64, logits: {shape: [3, 4]}, weight: random, label_smoothing: 0.1, ignore_index: 2, target: {ignore: first}",
    ),
    "native and NaN in an ignored row": (
        "native",
        "logits: {shape: [3, 4], set: [{rows: ignored, value: nan}]}, target: {ignore: first}",
    ),
    "native over nothing": ("native", "logits: {shape: [3, 4]}, target: {ignore: all}"),
    "native in bfloat16": ("native", "dtype: bfloat16, logits: {shape: [5, 4], scale: 20}, reduction: none"),
    "the module of torch": ("torch.nn:CrossEntropyLoss", f"{PLAIN}, label_smoothing: 0.5"),
    "a function of a file": ("{fakes}:off_by_a_thousandth", PLAIN),
    "a gradient that is wrong": (
        "{fakes}:gradient_off_by_a_thousandth",
        f"{PLAIN}, reduction: none, upstream: per-position",
    ),
    "a gradient of zeros": ("{fakes}:zero_gradient", PLAIN),
    "a NaN loss": ("{fakes}:nan_loss", PLAIN),
    "no gradient": ("{fakes}:gradient_elsewhere", PLAIN),
    "an overwritten input": ("{fakes}:overwrites_input", PLAIN),
    "several ignore values": (
        "{fakes}:off_by_a_thousandth",
        f"{PLAIN}, ignore_index: [1, -1], target: {{ignore: {{prefix: 2}}}}",
    ),
    "an error that is raised": ("{fakes}:raises", PLAIN),
    "an error as expected": (
        "{fakes}:raises",
        "logits: {shape: [3, 4]}, target: {values: [0, 9, 1]}, expect: {error: {}}",
    ),
    "no error where one is expected": (
        "{fakes}:always_a_number",
        "logits: {shape: [3, 4]}, target: {values: [0, 9, 1]}, expect: {error: {}}",
    ),
    "no_grad": ("{fakes}:off_by_a_thousandth", f"{PLAIN}, mode: no_grad"),
    "inference_mode": ("{fakes}:off_by_a_thousandth", f"{PLAIN}, mode: inference_mode"),
    "vmap": ("torch.nn.functional:cross_entropy", f"{PLAIN}, mode: vmap, reduction: none"),
    "func_grad": ("torch.nn.functional:cross_entropy", f"{PLAIN}, mode: func_grad, upstream: 3"),
    "twice": ("{fakes}:gradient_off_by_a_thousandth", f"{PLAIN}, mode: twice"),
    "autocast": ("{fakes}:off_by_a_thousandth", f"{PLAIN}, mode: autocast"),
    "double_backward": ("{fakes}:off_by_a_thousandth", f"{PLAIN}, mode: double_backward, dtype: float64"),
    "compile": ("native", f"{PLAIN}, mode: compile"),
    "detached": ("{fakes}:off_by_a_thousandth", f"{PLAIN}, mode: detached"),
    "deterministic": ("{fakes}:gradient_off_by_a_thousandth", f"{PLAIN}, mode: deterministic"),
    "two_losses": ("{fakes}:gradient_off_by_a_thousandth", f"{PLAIN}, mode: two_losses"),
    "edited": ("{fakes}:gradient_off_by_a_thousandth", f"{PLAIN}, mode: edited"),
    "accumulated": (
        "{fakes}:off_by_a_thousandth",
        "logits: {shape: [7, 4]}, mode: accumulated, weight: random, target: {ignore: last}",
    ),
    "accumulated probabilities": (
        "torch.nn.functional:cross_entropy",
        "logits: {shape: [7, 4]}, mode: accumulated, target: {probabilities: random}, label_smoothing: 0.1",
    ),
    "padded": (
        "{fakes}:off_by_a_thousandth",
        "logits: {shape: [3, 4]}, padded_to: 50, reduction: none, upstream: per-position, target: {ignore: first}",
    ),
    "probabilities of images": (
        "torch.nn.functional:cross_entropy",
        "logits: {shape: [2, 4, 3]}, target: {probabilities: random}, weight: random",
    ),
    "a normalizer": ("{folder}/own_softmax.py:normalized", f"{PLAIN}, normalizer: 100"),
    "a large batch": (
        "{fakes}:off_by_a_thousandth",
        "logits: {shape: [40, 50]}, target: {ignore: {fraction: 0.3}}, reduction: none, upstream: per-position",
    ),
    "a large batch in bfloat16": ("{fakes}:gradient_off_by_a_thousandth", "dtype: bfloat16, logits: {shape: [40, 50]}"),
    "a large strided batch": (
        "{fakes}:off_by_a_thousandth",
        "logits: {shape: [40, 50], layout: strided}, target: {layout: strided}",
    ),
    "the gaps of strided logits": ("{fakes}:takes_memory_as_it_comes", "logits: {shape: [3, 4], layout: strided}"),
    "memory that is not in order": ("{fakes}:takes_memory_as_it_comes", "logits: {shape: [3, 4], layout: transposed}"),
    "transposed logits": (
        "{fakes}:off_by_a_thousandth",
        "logits: {shape: [2, 4, 3], layout: transposed}, target: {layout: transposed}",
    ),
    "expanded logits": (
        "{fakes}:off_by_a_thousandth",
        "logits: {shape: [3, 4], layout: expanded}, target: {layout: expanded}",
    ),
    "channels_last logits": ("{fakes}:off_by_a_thousandth", "logits: {shape: [2, 3, 4, 5], layout: channels_last}"),
    "an offset": ("{fakes}:off_by_a_thousandth", "logits: {shape: [3, 4], layout: offset}, target: {layout: offset}"),
    "an expanded upstream": (
        "{fakes}:gradient_off_by_a_thousandth",
        f"{PLAIN}, reduction: none, upstream: {{scalar: 3, layout: expanded}}",
    ),
    "a transposed upstream": (
        "{fakes}:gradient_off_by_a_thousandth",
        "logits: {shape: [2, 4, 3]}, reduction: none, upstream: {per_position: true, layout: transposed}",
    ),
    "an unbatched input": ("{fakes}:off_by_a_thousandth", "logits: {shape: [4]}"),
    "quotes in the reason": ("native", f'{PLAIN}, why: \'a """reason""" \\d\''),
    "an empty batch": ("{fakes}:right", "logits: {shape: [0, 4]}, reduction: none"),
    "targets of uint8": ("{fakes}:off_by_a_thousandth", f"{PLAIN}, target: {{dtype: uint8}}"),
    "a loss in arrays": ("{folder}/forms.py:arrays", PLAIN),
    "a linear loss": ("{folder}/forms.py:linear", PLAIN),
    "a module class of a file": ("{folder}/own.py:Loss", f"{PLAIN}, label_smoothing: 0.25, reduction: sum"),
    "a file with names of the script": ("{folder}/own.py:uses_its_globals", PLAIN),
    "a file that imports a name of the script": ("{folder}/own_softmax.py:squared", PLAIN),
    "a statement in a file": ("{folder}/own.py:implementation", PLAIN),
    "a decorated function": ("{folder}/own.py:decorated", PLAIN),
    "a function of a class": ("{folder}/own.py:Namespace.inner", PLAIN),
    "an import inside the function": ("{folder}/own.py:with_a_helper", PLAIN),
    "a partial function": ("{folder}/own.py:partial", PLAIN),
    "a module that is made already": ("{folder}/own.py:criterion", PLAIN),
    "a lambda of a statement": ("{folder}/own.py:unnamed", PLAIN),
    "a helper beside the file": ("{folder}/helped.py:helped", PLAIN),
    "positional arguments": ("{folder}/positional.py:positional", PLAIN),
    "positional arguments, in arrays": ("{folder}/positional.py:arrays", PLAIN),
    "a file whose name is no identifier": ("{folder}/hel-ped.py:helped", PLAIN),
    **{
        f"the shipped {name}": (name, f"{PLAIN}, target: {{ignore: first}}")
        for name in ("native_module", "nll", "remapped", "masked_mean", "filtered", "nan_guard")
    },
}
FORMS = f"import sys\nsys.path.append({str(FAKES.parent)!r})\nimport fakes\nfrom xentcheck.implementation import Implementation\narrays = Implementation(name='arrays', loss_and_gradient=fakes.arrays)\nlinear = Implementation(name='linear', linear_cross_entropy=fakes.linear)\n"

DRIVER = '''
import builtins, contextlib, io, json, sys, traceback
import torch

class NotHere:
    """Even where the suite is installed, no script may reach it."""
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "xentcheck":
            raise ModuleNotFoundError("No module named 'xentcheck'", name="xentcheck")

sys.meta_path.insert(0, NotHere())
sys.path += json.loads(sys.argv[2])
results = {}
for name, text in json.load(open(sys.argv[1])).items():
    screen, error = io.StringIO(), ""
    with contextlib.redirect_stdout(screen):
        try:
            exec(compile(text, name, "exec"), {"__name__": "__main__"})
        except Exception:
            error = traceback.format_exc()
    torch.set_grad_enabled(True)
    results[name] = [screen.getvalue(), error]
json.dump({"results": results, "suite": [m for m in sys.modules if m.split(".")[0] == "xentcheck"]}, sys.stdout)
'''


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The case, the implementation and the script, or the error, of each name."""
    folder = tmp_path_factory.mktemp("losses")
    (folder / "own.py").write_text(textwrap.dedent(OWN))
    (folder / "own_helper.py").write_text("factor = 2.5\n")
    (folder / "helped.py").write_text(HELPED)
    (folder / "positional.py").write_text(POSITIONAL)
    (folder / "hel-ped.py").write_text(HELPED)
    (folder / "positional_helper.py").write_text(POSITIONAL_HELPER)
    (folder / "forms.py").write_text(FORMS)
    (folder / "own_softmax.py").write_text(SOFTMAX)
    (folder / "small.yaml").write_text(
        "clause: small\ntitle: Small\nrequirement: It holds.\nsources: ['https://example.org']\ncases:\n"
        + "".join(f"  - {{id: c{n}, {body}}}\n" for n, (_, body) in enumerate(SCRIPTS.values()))
    )
    found = {}
    for (name, (specification, _)), case in zip(SCRIPTS.items(), load(folder / "small.yaml"), strict=True):
        (implementation,) = find(specification.format(fakes=FAKES, folder=folder))
        found[name] = case, implementation, script(case, implementation, build(case))
    return found


@pytest.fixture(scope="module")
def printed(made, tmp_path_factory):
    """What each script printed, and how it failed."""
    folder, empty = tmp_path_factory.mktemp("driver"), tmp_path_factory.mktemp("empty")
    (folder / "scripts.json").write_text(json.dumps({name: text for name, (_, _, text) in made.items()}))
    (folder / "driver.py").write_text(DRIVER)
    # fakes is the library of the two forms that import it
    command = [
        sys.executable,
        "-I",
        str(folder / "driver.py"),
        str(folder / "scripts.json"),
        json.dumps([str(FAKES.parent)]),
    ]
    done = subprocess.run(command, cwd=empty, capture_output=True, text=True, timeout=240, check=True)
    return json.loads(done.stdout)


def largest(found, expected):
    """As torch's max: NaN if there is one."""
    return float(np.max(abs(found - np.asarray(expected, dtype=float)))) if found.size else None


def number_after(words, screen):
    match = re.search(rf"^{words} (\S+)$", screen, re.MULTILINE)
    return float(match[1]) if match else None


def gradient_lines(screen):
    """Expected and found values of the positions that differ most."""
    return [
        (float(e), float(f))
        for e, f in re.findall(r"^gradient at \[[\d, ]+\] expected (\S+) found (\S+)$", screen, re.MULTILINE)
    ]


def assert_same_number(shown, wanted, name):
    assert shown is not None, f"no {name} is shown"
    assert math.isnan(shown) == math.isnan(wanted), (shown, wanted)
    assert math.isnan(wanted) or shown == pytest.approx(wanted, rel=1e-3, abs=1e-15)


NO_DIFFERENCE = {"an error that is raised", "an error as expected", "no error where one is expected", "an empty batch"}


@pytest.mark.parametrize("name", [n for n in SCRIPTS if n not in NO_DIFFERENCE])
def test_a_script_shows_the_difference_that_the_suite_found(made, printed, name):
    case, implementation, _ = made[name]
    screen, error = printed["results"][name]
    assert not error
    examiner = Examiner()
    seen = examiner.observation(case, implementation).first
    right = examiner.truth(case, {"empty_mean": "nan"})
    assert_same_number(
        number_after("largest difference of the loss", screen), largest(seen.loss, right.loss), "difference of the loss"
    )
    if seen.gradient is not None:
        expected, found = next(iter(gradient_lines(screen)), (None, None))
        assert expected is not None, "no gradient is shown"
        wanted = largest(seen.gradient, right.gradient)
        assert_same_number(abs(expected - found), wanted, "difference of the gradient")
    elif case.has_gradient:
        assert "found no gradient" in screen
    else:
        assert "gradient" not in screen


def test_a_script_names_the_positions_that_differ_most(made, printed):
    shown = gradient_lines(printed["results"]["a gradient of zeros"][0])
    case, _, _ = made["a gradient of zeros"]
    right = abs(Examiner().truth(case, {}).gradient.astype(float)).reshape(-1)
    assert [found for _, found in shown] == [0.0] * 5
    assert [abs(expected) for expected, _ in shown] == pytest.approx(sorted(right, reverse=True)[:5])


def test_no_script_needs_the_suite(made, printed):
    assert printed["suite"] == []
    for name, (_, _, text) in made.items():
        assert not re.search(r"^\s*(import|from) xentcheck", text, re.MULTILINE), name


def test_errors_are_shown(printed):
    assert "RuntimeError: the kernel is out of order" in printed["results"]["an error that is raised"][1]
    assert printed["results"]["an error as expected"] == [
        "an error, as expected: RuntimeError the kernel is out of order\nsecond line\n",
        "",
    ]
    screen, error = printed["results"]["no error where one is expected"]
    assert re.match(r"expected an error\W+found tensor\(", screen)
    assert not error


def test_a_loss_without_a_backward_pass_is_not_asked_for_one(made):
    case, implementation, text = made["native"]
    assert "backward" in text
    forward = replace(implementation, capabilities=implementation.capabilities - {"backward"})
    without = script(case, forward, build(case)).split("# --- the call")[1]
    assert "next(steps)" in without
    assert "found = next(steps)" not in without


def test_an_overwritten_input_is_shown(printed):
    assert "the logits were overwritten" in printed["results"]["an overwritten input"][0]
    assert "overwritten" not in printed["results"]["native"][0]
    assert "overwritten" not in printed["results"]["native and NaN in an ignored row"][0]


def test_an_empty_batch_has_nothing_to_compare(printed):
    screen, error = printed["results"]["an empty batch"]
    assert not error
    assert "largest difference of the loss none, it is empty" in screen


def test_the_second_derivative_is_shown(made, printed):
    case, implementation, _ = made["double_backward"]
    second = Examiner().observation(case, implementation).first.second
    shown = printed["results"]["double_backward"][0].split("tensor(")[1].split("]]")[0]
    assert [float(n) for n in re.findall(r"-?\d\.\d+(?:e-\d+)?", shown)] == pytest.approx(second.reshape(-1), abs=1e-4)


def test_a_script_says_what_it_is_about(made):
    case, _, text = made["a function of a file"]
    ahead = text.split("import sys")[0]
    assert ahead.startswith(f'"""{case.id}, off_by_a_thousandth')
    assert "https://example.org" in ahead
    assert "--anomaly" in ahead


def test_a_file_of_the_suite_loses_only_what_ties_it_to_the_suite(made):
    _, _, text = made["the shipped nan_guard"]
    assert "Deviation(" not in text
    assert "LOGITS_CAPABILITIES" not in text
    assert "_HIDDEN" in text  # a plain constant of the file
    assert "def cross_entropy" in text


def test_small_tensors_are_written_out_and_large_ones_packed(made):
    assert "base64" not in made["a function of a file"][2]
    assert "base64" in made["a large batch"][2]
    assert len(made["a large batch"][2]) < 30_000


def test_a_script_carries_the_functions_of_the_definition_and_of_the_mode(made):
    text = made["accumulated"][2]
    for function in (definition.log_sum_exp, definition.losses, modes.accumulated, modes.eager):
        tree, printed = (ast.parse(t).body for t in (inspect.getsource(function), text))
        (same,) = (n for n in printed if isinstance(n, ast.FunctionDef) and n.name == function.__name__)
        assert ast.dump(_without_annotations(tree[0])) == ast.dump(same)
    assert "torch.compile(" in made["compile"][2]
    assert "torch.compile(" not in text


def _without_annotations(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
    return tree


def test_names_that_the_script_uses_keep_a_file_apart(made):
    """The file imports another ``softmax`` than the one that the script defines."""
    _, _, text = made["a file that imports a name of the script"]
    assert "own_softmax_file = load(" in text


def test_what_an_installed_package_has_is_imported_from_there():
    """The file imports the function through a file beside it, which has imported it from the package maskedce; implementations/maskedce.py
    has the name of that package."""
    text = _of("maskedce_inplace")
    assert "from maskedce import masked_cross_entropy" in text
    assert "load(" not in text
    assert "_maskedce" not in text.replace("maskedce_inplace", "")
    assert "CONVENTIONS" not in text


def _of(name):
    case = next(case for case in load_all() if case.id == "ignored-positions/seed-001-unlabelled")
    return script(case, find(name)[0], build(case))
