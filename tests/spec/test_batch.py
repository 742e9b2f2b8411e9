"""Cases as tensors: the same everywhere, laid out as they say, with exactly the patterns and ignored positions they name."""

import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from xentcheck.spec.batch import build
from xentcheck.spec.capabilities import LOGITS_CAPABILITIES
from xentcheck.spec.loader import CaseFileError
from xentcheck.spec.needs import as_taken, capabilities_needed, capabilities_to_ask, good_batch

NAN = float("nan")


def digest(batch):
    data = b"".join(np.ascontiguousarray(t.double().numpy()).tobytes() for t in (batch.input, batch.target))
    return hashlib.sha256(data).hexdigest()[:16]


def gaps(tensor):
    """What lies in the tensor's memory between and around its elements."""
    storage = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    numbers = torch.arange(storage.numel()).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    outside = torch.ones(storage.numel(), dtype=torch.bool)
    outside[numbers.reshape(-1)] = False
    return storage[outside]


def test_the_same_bytes_on_every_machine(case):
    assert digest(build(case("logits: {shape: [7, 5]}, target: {ignore: {fraction: 0.5}}"))) == "159d10061fa10960"
    assert digest(build(case("logits: {shape: [2, 5, 4, 3], fill: uniform}"))) == "7ea70b5ad69311c7"


def test_a_case_depends_on_nothing_but_its_id(cases):
    body = "logits: {shape: [6, 4]}, weight: random, upstream: per-position, reduction: none"
    alone = build(cases(f"id: mine, {body}")[0])
    torch.manual_seed(1)
    np.random.seed(1)
    first, mine = cases("id: first, logits: {shape: [3, 3]}", f"id: mine, {body}, why: it moved")
    other = build(first)
    again = build(mine)
    for one, two in (
        (alone.input, again.input),
        (alone.target, again.target),
        (alone.upstream, again.upstream),
        (alone.options["weight"], again.options["weight"]),
    ):
        assert torch.equal(one, two)
    assert not torch.equal(other.input.reshape(-1)[:9], again.input.reshape(-1)[:9])


def test_building_leaves_random_states_alone(case):
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    build(case("logits: {shape: [6, 4]}, weight: random, target: {ignore: {fraction: 0.5}}"))
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_values_are_those_of_float64_rounded_once(case, dtype):
    body = "logits: {shape: [6, 4], scale: 3}, weight: random, upstream: per-position, reduction: none, dtype: "
    exact, rounded = build(case(body + "float64")), build(case(body + dtype))
    wanted = getattr(torch, dtype)
    assert rounded.input.dtype == rounded.options["weight"].dtype == rounded.upstream.dtype == wanted
    assert torch.equal(rounded.input, exact.input.to(wanted))
    assert torch.equal(rounded.options["weight"], exact.options["weight"].to(wanted))
    assert torch.equal(rounded.upstream, exact.upstream.to(wanted))


def test_literal_values_are_taken_as_they_are(case):
    batch = build(
        case("dtype: float64, logits: {values: [[0.1, -inf, 1e30], [nan, inf, -0.0]]}, target: {values: [2, -100]}")
    )
    assert torch.equal(batch.input.isnan(), torch.tensor([[False] * 3, [True, False, False]]))
    assert batch.input.nan_to_num(7.0, 8.0, 9.0).tolist() == [[0.1, 9.0, 1e30], [7.0, 8.0, 0.0]]
    assert batch.target.tolist() == [2, -100]


@pytest.mark.parametrize(
    ("fill", "values"),
    [("constant, scale: 4, shift: 1.5", [1.5] * 4), ("ramp, scale: 8, shift: -1", [-1, 1, 3, 5])],
)
def test_fills_without_chance(case, fill, values):
    assert build(case(f"logits: {{shape: [2, 2], fill: {fill}}}")).input.reshape(-1).tolist() == values


