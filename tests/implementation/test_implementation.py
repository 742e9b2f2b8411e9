"""Finding what is to be tested, what it is taken to claim, and keeping one implementation from another."""

import dataclasses
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import xentcheck
from maskedce import linear_masked_cross_entropy
from xentcheck.implementation import (
    ARRAY_CAPABILITIES,
    FOLDER,
    LINEAR_CAPABILITIES,
    LOGITS_CAPABILITIES,
    Deviation,
    Implementation,
    ImplementationError,
    find,
    from_callable,
    load_file,
    names,
)
from xentcheck.run.examiner import Examiner
from xentcheck.run.verdict import Verdict, from_json, to_json
from xentcheck.spec import loader
from xentcheck.spec.capabilities import CAPABILITIES, FAULT_KINDS
from xentcheck.spec.loader import load, load_all

SUITE = Path(xentcheck.__file__).resolve().parents[1]
LOGITS, TARGET = torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 1.0]]), torch.tensor([2, 0])
RIGHT = torch.nn.functional.cross_entropy(LOGITS, TARGET)

LOSSES = """
    import torch
    import torch.nn.functional as F
    from torch.nn.functional import cross_entropy as borrowed
    from xentcheck.implementation import Implementation

    def first(input, target, **options):
        '''Says first.

        And more.'''
        return F.cross_entropy(input, target, **options)

    def second(input, target, *, reduction="mean"):
        return F.cross_entropy(input, target, reduction=reduction)

    def _private(input, target):
        return None

    anonymous = lambda input, target: None

    class Loss(torch.nn.Module):
        def __init__(self, reduction="mean", ignore_index=-100):
            super().__init__()
            self.options = {"reduction": reduction, "ignore_index": ignore_index}

        def forward(self, input, target):
            return F.cross_entropy(input, target, **self.options)

    class Namespace:
        @staticmethod
        def inner(input, target):
            return F.cross_entropy(input, target)

    class NoLoss:
        pass

    stated = Implementation(name="mine", cross_entropy=first, capabilities=frozenset({"float32"}), empty_mean="zero", version="1.2")
    number = 3

    def saying_more(input, target):
        return F.cross_entropy(input, target)

    saying_more.implementation = stated
"""


