"""capture: what is saved from a training step is, bit for bit, what the case asks; the step does not notice."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from xentcheck.implementation import find
from xentcheck.run.examiner import Examiner
from xentcheck.spec.batch import DTYPES, Batch, build
from xentcheck.spec.capture import capture
from xentcheck.spec.case import Case
from xentcheck.spec.loader import CASES, load, load_all

SHAPES = [
    ((7,), ()),
    ((6, 7), (6,)),
    ((2, 7, 3), (2, 3)),
    ((2, 7, 3, 2), (2, 3, 2)),
    ((0, 7), (0,)),
    ((2, 7, 0), (2, 0)),
]
CAPTURED = CASES / "captured"


def make(
    shape: tuple[int, ...] = (6, 7), target_shape: tuple[int, ...] = (6,), dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    target = torch.randint(7, target_shape, generator=generator)
    if target.numel() > 1:
        target.view(-1)[1] = -100
    return logits, target


def the_case(path: Path) -> Case:
    (case,) = load(path)
    return case


def captured(*arguments, **options) -> Batch:
    return build(the_case(capture(*arguments, **options)))


def bits(tensor: Tensor) -> list[int]:
    return tensor.detach().clone(memory_format=torch.contiguous_format).untyped_storage().tolist()


def assert_same(tensor: Tensor, original: Tensor) -> None:
    assert (tensor.dtype, tensor.shape) == (original.dtype, original.shape)
    assert bits(tensor) == bits(original)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("shape", "target_shape"), SHAPES, ids=str)
def test_a_case_holds_what_was_captured(tmp_path, dtype, shape, target_shape):
    logits, target = make(shape, target_shape, dtype)
    batch = captured(logits, target, tmp_path / "step")
    assert_same(batch.input, logits)
    assert_same(batch.target, target)
    assert batch.options == {"ignore_index": -100}
    live, again = F.cross_entropy(logits, target), F.cross_entropy(batch.input, batch.target, **batch.options)
    assert torch.equal(live, again) or (live.isnan() and again.isnan())


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_special_values_survive(tmp_path, dtype):
    info = torch.finfo(dtype)
    values = [math.inf, -math.inf, math.nan, -0.0, info.max, info.tiny, info.smallest_normal / 2]
    logits = torch.tensor([values, values], dtype=dtype)
    assert_same(captured(logits, torch.tensor([-100, 3]), tmp_path / "step").input, logits)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.t().contiguous().t(),
        lambda x: torch.stack([x, x + 1], dim=-1)[..., 0],
        lambda x: torch.cat([x, x])[3:9],
        lambda x: x[:1].expand(6, 7),
        lambda x: x.flip(0),
    ],
    ids=["transposed", "strided", "offset", "expanded", "flipped"],
)
def test_strides_do_not_matter(tmp_path, view):
    logits, target = make()
    batch = captured(view(logits), target.repeat_interleave(2)[::2], tmp_path / "step")
    assert_same(batch.input, view(logits))
    assert_same(batch.target, target)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_target_dtypes(tmp_path, dtype):
    logits, target = make()
    target = target.where(target >= 0, 255).to(dtype)
    case = the_case(capture(logits, target, tmp_path / "step", ignore_index=255))
    assert_same(build(case).target, target)
    assert case.question.expect.convention == ("int32_target" if dtype == torch.int32 else None)
    (native,) = find("native")
    assert {Examiner().examine(case, aspect, native).status for aspect in case.aspects} == {"pass"}


@pytest.mark.parametrize("ignore_index", [-1, 2, [], [-1], [-100, 6], (0, -1, 255)], ids=str)
def test_ignore_values(tmp_path, ignore_index):
    logits, target = make()
    values = [ignore_index] if isinstance(ignore_index, int) else list(ignore_index)
    target[1] = values[-1] if values else 0
    batch = captured(logits, target, tmp_path / "step", ignore_index=ignore_index)
    assert batch.ignore_values == tuple(values)
    assert isinstance(batch.options["ignore_index"], int) == isinstance(ignore_index, int)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_options(tmp_path, dtype, reduction):
    logits, target = make(dtype=dtype)
    weight = torch.tensor([1 / 3, 0.0, 1e-7, 2e4, 0.1, 1, 2], dtype=dtype)
    options = {"weight": weight, "reduction": reduction, "label_smoothing": 0.1}
    batch = captured(logits, target, tmp_path / "step", **options)
    assert_same(batch.options["weight"], weight)
    assert (batch.reduction, batch.options["label_smoothing"]) == (reduction, 0.1)
    assert_same(F.cross_entropy(batch.input, batch.target, **batch.options), F.cross_entropy(logits, target, **options))


def test_weights_that_are_no_finite_numbers(tmp_path):
    weight = torch.tensor([math.inf, math.nan, -0.0, -math.inf, 1e38, 1e-45, 1], requires_grad=True)
    assert_same(captured(*make(), tmp_path / "step", weight=weight).options["weight"], weight)


def test_only_what_differs_from_the_defaults_is_written(tmp_path):
    text = capture(*make(), tmp_path / "step").read_text()
    assert "ignore_index: -100\n" in text
    assert not any(key in text for key in ("weight:", "reduction:", "label_smoothing:", "expect:"))


@pytest.mark.parametrize("suffix", ["", ".yaml", ".safetensors"])
def test_a_path_with_or_without_suffix_in_a_folder_that_does_not_exist(tmp_path, suffix):
    path = capture(*make(), os.fspath(tmp_path / "a" / "b" / f"Run 1.5_STEP{suffix}"))
    assert path == tmp_path / "a" / "b" / "Run 1.5_STEP.yaml"
    assert sorted(p.name for p in path.parent.iterdir()) == ["Run 1.5_STEP.safetensors", "Run 1.5_STEP.yaml"]
    assert the_case(path).id == "run-1-5-step/batch"
    build(the_case(path))


@pytest.mark.parametrize("name", ['quote"s', "colon: #1", "étape 1", "{1}", "1", "no", "null", "1e5", "step 😀"])
def test_awkward_file_names(tmp_path, name):
    assert captured(*make(), tmp_path / name).classes == 7


def test_a_long_file_name_gives_a_name_that_can_be_read(tmp_path):
    case = the_case(capture(*make(), tmp_path / ("ab-" * 78)))
    assert case.id == f"{'ab-' * 66}ab/batch"


def test_what_was_captured_can_be_moved(tmp_path):
    capture(*make(), tmp_path / "here" / "step")
    (tmp_path / "here").rename(tmp_path / "there")
    assert build(the_case(tmp_path / "there" / "step.yaml")).classes == 7


def test_all_ignored_is_a_case_like_any_other(tmp_path):
    case = the_case(capture(torch.randn(3, 5), torch.full((3,), -100), tmp_path / "step"))
    (native,) = find("native")
    assert {Examiner().examine(case, aspect, native).status for aspect in case.aspects} == {"pass"}


def test_the_training_step_does_not_notice(tmp_path):
    logits, target = make()
    logits.requires_grad_()
    hidden = logits * 2
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), bits(hidden), hidden._version
    capture(hidden, target, tmp_path / "step")
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), bits(hidden), hidden._version
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert hidden.requires_grad
    F.cross_entropy(hidden, target).backward()
    expected = torch.autograd.grad(F.cross_entropy(logits * 2, target), logits)[0]
    assert torch.equal(logits.grad, expected)


@pytest.mark.parametrize("region", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_inside_a_region(tmp_path, region):
    logits, target = make()
    with region():
        logits = logits * 2
        assert_same(captured(logits, target, tmp_path / "step").input, logits)


@pytest.mark.filterwarnings("error:Dynamo does not know:UserWarning")
def test_inside_a_compiled_region(tmp_path):
    def step(x: Tensor, target: Tensor) -> Tensor:
        hidden = x * 2
        capture(hidden, target, tmp_path / "step", ignore_index=[-100, 5], label_smoothing=0.25)
        return F.cross_entropy(hidden, target)

    logits, target = make()
    torch._dynamo.reset()
    loss = torch.compile(step, backend="eager")(logits.requires_grad_(), target)
    assert torch.equal(loss, F.cross_entropy(logits * 2, target))
    batch = build(the_case(tmp_path / "step.yaml"))
    assert_same(batch.input, logits * 2)
    assert batch.options == {"ignore_index": [-100, 5], "label_smoothing": 0.25}


X, T = make()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X.numpy(), T), {}, TypeError, "logits: expected a dense tensor; found ndarray"),
        ((X, T.tolist()), {}, TypeError, "target: expected a dense tensor; found list"),
        ((X.to_sparse(), T), {}, TypeError, "logits: expected a dense tensor; found torch.sparse_coo"),
        ((X.long(), T), {}, TypeError, "logits: expected the dtype float64 or float32 or bfloat16 or float16; found int64"),
        ((X.to(torch.complex64), T), {}, TypeError, "found complex64"),
        ((X.to(torch.float8_e4m3fn), T), {}, TypeError, "found float8_e4m3fn"),
        ((X, torch.zeros(6)), {}, TypeError, "target: expected the dtype int64 or int32 or uint8; found float32"),
        ((X, X.softmax(1)), {}, TypeError, "target: expected the dtype int64 or int32 or uint8; found float32"),
        ((X, T[:5]), {}, ValueError, r"target: expected \(6,\) for logits of \(6, 7\); found \(5,\)"),
        ((X.view(2, 3, 7), T.view(2, 3)), {}, ValueError, r"expected \(2, 7\) for .* found \(2, 3\); classes come second"),
        ((X[0, 0], T[0]), {}, ValueError, r"logits: expected the shape \(C,\), .* found \(\)"),
        ((X[:, :0], T), {}, ValueError, r"C at least 1, at most 8 in all; found \(6, 0\)"),
        ((X.to("meta"), T), {}, TypeError, "logits: expected a dense tensor; found torch.strided on meta"),
        ((X, T.bool()), {}, TypeError, "target: expected the dtype int64 or int32 or uint8; found bool"),
        ((torch.zeros(1, 2, *[1] * 7), torch.zeros(1, *[1] * 7).long()), {}, ValueError, r"\(N, C, d1, \.\.\.\), C at least 1, at most 8 in all; found \(1, 2, 1"),
        ((torch.zeros(1, dtype=torch.float16).expand(2**15 + 1, 2**13), torch.zeros(2**15 + 1).long()), {"max_bytes": 2**40}, ValueError, "logits: expected at most numbers=268,435,456; found 268,443,648"),
        ((X, T), {"ignore_index": 2**63}, TypeError, "ignore_index: expected an int or a list of ints, of 64 bits each; found 9223372036854775808"),
        ((X, T), {"label_smoothing": "0.1"}, ValueError, "label_smoothing: expected a number from 0 to 1; found '0.1'"),
        ((X, T), {"label_smoothing": True}, ValueError, "label_smoothing: expected a number from 0 to 1; found True"),
        ((X, T.clamp(min=-1)), {}, ValueError, "target: expected 0 to 6 or -100; found -1, 1 in all"),
        ((X, T + 5), {}, ValueError, "target: expected 0 to 6 or -100; found"),
        ((X, T), {"ignore_index": [0]}, ValueError, r"target: expected 0 to 6 or \[0\]; found -100, 1 in all"),
        ((X, T), {"ignore_index": 1.0}, TypeError, "ignore_index: expected an int or a list of ints, of 64 bits each; found 1.0"),
        ((X, T), {"ignore_index": [1, True]}, TypeError, r"ignore_index: .* found \[1, True\]"),
        ((X, T), {"ignore_index": None}, TypeError, "ignore_index: .* found None"),
        ((X, T), {"reduction": "average"}, ValueError, "reduction: expected mean, sum or none; found 'average'"),
        ((X, T), {"label_smoothing": 1.5}, ValueError, "label_smoothing: expected a number from 0 to 1; found 1.5"),
        ((X, T), {"label_smoothing": math.nan}, ValueError, "found nan"),
        ((X, T), {"weight": [1.0] * 7}, TypeError, "weight: expected a dense tensor; found list"),
        ((X, T), {"weight": torch.ones(7).half()}, TypeError, "weight: expected the dtype float32; found float16"),
        ((X, T), {"weight": torch.ones(6)}, ValueError, r"weight: expected \(7,\), at most 1000; found \(6,\)"),
        ((torch.zeros(1, 1001), T[:1]), {"weight": torch.ones(1001)}, ValueError, "at most 1000; found"),
        ((X, T), {"max_bytes": 167}, ValueError, "logits: expected at most max_bytes=167; found 168"),
        ((torch.zeros(1).expand(8, 10**7), T[:1]), {}, ValueError, r"target: expected \(8,\)"),
        ((torch.zeros(1).expand(8, 10**7), torch.zeros(8).long()), {}, ValueError, "max_bytes=256,000,000; found 320,000,000"),
    ],
)  # fmt: skip
def test_errors_say_what_was_expected_and_found_and_write_nothing(tmp_path, arguments, options, error, message):
    with pytest.raises(error, match=message):
        capture(*arguments, tmp_path / "step", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "---", "日本", "a\nb", "a\x1b[31m", "a\u202eb"])
def test_a_name_without_letters_is_refused(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="path: expected a printable file name with letters or digits; found"):
        capture(X, T, name)


def test_a_thousand_weights_and_more_bytes_are_fine(tmp_path):
    weight = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits = torch.zeros(2, 1000, dtype=torch.float64)
    assert_same(captured(logits, torch.tensor([0, -100]), tmp_path / "step", weight=weight).options["weight"], weight)
    capture(X, T, tmp_path / "step", max_bytes=168)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("file", [".safetensors", ".yaml", "rename"])
def test_an_interrupted_write_leaves_the_earlier_capture_as_it_was(tmp_path, monkeypatch, interruption, file):
    capture(X, T, tmp_path / "step")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    write, written = Path.write_bytes, []

    def half(path: Path, content: bytes) -> None:
        written.append(path)
        broken = len(written) == [".safetensors", ".yaml"].index(file) + 1
        write(path, content[: len(content) // 2] if broken else content)
        if broken:
            raise interruption

    def refuse(*_: object) -> None:
        raise interruption

    monkeypatch.setattr(os, "replace", refuse) if file == "rename" else monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(interruption if isinstance(interruption, type) else type(interruption)):
        capture(X + 1, T, tmp_path / "step", reduction="sum")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    monkeypatch.undo()
    assert_same(captured(X + 1, T, tmp_path / "step", reduction="sum").input, X + 1)


def test_a_temporary_file_is_never_taken_for_a_case(tmp_path, monkeypatch):
    seen: list[str] = []
    monkeypatch.setattr(os, "replace", lambda a, b: seen.extend(p.name for p in tmp_path.iterdir()))
    capture(X, T, tmp_path / "step")
    assert len(seen) == 4
    assert not any(name.endswith((".yaml", ".safetensors")) for name in seen)


class TestCommitted:
    """cases/captured, made by make_captures.py."""

    def cases(self) -> dict[str, Batch]:
        return {case.id: build(case) for case in load_all(CAPTURED)}

    def test_ids_are_permanent(self):
        names = ["lm-all-ignored", "lm-constrained", "lm-first-step", "lm-last-step"]
        assert sorted(self.cases()) == [f"{name}/batch" for name in names]

    def test_they_are_small(self):
        assert sum(p.stat().st_size for p in CAPTURED.iterdir() if p.is_file()) < 500_000

    def test_they_hold_ignored_and_valid_targets_and_the_last_class(self):
        for name, batch in self.cases().items():
            valid = batch.target[batch.target != -100]
            assert valid.numel() < batch.target.numel()
            assert (valid.numel() == 0) == (name == "lm-all-ignored/batch")
            assert name == "lm-all-ignored/batch" or (valid == batch.classes - 1).any()

    def test_they_are_what_their_titles_say(self):
        cases = self.cases()
        confident = F.cross_entropy(cases["lm-last-step/batch"].input.float(), cases["lm-last-step/batch"].target)
        first = F.cross_entropy(cases["lm-first-step/batch"].input, cases["lm-first-step/batch"].target)
        assert confident < 2 < first
        assert {str(batch.input.dtype) for batch in cases.values()} == {"torch.float32", "torch.bfloat16"}
        masked = cases["lm-constrained/batch"]
        valid = masked.input[masked.target != -100]
        assert valid.isneginf().any(dim=1).all()
        assert F.cross_entropy(masked.input, masked.target).isfinite()
        assert masked.input[masked.target == -100].isneginf().all(dim=1).any()