def test_random_fills_have_their_distribution(case):
    normal = build(case("logits: {shape: [200, 50], scale: 2, shift: 10}")).input.double()
    uniform = build(case("logits: {shape: [200, 50], fill: uniform}")).input.double()
    assert abs(normal.mean() - 10) < 0.1
    assert abs(normal.std() - 2) < 0.1
    assert 0 <= uniform.min() < 0.01
    assert 0.99 < uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.02


@pytest.mark.parametrize(
    ("shape", "layout", "stride", "offset"),
    [
        ([4, 6], "contiguous", (6, 1), 0),
        ([4, 6], "transposed", (1, 4), 0),
        ([2, 6, 3], "transposed", (1, 2, 12), 0),
        ([4, 6], "strided", (12, 2), 0),
        ([2, 6, 3], "strided", (36, 6, 2), 0),
        ([4, 6], "expanded", (0, 1), 0),
        ([4, 6], "offset", (6, 1), 6),
        ([2, 6, 3, 5], "channels_last", (90, 1, 30, 6), 0),
        ([6], "strided", (2,), 0),
        ([6], "offset", (1,), 1),
    ],
)
def test_logits_have_the_strides_that_the_layout_says(case, shape, layout, stride, offset):
    batch = build(case(f"logits: {{shape: {shape}, layout: {layout}}}, target: {{classes: [1]}}"))
    assert batch.input.shape == torch.Size(shape)
    assert batch.input.stride() == stride
    assert batch.input.storage_offset() == offset
    assert not batch.input.isnan().any()
    assert gaps(batch.input).isnan().all()
    assert bool(gaps(batch.input).numel()) == (layout in ("strided", "offset"))


@pytest.mark.parametrize("layout", ["transposed", "strided", "offset", "channels_last"])
def test_a_layout_changes_no_value(case, layout):
    body = "logits: {shape: [2, 3, 4, 5], layout: %s}, target: {layout: %s}, upstream: {per_position: true, layout: %s}, reduction: none"
    target_layout = "strided" if layout == "channels_last" else layout
    plain, other = build(case(body % (("contiguous",) * 3))), build(case(body % (layout, target_layout, target_layout)))
    assert torch.equal(plain.input, other.input)
    assert torch.equal(plain.target, other.target)
    assert torch.equal(plain.upstream, other.upstream)
    assert not other.input.is_contiguous() or layout == "offset"
    assert not other.target.is_contiguous() or layout == "offset"


def test_expanded_rows_are_equal_patterns_included(case):
    batch = build(
        case(
            "logits: {shape: [4, 6], layout: expanded, set: [{classes: [2], value: -inf}]}, target: {layout: expanded, classes: [1, 3]}"
        )
    )
    assert batch.input.stride() == (0, 1)
    assert all(torch.equal(row, batch.input[0]) for row in batch.input)
    assert batch.input[3, 2] == -torch.inf
    assert batch.target.stride() == (0,)


@pytest.mark.parametrize(("layout", "stride"), [("strided", (8, 2)), ("offset", (4, 1)), ("transposed", (1, 3))])
def test_gaps_of_a_target_hold_a_class_that_does_not_exist(case, layout, stride):
    target = build(case(f"logits: {{shape: [3, 5, 4]}}, target: {{layout: {layout}, ignore: first}}")).target
    assert target.stride() == stride
    assert target.max() < 5
    assert (gaps(target) == 5).all()


@pytest.mark.parametrize(
    ("upstream", "reduction", "values"),
    [
        ("unit", "none", [1, 1, 1]),
        ("3.5", "none", [3.5, 3.5, 3.5]),
        ("3.5", "mean", 3.5),
        ("[1, -2, 0]", "none", [1, -2, 0]),
        ("{scalar: 2, zero: [0, 2]}", "none", [0, 2, 0]),
    ],
)
def test_upstream_has_the_shape_of_the_loss(case, upstream, reduction, values):
    batch = build(case(f"logits: {{shape: [3, 4]}}, reduction: {reduction}, upstream: {upstream}"))
    assert batch.upstream.tolist() == values