@pytest.fixture
def source(tmp_path):
    """``source(text)``: a Python file with that text."""

    def write(text=LOSSES, name="losses.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    return write


def message(specification, **arguments):
    with pytest.raises(ImplementationError) as error:
        find(specification, **arguments)
    return str(error.value)


def loss(implementation):
    return implementation.cross_entropy(LOGITS, TARGET)


# --- the forms of --impl


def test_names_of_the_folder():
    found = find("native,nll")
    assert [(i.name, i.source) for i in found] == [("native", "native"), ("nll", "nll")]
    assert found[0].version == torch.__version__
    assert "as PyTorch ships it" in found[0].description
    assert all(torch.equal(loss(i), RIGHT) for i in found)


def test_all_is_every_file_of_the_folder(tmp_path, source):
    for name in ("b", "a", "_helper"):
        source(
            f"from xentcheck.implementation import Implementation\nimplementation = Implementation(name={name!r}, cross_entropy=len)",
            f"{name}.py",
        )
    assert names(tmp_path) == ["a", "b"]
    assert [i.name for i in find("all", tmp_path)] == ["a", "b"]


def test_all_is_without_other_libraries_and_field_is_these(tmp_path, source):
    begin = "from xentcheck.implementation import Adapter, Implementation\n"
    source(f"{begin}implementation = Implementation('own', len)", "own.py")
    source(f"{begin}implementation = Adapter('apart', 'a:b', requires=['a==1'])", "apart.py")
    source(f"{begin}implementation = Adapter('torch', 'torch:sum')", "torch.py")
    source(f"{begin}implementations = (Adapter('two_a', 'a:b'), Implementation('two_b', len))", "two.py")
    source("1 / 0", "worse.py")
    assert [i.name for i in find("all", tmp_path)] == ["own", "two_b", "worse"]
    assert [i.name for i in find("field", tmp_path)] == ["apart", "torch", "two_a"]


def test_every_shipped_implementation_loads_and_says_what_it_is():
    found = find("all,field")
    assert list(dict.fromkeys(find(i.source)[0].name for i in found)) == [i.name for i in found]
    assert {name.partition("_")[0] for name in names(FOLDER)} == {i.name.partition("_")[0] for i in found}
    assert {"native", "native_module", "nll", "remapped", "masked_mean", "filtered", "nan_guard"} <= {
        i.name for i in found
    }
    assert [i.name for i in found if not (i.description and (i.version or i.environment or i.unavailable))] == []


def test_a_function_of_a_module():
    (found,) = find("torch.nn.functional:cross_entropy")
    assert (found.name, found.source, found.version) == (
        "cross_entropy",
        "torch.nn.functional:cross_entropy",
        torch.__version__,
    )
    assert found.cross_entropy is torch.nn.functional.cross_entropy


def test_an_attribute_of_an_attribute(source):
    (found,) = find(f"{source()}:Namespace.inner")
    assert found.name == "inner"
    assert torch.equal(loss(found), RIGHT)


def test_a_function_of_a_file(source):
    path = source()
    (found,) = find(f"{path}:first")
    assert (found.name, found.source, found.description) == ("first", f"{path}:first", "Says first.")
    assert torch.equal(loss(found), RIGHT)


def test_every_public_function_that_a_file_defines(source):
    path = source()
    found = find(f"{path}:*")
    assert [(i.name, i.source) for i in found] == [
        ("first", f"{path}:first"),
        ("second", f"{path}:second"),
        ("saying_more", f"{path}:saying_more"),
    ]


def test_a_module_class_is_made_for_every_call(source):
    (found,) = find(f"{source()}:Loss")
    assert torch.equal(loss(found), RIGHT)
    assert torch.equal(found.cross_entropy(LOGITS, TARGET, reduction="sum"), 2 * RIGHT)
    assert found.capabilities >= {"ignore_index", "reduction_sum"}
    assert not found.capabilities & {"weight", "label_smoothing"}


def test_torchs_own_module_class():
    (found,) = find("torch.nn:CrossEntropyLoss")
    assert found.capabilities >= {"weight", "ignore_index", "reduction_none", "label_smoothing"}
    assert torch.equal(found.cross_entropy(LOGITS, TARGET, label_smoothing=0.0), RIGHT)


def test_a_module_class_without_a_constructor_has_no_option(source):
    (found,) = find(
        source(
            "import torch\nclass Loss(torch.nn.Module):\n    def forward(self, input, target):\n        return torch.nn.functional.cross_entropy(input, target)\n"
        ).as_posix()
        + ":Loss"
    )
    assert torch.equal(loss(found), RIGHT)
    assert not found.capabilities & {"weight", "label_smoothing", "ignore_index", "reduction_sum", "reduction_none"}


def test_a_module_made_already_has_the_options_of_its_forward(source):
    path = source("import torch\ncriterion = torch.nn.CrossEntropyLoss()")
    (found,) = find(f"{path}:criterion")
    assert torch.equal(loss(found), RIGHT)
    assert not found.capabilities & {"weight", "label_smoothing", "ignore_index", "reduction_sum", "reduction_none"}


def test_a_stated_implementation_stays_as_it_is(source):
    path = source()
    (found,) = find(f"{path}:stated")
    assert (found.name, found.source, found.capabilities, found.empty_mean, found.version) == (
        "mine",
        f"{path}:stated",
        {"float32"},
        "zero",
        "1.2",
    )


def test_a_callable_with_an_implementation_says_more(source):
    (found,) = find(f"{source()}:saying_more")
    assert (found.name, found.capabilities, found.empty_mean) == ("saying_more", {"float32"}, "zero")


def test_several_forms_at_once_in_their_order(source):
    path = source()
    assert [i.name for i in find(f"nll, {path}:second ,{path}:Loss,native,")] == ["nll", "second", "Loss", "native"]


def test_the_same_name_twice_gets_a_number(source):
    path = source()
    assert [i.name for i in find(f"{path}:first,{path}:first,native,{path}:first,native")] == [
        "first",
        "first-2",
        "native",
        "first-3",
        "native-2",
    ]


def test_a_number_does_not_take_a_name_that_is_there(source):
    path = source("def a(input, target):\n    return input.sum()\n")
    found = find(f"{path}:a,{path}:a,{path}:a")
    assert len({i.name for i in found}) == 3


# --- what cannot be used


def test_an_unknown_name_gets_the_nearest():
    text = message("natve")
    assert text.startswith("--impl natve: there is no implementation of that name; did you mean native")
    assert ", filtered, " in text
    assert "package.module:attribute or path/to/file.py:attribute" in text


@pytest.mark.parametrize("nothing", ["", ",", " , "])
def test_nothing_named(nothing):
    assert message(nothing) == "--impl names no implementation; expected for instance --impl native,maskedce"


def test_a_private_file_of_the_folder_is_no_name(tmp_path, source):
    source("", "_helper.py")
    assert "there is no implementation of that name" in message("_helper", folder=tmp_path)


def test_a_file_of_the_folder_without_an_implementation(tmp_path, source):
    path = source("implementation = 3", "mine.py")
    assert (
        message("mine", folder=tmp_path)
        == f"{path}: expected `implementation = Implementation(...)`, or several as `implementations = (...)`; found 3"
    )


def test_a_file_without_an_attribute(source):
    path = source()
    assert message(str(path)) == f"--impl {path}: expected {path}:attribute or {path}:*"


def test_a_missing_file():
    assert message("nowhere/losses.py:loss") == "--impl nowhere/losses.py:loss: there is no file nowhere/losses.py"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\ny = 2\n1 / 0\n", ":3: the file cannot be imported: ZeroDivisionError: division by zero"),
        ("def f(:\n", ":1: the file cannot be imported: SyntaxError: "),
        (
            "import json\n\nimport no_such_library\n",
            ":3: the file cannot be imported: ModuleNotFoundError: No module named 'no_such_library'",
        ),
        ("def inner():\n    raise KeyError('x')\n\ninner()\n", ":2: the file cannot be imported: KeyError: 'x'"),
        ("import sys\nsys.exit(3)\n", ":2: the file cannot be imported: SystemExit: 3"),
        ("import json\njson.loads('{')\n", ":2: the file cannot be imported: JSONDecodeError: "),
    ],
)
def test_a_file_that_fails_to_import_names_the_line(source, text, said):
    path = source(text)
    for attribute in ("f", "*"):
        assert message(f"{path}:{attribute}").startswith(f"{path}{said}")


def test_a_file_that_fails_leaves_nothing_behind(source):
    before, modules = list(sys.path), set(sys.modules)
    message(f"{source('import no_such_library')}:f")
    assert sys.path == before
    assert not {m for m in set(sys.modules) - modules if not m.startswith("xentcheck_loaded_")}


def test_an_interrupt_while_loading_is_not_swallowed(source):
    with pytest.raises(KeyboardInterrupt):
        find(f"{source('raise KeyboardInterrupt')}:f")


def test_a_module_that_cannot_be_imported():
    assert message("no_such_package.losses:loss").startswith(
        "--impl no_such_package.losses:loss: the module no_such_package.losses cannot be imported: ModuleNotFoundError"
    )


def test_a_missing_attribute_gets_the_nearest(source):
    path = source()
    assert message(f"{path}:frist") == f"--impl {path}:frist: no attribute 'frist'; did you mean first?"
    assert message("torch.nn.functional:cross_entropi").startswith(
        "--impl torch.nn.functional:cross_entropi: no attribute 'cross_entropi'; did you mean cross_entropy"
    )


def test_an_attribute_that_is_no_callable(source):
    path = source()
    assert message(f"{path}:number") == f"--impl {path}:number: expected a callable; found int 3"


def test_a_class_that_is_no_module(source):
    path = source()
    assert (
        message(f"{path}:NoLoss")
        == f"{path}:NoLoss: expected a function, an nn.Module class or an Implementation; found the class NoLoss"
    )


@pytest.mark.parametrize(
    "text", ["", "import math\nx = 3\nf = lambda: 0\ndef _g(): ...\nfrom math import exp\nclass A: ...\n"]
)
def test_a_file_without_a_public_function(source, text):
    path = source(text)
    assert message(f"{path}:*") == f"--impl {path}:*: {path} defines no public function"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "expected one callable as cross_entropy, loss_and_gradient or linear_cross_entropy; found 0"),
        ({"cross_entropy": len, "linear_cross_entropy": len}, "found 2"),
        ({"cross_entropy": 3}, "expected one callable"),
        ({"cross_entropy": len, "capabilities": {"wieght"}}, "unknown capability 'wieght'; did you mean weight?"),
        ({"cross_entropy": len, "tentative": frozenset({"kdim"})}, "unknown capability 'kdim'; did you mean k_dim?"),
        (
            {"cross_entropy": len, "empty_mean": "0"},
            "empty_mean (the mean over no position): expected one of nan, zero; found '0'",
        ),
        (
            {"cross_entropy": len, "half_loss_dtype": "bfloat16"},
            "half_loss_dtype (the dtype of a bfloat16 or float16 loss): expected one of input, float32; found 'bfloat16'",
        ),
    ],
)
def test_a_wrong_statement(arguments, said):
    with pytest.raises(ImplementationError, match=re.escape("implementation mine: ")) as error:
        Implementation(name="mine", **arguments)
    assert said in str(error.value)


def test_a_wrong_statement_in_a_file_is_said_as_it_is(source):
    path = source(
        "from xentcheck.implementation import Implementation\ni = Implementation(name='mine', cross_entropy=len, capabilities={'wieght'})"
    )
    assert message(f"{path}:i") == "implementation mine: unknown capability 'wieght'; did you mean weight?"


# --- what a signature claims

OPTIONS = {
    "weight",
    "label_smoothing",
    "ignore_index",
    "ignore_index_in_range",
    "ignore_index_list",
    "reduction_sum",
    "reduction_none",
}


def of_lists(input, target, ignore_index=-100):
    values = torch.tensor(ignore_index if isinstance(ignore_index, list) else [ignore_index])
    kept = ~torch.isin(target, values)
    return torch.nn.functional.cross_entropy(input[kept], target[kept])


@pytest.mark.parametrize(
    ("function", "claimed"),
    [
        (lambda input, target: None, set()),
        (lambda input, target, *, weight=None: None, {"weight"}),
        (lambda input, target, label_smoothing=0.0: None, {"label_smoothing"}),
        (lambda input, target, reduction="mean": None, {"reduction_sum", "reduction_none"}),
        (lambda input, target, ignore_index=-100: 3.0, {"ignore_index", "ignore_index_in_range"}),
        (lambda input, target, *, padding_idx=0, axis=1: None, set()),
        (lambda input, target, **options: None, OPTIONS - {"ignore_index_list"}),
        (of_lists, {"ignore_index", "ignore_index_in_range", "ignore_index_list"}),
        (torch.nn.functional.cross_entropy, OPTIONS - {"ignore_index_list"}),
        (max, OPTIONS - {"ignore_index_list"}),
    ],
)
def test_a_signature_claims_its_options_and_no_other(function, claimed):
    found = from_callable(function, "f")
    assert found.capabilities & OPTIONS == claimed
    assert not found.conventions
    assert found.capabilities >= {
        "reduction_mean",
        "backward",
        "float64",
        "float32",
        "bfloat16",
        "float16",
        "non_contiguous",
    }
    assert not found.capabilities & {"double_backward", "func_grad", "vmap", "compile"}


def test_a_parameter_linear_weight_makes_a_fused_linear_loss():
    found = from_callable(linear_masked_cross_entropy, "f")
    assert (found.cross_entropy, found.linear_cross_entropy) == (None, linear_masked_cross_entropy)
    assert found.capabilities >= OPTIONS | {"linear", "linear_bias"}
    assert "autocast" not in found.capabilities
    few = from_callable(lambda hidden, linear_weight, target: None, "f")
    assert few.capabilities & (OPTIONS | {"linear", "linear_bias"}) == {"linear"}


def test_what_no_signature_tells_is_asked_without_blame():
    found = from_callable(lambda input, target: None, "f")
    unclear = {"k_dim", "unbatched", "uint8_target", "autocast", "class_probabilities"}
    assert found.tentative == unclear | {"ignore_minus_100"}
    assert found.tentative <= found.capabilities
    native = from_callable(torch.nn.functional.cross_entropy, "f")
    assert native.tentative == unclear | {"ignore_index_in_range"}
    assert "ignore_minus_100" in native.capabilities


def test_an_ignore_index_takes_minus_100_as_well():
    assert Implementation(name="n", cross_entropy=len, capabilities={"ignore_index"}).capabilities == {
        "ignore_index",
        "ignore_minus_100",
    }


def test_a_loss_that_answers_a_list_wrongly_offers_none():
    assert (
        "ignore_index_list"
        not in from_callable(
            lambda input, target, ignore_index=-100: input.sum() * (2.0 if isinstance(ignore_index, list) else 1.0), "f"
        ).capabilities
    )


def broadcasts(input, target, ignore_index=-100):
    valid = target != torch.as_tensor(ignore_index)
    return torch.nn.functional.cross_entropy(input[valid], target[valid])