def test_plain_backward_has_no_upstream(case):
    assert build(case("logits: {shape: [3, 4]}")).upstream is None
    assert build(case("logits: {shape: [3, 4]}, reduction: sum, upstream: unit")).upstream is None
    assert build(case("logits: {shape: [4]}, reduction: none")).upstream is None


def test_upstream_per_position_has_both_signs_and_no_small_number(case):
    upstream = build(case("logits: {shape: [50, 4]}, reduction: none, upstream: per-position")).upstream
    assert (upstream > 0).any()
    assert (upstream < 0).any()
    assert upstream.abs().min() >= 0.5
    assert upstream.unique().numel() == 50


@pytest.mark.parametrize(("layout", "stride"), [("strided", (8, 2)), ("expanded", (0, 1)), ("transposed", (1, 3))])
def test_upstream_layouts(case, layout, stride):
    upstream = build(
        case(f"logits: {{shape: [3, 5, 4]}}, reduction: none, upstream: {{scalar: 2, layout: {layout}}}")
    ).upstream
    assert upstream.stride() == stride
    assert (upstream == 2).all()
    assert gaps(upstream).isnan().all()


@pytest.mark.parametrize(
    ("pattern", "marked"),
    [
        ("{value: 99}", [[1, 1, 1], [1, 1, 1], [1, 1, 1]]),
        ("{rows: [0, 2], value: 99}", [[1, 1, 1], [0, 0, 0], [1, 1, 1]]),
        ("{rows: [-1], classes: [-1], value: 99}", [[0, 0, 0], [0, 0, 0], [0, 0, 1]]),
        ("{classes: [1], value: 99}", [[0, 1, 0], [0, 1, 0], [0, 1, 0]]),
        ("{rows: [0, 2], classes: [0, 1], value: 99}", [[1, 1, 0], [0, 0, 0], [1, 1, 0]]),
        ("{rows: ignored, value: 99}", [[0, 0, 0], [1, 1, 1], [0, 0, 0]]),
        ("{rows: ignored, classes: [2], value: 99}", [[0, 0, 0], [0, 0, 1], [0, 0, 0]]),
        ("{rows: valid, value: 99}", [[1, 1, 1], [0, 0, 0], [1, 1, 1]]),
        ("{rows: valid, classes: target, value: 99}", [[0, 0, 1], [0, 0, 0], [1, 0, 0]]),
        ("{rows: valid, classes: others, value: 99}", [[1, 1, 0], [0, 0, 0], [0, 1, 1]]),
        ("{rows: [2], classes: others, value: 99}", [[0, 0, 0], [0, 0, 0], [0, 1, 1]]),
        ("{rows: [0], value: 99}, {rows: [0], classes: [1], value: 0}", [[1, 0, 1], [0, 0, 0], [0, 0, 0]]),
    ],
)
def test_a_pattern_sets_exactly_its_rows_and_classes(cases, pattern, marked):
    body = "id: one, logits: {shape: [3, 3]%s}, target: {values: [2, -100, 0]}"
    plain, changed = build(cases(body % "")[0]), build(cases(body % f", set: [{pattern}]")[0])
    mask = torch.tensor(marked, dtype=torch.bool)
    assert torch.equal(changed.input == 99, mask)
    assert torch.equal(changed.input[~mask & (changed.input != 0)], plain.input[~mask & (changed.input != 0)])


def test_rows_of_a_pattern_count_the_flattened_positions(case):
    batch = build(case("logits: {shape: [2, 3, 4], set: [{rows: [5], classes: [2], value: 99}]}"))
    assert (batch.input == 99).nonzero().tolist() == [[1, 2, 1]]


@pytest.mark.parametrize("classes", ["target", "others"])
def test_target_of_an_ignored_row_has_no_meaning(case, classes):
    with pytest.raises(
        CaseFileError, match=f"set.0.rows: expected valid rows, since ignored ones have no {classes}; found"
    ):
        build(case(f"logits: {{shape: [3, 4], set: [{{classes: {classes}, value: 0}}]}}, target: {{ignore: first}}"))