def first_only(input, target, ignore_index=-100):
    valid = target != (ignore_index[0] if isinstance(ignore_index, list) else ignore_index)
    return torch.nn.functional.cross_entropy(input[valid], target[valid])


@pytest.mark.parametrize(("function", "offered"), [(broadcasts, False), (first_only, True)])
def test_who_takes_a_list_by_accident_does_not_offer_lists_and_who_takes_it_wrongly_does(function, offered):
    logits, target = torch.eye(3), torch.tensor([2, 1, 0])
    assert torch.equal(function(logits, target, [1]), function(logits, target, 1))
    assert ("ignore_index_list" in from_callable(function, "f").capabilities) is offered


def test_who_asks_decides_whether_lists_are_taken():
    asked = []

    def ask(question):
        asked.append(question)
        return True

    found = from_callable(linear_masked_cross_entropy, "f", ask=ask)
    assert "ignore_index_list" in found.capabilities
    assert "ignore_index_list" not in from_callable(lambda input, target: None, "f", ask=ask).capabilities
    assert len(asked) == 1, "one without ignore_index is not asked"


def test_a_module_class_is_known_as_one():
    found = from_callable(torch.nn.CrossEntropyLoss, "f")
    assert found.cross_entropy.module_class is torch.nn.CrossEntropyLoss


def test_asking_leaves_nothing_behind():
    def patches(input, target, ignore_index=-100):
        torch.set_default_dtype(torch.float64)
        torch.nn.functional.nll_loss = None
        torch.rand(1)
        return input.sum()

    before = torch.nn.functional.nll_loss, torch.get_rng_state()
    from_callable(patches, "f")
    assert torch.nn.functional.nll_loss is before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert torch.get_default_dtype() == torch.float32


FORMS = {
    "cross_entropy": (LOGITS_CAPABILITIES, {"linear", "linear_bias"}),
    "loss_and_gradient": (
        ARRAY_CAPABILITIES,
        {"linear", "linear_bias", "double_backward", "compile", "autocast", "func_grad", "vmap"},
    ),
    "linear_cross_entropy": (LINEAR_CAPABILITIES, {"non_finite", "many_classes", "k_dim", "unbatched"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_declared_is_all_that_the_form_can_offer(form):
    offered, impossible = FORMS[form]
    found = Implementation(name="n", **{form: len})
    assert (found.form, found.function) == (form, len)
    assert found.capabilities == offered == CAPABILITIES.keys() - impossible
    assert dataclasses.replace(found, name="m").capabilities == offered


@pytest.mark.parametrize(
    ("form", "capability"), [(form, name) for form, (_, impossible) in FORMS.items() for name in sorted(impossible)]
)
def test_a_form_that_claims_what_it_cannot_offer_is_an_error(form, capability):
    with pytest.raises(ImplementationError) as error:
        Implementation(name="n", capabilities=FORMS[form][0] | {capability}, **{form: len})
    assert str(error.value).startswith(f"implementation n: claims {capability}, which the form {form} cannot offer; ")


def test_what_is_tentative_is_claimed():
    with pytest.raises(ImplementationError, match="tentative: expected some of its capabilities; found k_dim"):
        Implementation(name="n", cross_entropy=len, capabilities={"weight"}, tentative={"k_dim", "weight"})


def test_a_set_of_capabilities_will_do():
    found = Implementation(name="n", cross_entropy=len, capabilities={"weight"}, tentative={"weight"})
    assert isinstance(found.capabilities, frozenset)
    assert isinstance(found.tentative, frozenset)


def test_conventions_are_those_stated():
    assert Implementation(name="n", cross_entropy=len, empty_mean="nan", int32_target="taken").conventions == {
        "empty_mean": "nan",
        "int32_target": "taken",
    }


# --- isolation


COUNTING = """
    state = []

    def first(input, target):
        state.append(1)
        return input.sum() * 0 + len(state)

    def second(input, target):
        state.append(1)
        return input.sum() * 0 + len(state)
"""


def unasked(specification):
    """Loaded without a call."""
    return find(specification, ask=lambda question: None)


def test_functions_of_one_file_do_not_share_its_state(source):
    first, second = unasked(f"{source(COUNTING)}:*")
    assert [loss(first), loss(first), loss(second)] == [1, 2, 1]


def test_a_file_that_is_named_several_times_is_executed_once(source):
    path = source(COUNTING)
    first, second, again = unasked(
        f"{path}:first,native,{path.parent}/../{path.parent.name}/{path.name}:second,{path}:first"
    )[::2] + unasked(f"{path}:first")
    assert first.cross_entropy.__globals__ is second.cross_entropy.__globals__
    assert [loss(first), loss(second), loss(again)] == [1, 2, 1], "another search executes it again"


HELPED = """
    import {name}

    def first(input, target):
        {name}.state.append(1)
        return len({name}.state)

    def second(input, target):
        {name}.state.append(1)
        return len({name}.state)
"""


def test_a_helper_module_beside_the_file_is_private_to_it(source):
    source("state = []", "xentcheck_test_helper.py")
    first, second = unasked(f"{source(HELPED.format(name='xentcheck_test_helper'))}:*")
    assert [loss(first), loss(first), loss(second)] == [1, 2, 1]
    assert "xentcheck_test_helper" not in sys.modules


def test_a_helper_is_found_by_the_name_that_it_has_now(source):
    """As torch.compile does with the module of each function that it meets."""
    source("def helped():\n    return 1", "xentcheck_test_helper.py")
    path = source("from xentcheck_test_helper import helped\n\ndef f(input, target):\n    return helped")
    found = unasked(f"{path}:f")
    helped = loss(found[0])
    assert sys.modules[helped.__globals__["__name__"]].helped is helped


def test_a_helper_package_beside_the_file_is_private_to_it(source):
    source("state = []", "xentcheck_test_package/__init__.py")
    first, second = unasked(f"{source(HELPED.format(name='xentcheck_test_package'))}:*")
    assert [loss(first), loss(first), loss(second)] == [1, 2, 1]
    assert "xentcheck_test_package" not in sys.modules


def test_two_files_have_helpers_of_the_same_name(tmp_path, source):
    for folder, number in (("a", 1), ("b", 2)):
        source(f"number = {number}", f"{folder}/xentcheck_test_helper.py")
        source(
            "import xentcheck_test_helper\n\ndef f(input, target):\n    return xentcheck_test_helper.number\n",
            f"{folder}/losses.py",
        )
    found = unasked(f"{tmp_path}/a/losses.py:f,{tmp_path}/b/losses.py:f")
    assert [loss(i) for i in found] == [1, 2]


def test_libraries_stay_imported(source):
    sys.modules.pop("colorsys", None)
    load_file(source("import colorsys"))
    assert "colorsys" in sys.modules


def test_loading_a_file_adds_its_folder_to_the_end_of_the_path(source):
    path = source(name="xentcheck_test_losses.py")
    before = list(sys.path)
    find(f"{path}:first")
    assert sys.path == [*before, str(path.parent)]
    assert sys.modules["xentcheck_test_losses"].__file__ == str(path)
    load_file(path)
    assert sys.path == [*before, str(path.parent)]


def test_a_file_takes_the_name_of_nothing_else(source):
    before = list(sys.path)
    import json

    for name in (
        "json.py",
        "tabnanny.py",
        "a-b.py",
        "class.py",
    ):  # imported; could be imported; not importable by an import statement
        find(f"{source(name=name)}:first")
    assert sys.modules["json"] is json
    assert not {"tabnanny", "a-b"} & set(sys.modules)
    assert set(sys.path) <= {*before, str(source().parent)}


@pytest.mark.slow
def test_functions_of_a_file_reach_a_spawned_process(source, tmp_path):
    path = source(
        """
        import xentcheck_test_helper

        def doubled(number):
            return xentcheck_test_helper.factor * number

        def loss(input, target):
            return input.sum()
        """,
        "files/xentcheck_test_spawned.py",
    )
    source("factor = 2", "files/xentcheck_test_helper.py")
    script = source(
        f"""
        if __name__ == "__main__":
            import multiprocessing

            from xentcheck.implementation import find

            (found,) = find("{path}:loss")
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.apply(found.cross_entropy.__globals__["doubled"], (21,)))
        """,
        "spawning.py",
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd="/", timeout=300)
    assert (done.stdout, done.returncode) == ("42\n", 0), done.stderr


# --- known deviations


def deviation(cases="small/one", aspect="loss", **more):
    return Deviation(cases, aspect=aspect, observed="NaN", fault="nan", link="https://example.org", **more)


@pytest.mark.parametrize(
    ("pattern", "case", "applies"),
    [
        ("small/one[mean]", "small/one[mean]", True),
        ("small/one[mean]", "small/one[m]", False),
        ("small/one[mean]", "small/onem", False),
        ("small/one", "small/one[mean]", True),
        ("small/one", "small/one-more", False),
        ("small", "small/one", True),
        ("small", "smaller/one", False),
        ("small/*", "small/one[mean]", True),
        ("*[mean]", "small/one[mean]", True),
        ("small/???", "small/one", True),
        ("small/o.e", "small/one", False),
        (("large", "small/one"), "small/one", True),
        ((), "small/one", False),
    ],
)
def test_a_deviation_applies_to_the_cases_it_names(pattern, case, applies):
    assert deviation(pattern).applies_to(case, "loss") is applies
    assert not deviation(pattern).applies_to(case, "gradient")


@pytest.mark.parametrize(
    ("condition", "version", "holds"),
    [
        ("", "2.13.0+cpu", True),
        ("<2.14", "2.13.0+cpu", True),
        ("<2.13", "2.13.0+cpu", False),
        ("==2.13.0", "2.13.0+cu121", True),
        (">=2.6,<2.10", "2.9.1", True),
        (">=2.14", "2.14.0a0+git1234", False),
        ("<2.14", "2.13.0.dev20261101+cpu", True),
    ],
)
def test_a_deviation_may_depend_on_the_version_of_torch(monkeypatch, condition, version, holds):
    monkeypatch.setattr(torch, "__version__", version)
    known = deviation(torch=condition)
    assert known.holds_here is holds
    assert known.applies_to("small/one", "loss") is holds


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"aspect": "gradiant"}, "aspect: expected one of loss, gradient, shape, rejection, purity, deletion, "),
        ({"aspect": "gradiant"}, "; found 'gradiant'; did you mean gradient?"),
        ({"fault": "NaN"}, f"fault: expected one of {', '.join(FAULT_KINDS)}; found 'NaN'; did you mean nan?"),
        ({"fault": "raise"}, "; found 'raise'; did you mean raised?"),
        ({"fault": "xyz"}, "; found 'xyz'."),
    ],
)
def test_a_misspelt_deviation_is_an_error(wrong, says):
    with pytest.raises(ImplementationError, match=r"test_implementation.py:\d+.*: Deviation\('a'\): ") as error:
        Deviation(
            **{"cases": "a", "aspect": "loss", "observed": "NaN", "fault": "nan", "link": "https://example.org"} | wrong
        )
    assert says in str(error.value)


@pytest.mark.parametrize("fault", FAULT_KINDS)
def test_every_kind_of_fault_can_be_known(fault):
    assert Deviation("a", aspect="loss", observed="x", fault=fault, link="y").fault == fault