@pytest.mark.parametrize(
    ("ignore", "rows"),
    [
        ("none", []),
        ("first", [0]),
        ("last", [7]),
        ("all", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("{rows: [1, 6]}", [1, 6]),
        ("{rows: [-1]}", [7]),
        ("{prefix: 3}", [0, 1, 2]),
        ("{prefix: 0}", []),
        ("{suffix: 2}", [6, 7]),
        ("{suffix: 0}", []),
        ("{every: 3}", [0, 3, 6]),
        ("{every: 1}", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("{fraction: 0}", []),
        ("{fraction: 1}", [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_ignored_positions_are_those_chosen(case, ignore, rows):
    target = build(case(f"logits: {{shape: [2, 5, 4]}}, target: {{ignore: {ignore}}}")).target
    assert (target.reshape(-1) == -100).nonzero().reshape(-1).tolist() == rows


@pytest.mark.parametrize("size", [9, 13])
def test_more_than_there_are_is_everything(case, size):
    for choice in ("prefix", "suffix"):
        assert (
            build(case(f"logits: {{shape: [8, 5]}}, target: {{ignore: {{{choice}: {size}}}}}")).target == -100
        ).all()


def test_a_fraction_ignores_that_many_scattered(case):
    target = build(case("logits: {shape: [40, 5]}, target: {ignore: {fraction: 0.25}}")).target
    rows = (target == -100).nonzero().reshape(-1).tolist()
    assert len(rows) == 10
    assert rows != list(range(rows[0], rows[0] + 10))


def test_several_ignore_values_are_dealt_in_turn(case):
    target = build(
        case("logits: {shape: [8, 5]}, ignore_index: [-1, 3, 255], target: {ignore: {rows: [0, 2, 4, 7]}}")
    ).target
    assert target[[0, 2, 4, 7]].tolist() == [-1, 3, 255, -1]
    assert not set(target[[1, 3, 5, 6]].tolist()) & {-1, 3, 255}


@pytest.mark.parametrize(("value", "dealt"), [("255", [255, 255]), ("[3, -1]", [3, -1])])
def test_the_values_to_deal_can_be_chosen(case, value, dealt):
    target = build(
        case(
            f"logits: {{shape: [4, 5]}}, ignore_index: [-1, 3, 255], target: {{ignore: {{prefix: 2, value: {value}}}}}"
        )
    ).target
    assert target[:2].tolist() == dealt


def test_drawn_targets_are_allowed_classes_and_the_first_valid_one_is_the_last(case):
    target = build(
        case("logits: {shape: [300, 9]}, ignore_index: 4, target: {classes: [1, 4, 6], ignore: first}")
    ).target
    assert target[0] == 4
    assert target[1] == 6
    assert set(target[1:].tolist()) == {1, 6}


def test_no_class_left_to_draw_from(case):
    with pytest.raises(
        CaseFileError,
        match=r"target\.classes: expected a class to draw targets from; found none that is not an ignore value",
    ):
        build(case("logits: {shape: [3, 2]}, ignore_index: [0, 1], target: {ignore: all}"))


@pytest.mark.parametrize("dtype", ["int64", "uint8", "int32", "int16", "int8", "float32", "float64"])
def test_targets_have_their_dtype(case, dtype):
    refused = ", expect: {error: {phase: call}}" if dtype.startswith("float") else ""
    target = build(case(f"logits: {{shape: [3, 4]}}, target: {{dtype: {dtype}}}{refused}")).target
    assert target.dtype == getattr(torch, dtype)
    assert target.min() >= 0


@pytest.mark.parametrize(
    ("shape", "positions"),
    [([4], ()), ([3, 4], (3,)), ([2, 4, 3], (2, 3)), ([2, 4, 1, 1], (2, 1, 1)), ([0, 4], (0,)), ([2, 4, 0], (2, 0))],
)
def test_the_target_has_the_shape_of_the_positions(case, shape, positions):
    batch = build(case(f"logits: {{shape: {shape}}}"))
    assert batch.target.shape == positions
    assert batch.classes == 4


def test_only_the_options_that_are_set_are_passed(case):
    assert build(case("logits: {shape: [3, 4]}")).options == {}
    options = build(
        case("logits: {shape: [3, 4]}, ignore_index: [1], weight: [1, 0, 2, inf], reduction: sum, label_smoothing: 0")
    ).options
    assert options.pop("weight").tolist() == [1, 0, 2, float("inf")]
    assert options == {"ignore_index": [1], "reduction": "sum", "label_smoothing": 0.0}


def test_a_captured_file_is_the_batch(case, tmp_path):
    logits, target = torch.randn(3, 4).bfloat16(), torch.tensor([3, -100, 0])
    save_file({"logits": logits, "target": target}, tmp_path / "step.safetensors")
    batch = build(case("dtype: bfloat16, logits: {file: step.safetensors}, target: {file: step.safetensors}"))
    assert torch.equal(batch.input, logits)
    assert torch.equal(batch.target, target)


def test_fresh_shares_no_memory_and_keeps_strides_and_gaps(case):
    batch = build(
        case(
            "logits: {shape: [2, 3, 4], layout: strided}, target: {layout: offset, ignore: first}, ignore_index: [1, -1],"
            "weight: random, upstream: {per_position: true, layout: transposed}, reduction: none"
        )
    )
    fresh = batch.fresh()
    pairs = [
        (batch.input, fresh.input),
        (batch.target, fresh.target),
        (batch.upstream, fresh.upstream),
        (batch.options["weight"], fresh.options["weight"]),
    ]
    for old, new in pairs:
        assert torch.equal(old, new)
        assert old.stride() == new.stride()
        assert old.storage_offset() == new.storage_offset()
        assert old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr()
        assert torch.equal(gaps(old).nan_to_num(), gaps(new).nan_to_num())
    fresh.options["ignore_index"].append(7)
    assert batch.options["ignore_index"] == [1, -1]


def test_fresh_keeps_the_zero_stride_of_expanded_logits(case):
    fresh = build(case("logits: {shape: [4, 6], layout: expanded}")).fresh()
    assert fresh.input.stride() == (0, 1)
    assert fresh.input.untyped_storage().nbytes() == 6 * 4


def test_double_backward_has_a_direction_exact_in_the_dtype(case):
    direction = build(case("logits: {shape: [3, 4]}, dtype: bfloat16, mode: double_backward")).direction
    assert direction.shape == (3, 4)
    assert np.array_equal(torch.from_numpy(direction).bfloat16().double().numpy(), direction)
    assert build(case("logits: {shape: [3, 4]}")).direction is None


PLAIN = {"float32", "reduction_mean", "backward"}


@pytest.mark.parametrize(
    ("body", "more", "less"),
    [
        ("logits: {shape: [3, 4]}", set(), set()),
        ("logits: {shape: [3, 4]}, dtype: bfloat16", {"bfloat16"}, {"float32"}),
        ("logits: {shape: [3, 4]}, ignore_index: -1", {"ignore_index"}, set()),
        ("logits: {shape: [3, 4]}, ignore_index: 4", {"ignore_index"}, set()),
        ("logits: {shape: [3, 4]}, ignore_index: 3", {"ignore_index", "ignore_index_in_range"}, set()),
        ("logits: {shape: [3, 4]}, ignore_index: [-1, 0]", {"ignore_index_list", "ignore_index_in_range"}, set()),
        ("logits: {shape: [3, 4]}, ignore_index: [-1]", {"ignore_index_list"}, set()),
        ("logits: {shape: [3, 4]}, weight: random, label_smoothing: 0", {"weight", "label_smoothing"}, set()),
        ("logits: {shape: [3, 4]}, reduction: none", {"reduction_none", "reduction_option"}, {"reduction_mean"}),
        ("logits: {shape: [4]}", {"unbatched"}, set()),
        ("logits: {shape: [3, 4, 2]}", {"k_dim"}, set()),
        ("logits: {shape: [1, 4097]}", {"many_classes"}, set()),
        ("logits: {shape: [1, 4096]}", set(), set()),
        (
            "logits: {shape: [3, 4], set: [{rows: ignored, value: nan}]}, target: {ignore: first}",
            {"non_finite", "ignore_minus_100"},
            set(),
        ),
        ("logits: {shape: [3, 4]}, target: {values: [0, -100, 1]}", {"ignore_minus_100"}, set()),
        ("logits: {shape: [3, 4]}, ignore_index: -100", {"ignore_index"}, set()),
        (
            "logits: {shape: [3, 4]}, target: {values: [0, 156, 1], dtype: uint8}, expect: {error: {}}",
            set(),
            {"reduction_mean", "backward"},
        ),
        ("logits: {shape: [3, 4]}, target: {dtype: uint8}", {"uint8_target"}, set()),
        ("logits: {shape: [3, 4], layout: strided}", {"non_contiguous"}, set()),
        ("logits: {shape: [3, 4]}, target: {layout: offset}", {"non_contiguous"}, set()),
        (
            "logits: {shape: [3, 4]}, reduction: none, upstream: {scalar: 2, layout: expanded}",
            {"non_contiguous", "reduction_none", "reduction_option"},
            {"reduction_mean"},
        ),
        ("logits: {shape: [3, 4]}, mode: no_grad", set(), {"backward"}),
        ("logits: {shape: [3, 4]}, mode: double_backward", {"double_backward"}, set()),
        (
            "logits: {shape: [3, 4]}, mode: vmap, reduction: none",
            {"vmap", "reduction_none", "reduction_option"},
            {"reduction_mean"},
        ),
        ("logits: {shape: [3, 4]}, mode: twice, needs: [compile]", {"compile"}, set()),
        (
            "logits: {shape: [3, 4]}, target: {values: [4, 0, 0]}, weight: random, ignore_index: 2, expect: {error: {}}",
            {"ignore_index"},
            {"reduction_mean", "backward"},
        ),
    ],
)
def test_capabilities_follow_from_the_case(case, body, more, less):
    asked = case(body)
    assert capabilities_needed(asked, build(asked)) == (PLAIN | more) - less


@pytest.mark.parametrize(
    ("body", "needed"),
    [
        ("", set()),
        ("target: {ignore: first}, ignore_index: -100", {"ignore_minus_100"}),
        ("target: {ignore: first}, ignore_index: [-100]", {"ignore_index_list"}),
        ("target: {ignore: first}, ignore_index: -1", {"ignore_index"}),
        ("ignore_index: -100, reduction: mean, label_smoothing: 0", set()),
        ("reduction: sum", {"reduction_sum", "reduction_option"}),
        ("label_smoothing: 0.1", {"label_smoothing"}),
        ("weight: [1, 1, 1, 1]", {"weight"}),
        ("mode: twice", set()),
        ("mode: compile", {"compile"}),
        ("mode: func_grad", {"func_grad", "backward"}),
        ("mode: double_backward", {"double_backward", "backward"}),
        ("mode: vmap, reduction: none", {"vmap", "backward", "reduction_none", "reduction_option"}),
    ],
)
def test_a_loss_is_asked_without_the_options_at_their_default_and_without_a_gradient(case, body, needed):
    asked = case(f"logits: {{shape: [3, 4]}}{', ' * bool(body)}{body}")
    more = {"float32"} | (set() if "reduction: " in body and "mean" not in body else {"reduction_mean"})
    assert capabilities_to_ask(asked, build(asked)) == needed | more


def test_an_option_at_its_default_is_left_out_for_those_that_do_not_take_it(case):
    batch = build(case("logits: {shape: [3, 4]}, ignore_index: -100, reduction: mean, label_smoothing: 0"))
    assert as_taken(batch, {"ignore_index", "reduction_option", "label_smoothing"}).options == batch.options
    assert as_taken(batch, {"ignore_index"}).options == {"ignore_index": -100}
    assert as_taken(batch, {"ignore_minus_100"}).options == {}
    other = build(case("logits: {shape: [3, 4]}, ignore_index: -1, reduction: sum, label_smoothing: 0.5"))
    assert as_taken(other, set()).options == other.options


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("mode", ["eager", "compile"])
def test_a_good_batch_is_one_that_the_loss_takes(case, dtype, mode):
    asked = case(f"logits: {{shape: [3, 4]}}, dtype: {dtype}, mode: {mode}")
    good = good_batch(asked, LOGITS_CAPABILITIES)
    assert (good.input.dtype, good.mode, good.options) == (getattr(torch, dtype), mode, {})
    only = good_batch(asked, {"float64", "reduction_none"})
    assert (only.input.dtype, only.mode, only.options) == (torch.float64, "eager", {"reduction": "none"})
    assert torch.isfinite(F.cross_entropy(only.input, only.target, **only.options)).all()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("logits: {file: absent.safetensors}", "logits.file: absent.safetensors: cannot be read: No such file"),
        ("logits: {shape: [3, 4]}, target: {ignore: {rows: [3]}}", "target.ignore.rows: expected indices from -3 to 2; found 3"),
        ("logits: {shape: [3, 4], set: [{rows: [-4], value: 0}]}", "logits.set.0.rows: expected indices from -3 to 2; found -4"),
        ("logits: {shape: [3, 4], set: [{value: 1}, {classes: [4], value: 0}]}", "logits.set.1.classes: expected indices from -4 to 3; found 4"),
        ("logits: {shape: [2, 3, 4], layout: channels_last}", "logits.layout: expected a tensor of four dimensions for channels_last; found the shape (2, 3, 4)"),
        ("logits: {shape: [3, 4]}, reduction: none, upstream: [1, 2]", "upstream.values: expected the shape of the loss, (3,); found (2,)"),
        ("logits: {shape: [3, 4]}, reduction: none, upstream: {scalar: 1, zero: [3]}", "upstream.zero: expected indices from -3 to 2; found 3"),
        ("logits: {shape: [3, 4]}, weight: [1, 2]", "weight: expected 4 class weights, or expect.error; found 2"),
        ("logits: {shape: [3, 4]}, linear: {features: 2, set: [{features: [2], value: 0}]}", "linear.set.0.features: expected indices from -2 to 1; found 2"),
        ("logits: {shape: [3, 4]}, target: {values: [0, 4, -100]}", "target: expected a class from 0 to 3, one of the ignore values [-100], or expect.error; found 4 at position 1"),
        ("logits: {shape: [3, 4]}, target: {dtype: float32}", "target: expected integers for classes, or expect.error; found torch.float32"),
        ("logits: {shape: [3, 4]}, padded_to: 1000000000000", "padded_to: expected at most 4,294,967,296 logits in all; found 4,000,000,000,000"),
        ("logits: {values: [[1, 2]]}, padded_to: 4000000000", "padded_to: expected at most 4,294,967,296 logits in all; found 8,000,000,000"),
        ("logits: {shape: [3, 0]}", "target.classes: expected a class to draw targets from; found none that is not an ignore value"),
        ("logits: {shape: [3, 4]}, target: {dtype: uint8}, padded_to: 5", "padded_to: expected an ignore value that targets of torch.uint8 can hold; found [-100]"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_name_the_case_its_line_and_the_key(case, body, message):
    with pytest.raises(CaseFileError) as error:
        build(case(body))
    assert f"small.yaml:6: case small/one: {message}" in str(error.value)


def test_what_no_check_foresees_names_the_case_as_well(case, monkeypatch):
    def fail(*_, **__):
        raise MemoryError("not enough memory")

    monkeypatch.setattr(torch, "full", fail)
    with pytest.raises(CaseFileError, match=r":6: case small/one: no batch can be made of it: not enough memory"):
        build(case("logits: {shape: [3, 4], layout: strided}"))