@pytest.mark.parametrize(
    "module", ["spec.capabilities", "implementation.declare", "implementation.load", "implementation"]
)
def test_declarations_are_read_without_torch(module):
    code = f"""
import sys, types

sys.modules["xentcheck"] = types.ModuleType("xentcheck")  # in place of what the package itself imports
sys.modules["xentcheck"].__path__ = [{str(SUITE / "xentcheck")!r}]
import xentcheck.{module}

sys.exit(sorted({{"torch", "numpy"}} & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_first_deviation_that_applies_is_taken():
    known = (
        deviation("small/two"),
        deviation("small/*", aspect="gradient"),
        deviation("small/*"),
        deviation("small/one"),
    )
    found = Implementation(name="n", cross_entropy=len, deviations=known)
    assert found.deviation_for("small/one", "loss") is known[2]
    assert found.deviation_for("small/one", "gradient") is known[1]
    assert found.deviation_for("other/one", "loss") is None


def test_a_deviation_with_a_pattern_that_matches_nothing_is_stale():
    known = (deviation("small/*"), deviation(("small/one", "small/gone")), deviation("gone"))
    found = Implementation(name="n", cross_entropy=len, deviations=known)
    assert found.stale_deviations(["small/one[a]", "small/two"]) == [known[1], known[2]]
    assert found.stale_deviations([]) == list(known)


def test_a_deviation_knows_its_file_and_lines(source):
    path = source(
        """
        from xentcheck.implementation import Deviation, Implementation

        known = [
            Deviation("a", aspect="loss", observed="x", fault="nan", link="y"),
            Deviation(
                "b",
                aspect="loss",
                observed="x", fault="nan", link="y",
            ),
        ]
        """
    )
    one, several = load_file(path).known
    place = f"{path.parent.name}/losses.py"
    assert one.where == f"{place}:5"
    assert several.where == (f"{place}:6-10" if sys.version_info >= (3, 11) else several.where)
    assert dataclasses.replace(one, cases="c").where == one.where


def test_a_loss_without_a_reduction_is_asked_for_its_mean_only(write):
    """It is not called with an option that it does not have: one at its default is left out."""
    found = from_callable(lambda input, target: torch.nn.functional.cross_entropy(input, target), "f")
    assert "reduction_mean" in found.capabilities
    assert not found.capabilities & {"reduction_option", "reduction_sum", "reduction_none"}
    plain = "logits: {shape: [3, 4]}"
    some = load(
        write(f"id: left-out, {plain}", f"id: mean, {plain}, reduction: mean", f"id: sum, {plain}, reduction: sum")
    )
    examiner = Examiner()
    assert [examiner.examine(one, "loss", found).status for one in some] == ["pass", "pass", "unsupported"]


# --- one that cannot be loaded


def test_one_that_cannot_be_imported_does_not_end_the_run_for_the_others(source):
    path = source("import no_such_library\n", "broken.py")
    native, broken = find(f"native,{path}:loss")
    assert (native.name, native.broken) == ("native", "")
    assert (broken.name, broken.source) == ("loss", f"{path}:loss")
    assert broken.broken.startswith(f"{path}:1: the file cannot be imported: ModuleNotFoundError")
    assert [i.name for i in find(f"no_such_package.losses:f,native,{path}:*")] == ["f", "native", "broken"]


def test_every_case_of_a_broken_one_is_an_error(source, case):
    _, broken = find(f"native,{source('1 / 0', 'broken.py')}:loss")
    asked = case("logits: {shape: [3, 4]}")
    examiner = Examiner()
    for aspect in examiner.aspects(asked, broken):
        verdict = examiner.examine(asked, aspect, broken)
        assert (verdict.status, verdict.message) == ("error", broken.broken)


def test_one_broken_file_of_the_folder_does_not_end_all(tmp_path, source):
    source("import xentcheck.implementation as x\nimplementation = x.Implementation('a', len)", "a.py")
    source("import xentcheck.implementation as x\nimplementation = x.Implementation('b', 3)", "b.py")
    found = find("all", tmp_path)
    assert [(i.name, bool(i.broken)) for i in found] == [("a", False), ("b", True)]


def test_nothing_that_can_be_loaded_is_an_error(source):
    one, two = source("1 / 0", "one.py"), source("2 / 0", "two.py")
    assert [line.partition(": ")[0] for line in message(f"{one}:f,{two}:f").splitlines()] == [f"{one}:1", f"{two}:1"]


@pytest.mark.slow
@pytest.mark.parametrize("isolated", [[], ["--isolate"]], ids=["here", "isolated"])
def test_a_run_with_a_broken_one_tests_the_others_and_is_red(run, write, source, isolated):
    cases = write("id: one, logits: {shape: [3, 4]}")
    broken = source("import no_such_library\n", "broken.py")
    status, screen = run("--impl", f"native,{broken}:loss", "--cases", cases, "--tb=no", "-rA", *isolated)
    assert status == 1
    assert "implementations: native " in screen
    assert ", loss (broken)" in screen
    assert {line.split("[")[-1] for line in screen.splitlines() if line.startswith("PASSED")} == {"native:small/one]"}
    failed = [line for line in screen.splitlines() if line.startswith("FAILED")]
    assert len(failed) >= 4
    assert all("[loss:small/one]" in line for line in failed)
    status, screen = run("--impl", f"{broken}:loss", "--cases", cases, *isolated)
    assert status == 4
    assert f"{broken}:1: the file cannot be imported: ModuleNotFoundError" in screen


# --- how a callable is called

SHAPES = """
    import torch
    import torch.nn.functional as F

    def masked(input, target, mask):
        return (F.cross_entropy(input, target, reduction="none") * mask).sum()

    def one_argument(batch):
        return batch[0].sum()

    class Weighted(torch.nn.Module):
        def __init__(self, classes):
            super().__init__()

        def forward(self, input, target):
            return F.cross_entropy(input, target)

    class Masked(torch.nn.Module):
        def forward(self, input, target, mask):
            return F.cross_entropy(input, target)

    made = Masked()

    def labels_first(labels, logits):
        return F.cross_entropy(logits, labels)

    def pair(input, target):
        return None, F.cross_entropy(input, target)

    def listed(input, target):
        return [F.cross_entropy(input, target)]

    def mapping(input, target):
        return {"rows": input, "loss": F.cross_entropy(input, target)}

    def none(input, target):
        F.cross_entropy(input, target)

    def number(input, target):
        return F.cross_entropy(input, target).item()

    def array(input, target):
        return F.cross_entropy(input, target).detach().numpy()

    def last_of_three(input, target):
        batch, length, classes = input.shape
        return F.cross_entropy(input.reshape(-1, classes), target.reshape(-1))

    def fused(hidden, linear_weight, target):
        return F.cross_entropy(hidden @ linear_weight.T, target), hidden
"""
EXPECTED = "expected {0}(input, target, ...) that returns a tensor; found "


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("masked", "masked(input, target, mask): missing a required argument: 'mask'; wrap it: lambda x, t, **o: masked(x, t, mask=..., **o)"),
        ("one_argument", "one_argument(batch): too many positional arguments; wrap it in a function of (input, target, **options)"),
        ("Weighted", "Weighted(classes): missing a required argument: 'classes'; wrap it: lambda x, t, **o: Weighted(classes=..., **o)(x, t)"),
        ("Masked", "Masked(self, input, target, mask): missing a required argument: 'mask'; wrap it: lambda x, t, **o: Masked(**o)(x, t, mask=...)"),
        ("made", "made(input, target, mask): missing a required argument: 'mask'; wrap it: lambda x, t, **o: made(x, t, mask=..., **o)"),
        ("labels_first", "one that takes the labels first; wrap it: lambda x, t, **o: labels_first(t, x, **o)"),
        ("pair", "one that returns a tuple; wrap it: lambda x, t, **o: pair(x, t, **o)[1]"),
        ("listed", "one that returns a list; wrap it: lambda x, t, **o: listed(x, t, **o)[0]"),
        ("mapping", "one that returns a dict; wrap it: lambda x, t, **o: mapping(x, t, **o)['loss']"),
        ("none", "one that returns None"),
        ("number", "one that returns a float"),
        ("array", None),  # it detaches, and NumPy's name depends on its version
        ("last_of_three", None),
    ],
)  # fmt: skip
def test_a_wrong_call_is_one_message_that_says_what_to_write(source, name, found):
    path = source(SHAPES)
    said = message(f"{path}:{name}")
    if found is not None:
        assert said == f"--impl {path}:{name}: {EXPECTED.format(name)}{found}"
    elif name == "array":
        assert "; found one that returns a" in said
    else:
        assert said == (
            f"--impl {path}:{name}: expected {name}(input, target, ...) with the classes in dimension 1 of input; "
            f"found one that takes them last; wrap it: lambda x, t, **o: {name}(x.movedim(1, -1), t, **o)"
        )


def test_a_wrong_call_of_a_fused_loss(source):
    path = source(SHAPES)
    assert message(f"{path}:fused") == (
        f"--impl {path}:fused: expected fused(hidden, linear_weight, target, ...) that returns a tensor; "
        "found one that returns a tuple; wrap it: lambda h, w, t, **o: fused(h, w, t, **o)[0]"
    )


def test_what_is_wrong_does_not_keep_the_others_of_a_file(source):
    found = {i.name: i.broken for i in find(f"{source(SHAPES + PLAIN)}:*")}
    assert found["plain"] == ""
    assert all(found[name] for name in ("masked", "pair", "none"))


PLAIN = """
    def plain(input, target, **options):
        return F.cross_entropy(input, target, **options)
"""
WORKING = """
    import functools
    import pytest
    import torch
    import torch.nn.functional as F

    def needs_another_device(input, target):
        if not input.is_cuda:
            raise RuntimeError("expected a CUDA tensor")

    def needs_many_classes(input, target):
        if input.shape[1] < 1000:
            raise TypeError("unsupported number of classes")

    def skips(input, target):
        pytest.skip("not here")

    def fails_inside(input, target):
        return F.cross_entropy(input)

    def gives_the_mask(function):
        @functools.wraps(function)
        def wrapped(input, target):
            return function(input, target, 1.0)

        return wrapped

    @gives_the_mask
    def decorated(input, target, mask):
        return mask * F.cross_entropy(input, target)

    def needs_an_option(input, target, *, normalizer):
        return F.cross_entropy(input, target, reduction="sum") / normalizer

    def images_only(input, target):
        batch, classes, length = input.shape
        return F.cross_entropy(input, target)

    def each(input, target):
        return F.cross_entropy(input, target, reduction="none")
"""


def test_what_works_or_cannot_be_told_is_not_accused(source):
    names = re.findall(r"^    def (\w+)\(input", WORKING, re.MULTILINE)
    assert len(names) == 8
    path = source(WORKING)
    for name in names:
        (found,) = find(f"{path}:{name}")
        assert not found.broken
        assert "k_dim" in found.capabilities


def test_who_takes_the_classes_last_is_not_asked_for_images(source):
    path = source(
        """
        import torch.nn.functional as F

        def flat(input, target):
            return F.cross_entropy(input.reshape(-1, input.shape[-1]), target.reshape(-1))
        """
    )
    with pytest.warns(
        UserWarning, match=r"flat: takes the classes in the last dimension.*flat\(x.movedim\(1, -1\), t, \*\*o\)"
    ):
        (found,) = find(f"{path}:flat")
    assert not {"k_dim"} & (found.capabilities | found.tentative)
    assert torch.equal(loss(found), RIGHT)


# --- texts


BAD_TEXTS = {
    "a" * 5000: "characters; found 5000",
    "two\nlines": "expected one line without control characters; found 'two\\\\nlines'",
    "\x1b[31mred": "expected one line without control characters; found '\\\\x1b[31mred'",
    "nul\0": "expected one line without control characters; found 'nul\\\\x00'",
    "\u202eright to left": "expected one line without control characters; found '\\\\u202eright to left'",
    "\ud800": "expected one line without control characters; found '\\\\ud800'",
    b"bytes": "expected text; found b'bytes'",
}


@pytest.mark.parametrize("text", BAD_TEXTS)
@pytest.mark.parametrize("field", ["name", "version", "description"])
def test_a_text_that_would_spoil_a_table_is_refused(field, text):
    with pytest.raises(ImplementationError) as error:
        Implementation(**{"name": "mine", "cross_entropy": len, field: text})
    assert f": {field}: " in str(error.value)
    assert str(error.value).endswith(BAD_TEXTS[text])
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("text", BAD_TEXTS)
@pytest.mark.parametrize("field", ["observed", "reason", "link", "cases", "torch"])
def test_a_text_of_a_deviation_that_would_spoil_a_table_is_refused(field, text):
    given = {"cases": "a", "aspect": "loss", "observed": "NaN", "fault": "nan", "link": "https://example.org"}
    with pytest.raises(ImplementationError) as error:
        Deviation(**given | {field: (text,) if field == "cases" else text})
    assert f": {field}: " in str(error.value)
    assert str(error.value).endswith(BAD_TEXTS[text])
    assert len(str(error.value)) < 400


def test_a_name_is_needed():
    for name in ("", "  ", None):
        with pytest.raises(ImplementationError, match="name: expected"):
            Implementation(name=name, cross_entropy=len)


def test_docstrings_and_reasons_that_nobody_declared_are_cleaned():
    def function(input, target):
        return input.sum()

    function.__doc__ = "red \x1b[31m" + "a" * 5000
    described = from_callable(function, "f").description
    assert described.startswith("red \\x1b[31maaa")
    assert len(described) == 300
    found = Implementation(name="n", cross_entropy=len, unavailable="no\n\x1b[31mlibrary" + "a" * 5000)
    assert found.unavailable.startswith("no\\n\\x1b[31mlibrary")
    assert len(found.unavailable) <= 1010


def test_the_message_of_an_exception_is_cut(case, verdicts):
    def raises(input, target, **options):
        raise ValueError("\x1b[31m" + "a" * 10_000_000)

    for verdict in verdicts(case("logits: {shape: [3, 4]}"), raises).values():
        assert len(verdict.message) < 2200
        assert "\x1b" not in verdict.message
        assert from_json(to_json(verdict)) == verdict
    path_like = Verdict("i", "c", "c/a", "loss", "error", reason="first\n" + "\0" * 1_000_000)
    assert path_like.message.startswith("first\n\\x00\\x00")
    assert len(path_like.message) <= 2000
    assert from_json(to_json(path_like)) == path_like


# --- what a deviation may excuse


def test_a_deviation_needs_a_link_or_a_reason():
    given = {"cases": "a", "aspect": "loss", "observed": "NaN", "fault": "nan"}
    with pytest.raises(ImplementationError, match="expected a link to where it is reported, or a reason"):
        Deviation(**given, link=" ")
    assert Deviation(**given, reason="run it in float16").link == ""
    with pytest.raises(
        ImplementationError, match="link: expected one that begins with https:// or http://; found 'javascript:"
    ):
        Deviation(**given, link="javascript:alert(1)")


@pytest.mark.parametrize("field", ["observed", "fault"])
def test_what_is_observed_cannot_be_empty(field):
    with pytest.raises(ImplementationError, match=rf"{field}: expected"):
        Deviation(**{"cases": "a", "aspect": "loss", "observed": "NaN", "fault": "nan", "link": "y", field: ""})


@pytest.mark.parametrize("cases", ["*", "**", "*/*", "?*", ("a", "*")])
def test_everything_is_excused_of_relations_and_purity_only(cases):
    with pytest.raises(
        ImplementationError, match=r"cases: expected the cases whose gradient fails.*; found '.*', which is every case"
    ):
        deviation(cases, aspect="gradient")
    for aspect in ("purity", "poisoning", "deletion"):
        deviation(cases, aspect=aspect, certain=False).check_extent([f"a/{n}" for n in range(1000)])


def test_a_deviation_has_bounds():
    ids = [f"{clause}/{n}" for clause in "abcd" for n in range(30)]
    deviation("a", certain=False).check_extent(ids)
    deviation(("a", "b")).check_extent(ids)
    with pytest.raises(ImplementationError, match=r"expected at most 40 cases with certain=False.*; found 60; "):
        deviation(("a", "b"), certain=False).check_extent(ids)
    with pytest.raises(ImplementationError, match="expected at most half of the 120 cases; found 90; "):
        deviation(("a", "b", "c")).check_extent(ids)


def test_the_shipped_deviations_are_within_bounds():
    ids = [case.id for case in load_all()]
    for known in {d for i in find("all,field") for d in i.deviations}:
        known.check_extent(ids)


@pytest.mark.slow
def test_a_run_with_a_deviation_beyond_its_bounds_is_not_begun(run, write, source, monkeypatch):
    cases = write(*(f"id: c{n}, logits: {{shape: [3, 4]}}" for n in range(50)))
    monkeypatch.setattr(loader, "load_all", lambda *folders: load(cases))
    path = source(
        """
        from xentcheck.implementation import Deviation, Implementation

        known = Deviation("small", aspect="loss", observed="x", fault="nan", link="https://example.org", certain=False)
        i = Implementation("mine", len, deviations=(known,))
        """
    )
    status, screen = run("--impl", f"{path}:i", "--collect-only", "-q")
    assert status == 4
    assert "losses.py:4: Deviation('small'): expected at most 40 cases with certain=False" in screen
