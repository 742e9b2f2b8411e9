"""The linear loss against the definition in float64, in one chunk and in many."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from linear_definition import OPTIONS, C, H, Largest, N, batch, check, definition
from torch.utils._python_dispatch import TorchDispatchMode

from maskedce import linear_chunks, linear_masked_cross_entropy, linear_products, thresholds
from xentcheck.cost import check as cost_check
from xentcheck.reference import blockwise
from xentcheck.spec.batch import Batch


@pytest.fixture(params=["one chunk", "many chunks"])
def chunks(request, monkeypatch):
    """So few positions at a time that every chunk but the last is full, and chunks consist of several parts."""
    if request.param == "many chunks":
        monkeypatch.setattr(thresholds, "SMALLEST_CHUNK", 3 * C)
        monkeypatch.setattr(thresholds, "LARGEST_CHUNK", 3 * C)
        monkeypatch.setattr(thresholds, "CACHED_LOGITS", 2 * C)
    return request.param


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("upstream", [1.0, -3.0])
def test_it_is_the_definition(chunks, options, weighted, bias, upstream):
    tensors, target, weight = batch(bias=bias, value=3 if "ignore_index" in options else -100)
    check(tensors, target, upstream, **options, **({"weight": weight} if weighted else {}))


def test_positions_in_several_dimensions(chunks):
    tensors, target, _ = batch(ignore=(1, 2))
    hidden, target = tensors[0][:12].reshape(3, 4, H), target[:12].reshape(3, 4)
    loss = linear_masked_cross_entropy(hidden, tensors[1], target, reduction="none")
    flat = linear_masked_cross_entropy(hidden.flatten(0, 1), tensors[1], target.flatten(), reduction="none")
    assert loss.shape == (3, 4)
    assert torch.equal(loss.flatten(), flat)
    one = linear_masked_cross_entropy(hidden[0, 0], tensors[1], target[0, 0], reduction="none")
    assert one.shape == ()
    torch.testing.assert_close(one, loss[0, 0])


@pytest.mark.parametrize("ignore", [(0, 5, 6, 12), ()], ids=["some ignored", "none ignored"])
def test_every_position_has_its_own_upstream_gradient(chunks, ignore):
    tensors, target, weight = batch(ignore=ignore)
    upstream = torch.linspace(-2, 3, N, dtype=torch.float64)
    upstream[4] = 0
    check(tensors, target, upstream, reduction="none", weight=weight)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_nothing_leaks_from_ignored_positions(chunks, value, dtype, reduction):
    tensors, target, _ = batch(dtype)
    plain = linear_masked_cross_entropy(tensors[0], tensors[1], target, linear_bias=tensors[2], reduction=reduction)
    upstream = torch.linspace(1, 2, N).to(dtype) if reduction == "none" else None
    expected = torch.autograd.grad(plain, tensors, upstream)
    with torch.no_grad():
        tensors[0][[0, 5, 6]] = value
        tensors[0][12, 0] = value
    loss = linear_masked_cross_entropy(tensors[0], tensors[1], target, linear_bias=tensors[2], reduction=reduction)
    if upstream is not None:
        upstream[0] = torch.nan  # what arrives for an ignored position is of no account either
    found = torch.autograd.grad(loss, tensors, upstream)
    assert torch.equal(loss, plain)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not found[0][[0, 5, 6, 12]].any()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_to_learn(reduction):
    for count in (N, 0):
        tensors, target, _ = batch(ignore=range(N))
        hidden, target = tensors[0][:count], target[:count]
        loss = linear_masked_cross_entropy(hidden, tensors[1], target, linear_bias=tensors[2], reduction=reduction)
        gradients = torch.autograd.grad(loss.sum(), [hidden, tensors[1], tensors[2]])
        assert not loss.any()
        assert not any(g.any() for g in gradients)
        assert gradients[0].shape == hidden.shape


@pytest.mark.parametrize("where", [(0, 1, 2), (3, 4, 5), (10, 11, 12)], ids=["first", "second", "last"])
def test_a_stretch_of_ignored_positions(chunks, where):
    tensors, target, _ = batch(ignore=where)
    check(tensors, target)


def test_a_gradient_that_nobody_wants_is_not_made(chunks):
    tensors, target, _ = batch()
    _, everything = check(tensors, target)
    for kept in itertools.product([True, False], repeat=3):
        some = [t.detach().requires_grad_(k) for t, k in zip(tensors, kept, strict=True)]
        loss = linear_masked_cross_entropy(some[0], some[1], target, linear_bias=some[2])
        assert loss.requires_grad == any(kept)
        if any(kept):
            loss.backward()
        for tensor, k, gradient in zip(some, kept, everything, strict=True):
            assert tensor.grad is None if not k else torch.allclose(tensor.grad, gradient)


def test_backward_again(chunks):
    tensors, target, _ = batch()
    loss, once = check(tensors, target)
    for upstream in (1.0, 2.0):
        loss = linear_masked_cross_entropy(tensors[0], tensors[1], target, linear_bias=tensors[2])
        for factor in (upstream, 1.0, upstream):
            above = torch.tensor(factor, dtype=torch.float64)
            found = torch.autograd.grad(loss, tensors, above, retain_graph=True)
            assert all(torch.allclose(f, factor * o) for f, o in zip(found, once, strict=True))


def test_a_gradient_belongs_to_its_owner():
    """An optimiser may change a gradient in place while the graph lives on."""
    tensors, target, _ = batch()
    loss = linear_masked_cross_entropy(*tensors[:2], target, linear_bias=tensors[2])
    first = torch.autograd.grad(loss, tensors, retain_graph=True)
    kept = [g.clone() for g in first]
    for g in first:
        g.zero_()
    second = torch.autograd.grad(loss, tensors)
    assert all(torch.equal(a, b) for a, b in zip(second, kept, strict=True))


@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"label_smoothing": 0.2, "normalizer": 4}], ids=str)
def test_derivatives_of_all_orders(chunks, options):
    tensors, target, weight = batch()
    target, weight = target[:6], weight[:5]
    target[target >= 5] = 4
    given = [tensors[0][:6].detach(), tensors[1][:5].detach(), tensors[2][:5].detach()]
    given = [g.requires_grad_() for g in given]

    def loss(hidden, matrix, bias):
        return linear_masked_cross_entropy(hidden, matrix, target, linear_bias=bias, weight=weight, **options)

    assert torch.autograd.gradcheck(loss, given)
    assert torch.autograd.gradgradcheck(loss, given)


def test_functional_transforms():
    tensors, target, _ = batch()
    _, expected = check(tensors, target)
    given = [t.detach() for t in tensors]

    def loss(hidden, matrix, bias):
        return linear_masked_cross_entropy(hidden, matrix, target, linear_bias=bias)

    found = torch.func.grad(loss, argnums=(0, 1, 2))(*given)
    assert all(torch.allclose(f, e) for f, e in zip(found, expected, strict=True))
    each = torch.func.vmap(lambda h, t: linear_masked_cross_entropy(h, given[1], t, reduction="none"))(given[0], target)
    together = linear_masked_cross_entropy(given[0], given[1], target, reduction="none")
    torch.testing.assert_close(each, together)
    jacobian = torch.autograd.functional.jacobian(
        lambda h: linear_masked_cross_entropy(h, given[1], target, reduction="none"), given[0], vectorize=True
    )
    _, rows = definition([given[0], given[1], None], target, 1.0, reduction="none")
    torch.testing.assert_close(jacobian.sum(0), rows[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("upstream", [1.0, 3.0])
@pytest.mark.parametrize("way", ["_Split", "_Widened"])
def test_half_types_are_rounded_once(chunks, dtype, upstream, way, monkeypatch):
    """The error of the loss is the rounding of the result: what is lost before it would show in a confident loss."""
    if way == "_Widened":
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    tensors, target, _ = batch(dtype)
    with torch.no_grad():
        tensors[0] *= 4
        rows = [i for i in range(N) if target[i] >= 0]
        for i in rows:
            tensors[1][target[i]] += tensors[0][i] / 4
    eps = torch.finfo(dtype).eps
    loss = linear_masked_cross_entropy(*tensors[:2], target, linear_bias=tensors[2], reduction="none")
    expected, _ = definition(tensors, target, 1.0, reduction="none")
    rounding = eps * expected.abs() + 4 * torch.finfo(torch.float32).eps * 300 + torch.finfo(dtype).smallest_normal
    assert (expected[rows] < 0.1).any()
    assert ((loss.double() - expected).abs() <= rounding).all()
    loss = linear_masked_cross_entropy(*tensors[:2], target, linear_bias=tensors[2], reduction="sum")
    found = torch.autograd.grad(loss, tensors, torch.tensor(upstream, dtype=dtype))
    _, truths = definition(tensors, target, upstream, reduction="sum")
    for gradient, truth in zip(found, truths, strict=True):
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient.double(), truth, rtol=2 * eps, atol=2 * eps * float(truth.abs().max()))


def test_products_beyond_the_range_of_bfloat16():
    """-inf + inf in the two parts of a logit would be NaN."""
    hidden = torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16)
    matrix = torch.tensor([[1.0, 1.0], [2.0, 0.0], [-torch.inf, 1.0]], dtype=torch.bfloat16)
    loss = linear_masked_cross_entropy(hidden, matrix, torch.tensor([1]))
    assert float(loss) == pytest.approx(0.3133, rel=2**-8)


def test_autocast_takes_the_dtype_of_the_hidden_states_and_widens_the_loss():
    tensors, target, _ = batch(torch.float32)
    half = tensors[0].detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = linear_masked_cross_entropy(half, tensors[1], target)
        full = linear_masked_cross_entropy(tensors[0], tensors[1], target)
        each = linear_masked_cross_entropy(half, tensors[1], target, reduction="none")
    assert mixed.dtype == each.dtype == torch.float32  # as after a linear layer
    mixed.backward()
    assert tensors[1].grad.dtype == torch.float32
    assert half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(each.sum() / (target >= 0).sum(), mixed)
    assert torch.equal(full, linear_masked_cross_entropy(tensors[0], tensors[1], target))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_logits_are_never_held(chunks, reduction, dtype, monkeypatch):
    monkeypatch.setattr(thresholds, "SMALLEST_CHUNK", 1)
    count = 400
    hidden = torch.randn(count, 8).to(dtype).requires_grad_()
    matrix = torch.randn(1000, 8).to(dtype).requires_grad_()
    target = torch.randint(1000, (count,))
    with Largest() as largest:
        loss = linear_masked_cross_entropy(hidden, matrix, target, reduction=reduction)
        loss.sum().backward()
    assert matrix.grad is not None
    assert 8000 <= largest.count <= 2 * linear_products.rounded(-(-count // 6)) * 1000


@pytest.mark.parametrize("ignored", [0, 0.1])
@pytest.mark.parametrize("wants_gradient", [True, False])
def test_hidden_states_wider_than_the_logits_are_not_held_either(wants_gradient, ignored, monkeypatch):
    """Beside their gradient."""
    monkeypatch.setattr(thresholds, "SMALLEST_CHUNK", 1)
    monkeypatch.setattr(thresholds, "LARGEST_CHUNK", 4000 * 3)
    monkeypatch.setattr(thresholds, "ENOUGH_POSITIONS", 1)
    made = []

    class Made(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            made.extend(
                t for t in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(t, torch.Tensor)
            )
            return result

    hidden = torch.randn(4000, 200, requires_grad=wants_gradient)
    matrix = torch.randn(3, 200, requires_grad=wants_gradient)
    target = torch.randint(3, (4000,)).masked_fill(torch.rand(4000) < ignored, -100)
    with Made():
        loss = linear_masked_cross_entropy(hidden, matrix, target)
        if wants_gradient:
            torch.autograd.grad(loss, (hidden, matrix))
    given = {t.untyped_storage().data_ptr() for t in (hidden, matrix, target)}
    sizes = sorted(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // 4 for t in made}.items(),
        key=lambda one: -one[1],
    )
    large = [size for at, size in sizes if at not in given and size > 100 * 200]
    assert large == ([4000 * 200] if wants_gradient else [])


def test_what_many_chunks_add_to_the_gradient_of_a_bfloat16_matrix_is_rounded_once(monkeypatch):
    """Added up in bfloat16 it is off by more than rounding the gradient of the logits can explain, and by more with each chunk."""
    monkeypatch.setattr(thresholds, "SMALLEST_CHUNK", 32 * 1000)
    monkeypatch.setattr(thresholds, "LARGEST_CHUNK", 32 * 1000)
    generator = torch.Generator().manual_seed(0)
    hidden, matrix = (torch.randn(n, 64, generator=generator).bfloat16() for n in (256, 1000))
    target = torch.randint(0, 1000, (256,), generator=generator)
    asked = Batch(hidden, target, {"linear_weight": matrix / 8}, None, "eager")
    tensors = [t.clone().requires_grad_() for t in asked.differentiated.values()]
    loss = linear_masked_cross_entropy(*tensors, target)
    found = cost_check.examine(asked, blockwise.expected(asked), loss, torch.autograd.grad(loss, tensors))
    assert found.faults == {}


def test_hidden_states_made_of_the_matrix_with_create_graph():
    """As tied embeddings are: what the matrix gets by way of the hidden states is not counted twice."""
    matrix = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([1, 2, -100])

    def gradient(fused: bool, create_graph: bool) -> torch.Tensor:
        hidden = torch.tanh(matrix[:3])
        loss = (
            linear_masked_cross_entropy(hidden, matrix, target) if fused else F.cross_entropy(hidden @ matrix.T, target)
        )
        (found,) = torch.autograd.grad(loss, matrix, create_graph=create_graph)
        return torch.autograd.grad(found.square().sum(), matrix)[0] if create_graph else found

    for create_graph in (False, True):
        torch.testing.assert_close(gradient(True, create_graph), gradient(False, create_graph))
    (found,) = torch.autograd.grad(
        linear_masked_cross_entropy(torch.tanh(matrix[:3]), matrix, target), matrix, create_graph=True
    )
    torch.testing.assert_close(found, gradient(False, False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_normalizer_may_go_on_before_the_backward_pass(dtype):
    hidden = torch.randn(3, 4).to(dtype).requires_grad_()
    matrix, target = torch.randn(5, 4).to(dtype), torch.tensor([1, 2, -100])
    found = []
    for more in (0, 8):
        count = torch.tensor(2.0)
        loss = linear_masked_cross_entropy(hidden, matrix, target, normalizer=count)
        count += more
        found.append(torch.autograd.grad(loss, hidden, torch.tensor(3.0, dtype=dtype))[0])
    assert torch.equal(*found)


@pytest.mark.parametrize("normalizer", [0, 0.0, torch.tensor(0)])
def test_nothing_over_nothing_is_zero(normalizer):
    hidden, matrix = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    target = torch.full((3,), -100)
    for function in (linear_masked_cross_entropy, torch.func.functionalize(linear_masked_cross_entropy)):
        loss = function(hidden, matrix, target, normalizer=normalizer)
        assert loss == 0
        assert not any(g.any() for g in torch.autograd.grad(loss, (hidden, matrix)))


@pytest.mark.parametrize("upstream", [torch.inf, torch.nan])
def test_an_infinite_upstream_gradient_does_not_reach_ignored_states(upstream):
    hidden, matrix = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
    loss = linear_masked_cross_entropy(hidden, matrix, torch.tensor([1, 2, -100]))
    (gradient,) = torch.autograd.grad(loss, hidden, torch.tensor(upstream))
    assert not gradient[2].any()
    assert not gradient[:2].isfinite().any()


def test_without_a_gradient_none_is_computed(monkeypatch):
    asked = []
    monkeypatch.setattr(
        linear_chunks, "chunked_pass", lambda *a, f=linear_chunks.chunked_pass: asked.append(a[-1]) or f(*a)
    )
    hidden, matrix = torch.randn(3, 4), torch.randn(5, 4, requires_grad=True)
    with torch.no_grad():
        linear_masked_cross_entropy(hidden, matrix, torch.tensor([1, 2, -100]))
    linear_masked_cross_entropy(hidden, matrix, torch.tensor([1, 2, -100]))
    assert [list(wanted) for wanted in asked] == [[False] * 3, [False, True, False]]


def test_no_features_and_weights_that_nobody_asks_for():
    target = torch.tensor([1, 2, -100])
    loss = linear_masked_cross_entropy(torch.randn(3, 0), torch.randn(5, 0), target)
    torch.testing.assert_close(loss, torch.tensor(5.0).log())
    hidden, matrix = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
    weight = torch.tensor([1.0, 2.0, 1.0, torch.inf, torch.nan])
    found, wanted = (
        torch.autograd.grad(loss, hidden)[0]
        for loss in (
            linear_masked_cross_entropy(hidden, matrix, target, weight=weight),
            F.cross_entropy(hidden @ matrix.T, target, weight),
        )
    )
    torch.testing.assert_close(found, wanted)


def test_certain_positions_over_a_flat_tail():
    """Softmax loses a sixteenth of the other classes, one after another too small to change a sum that has come to 1."""
    logits, target = torch.randn(4, 20_000) * 0.02, torch.randint(20_000, (4,))
    logits.scatter_(1, target.unsqueeze(1), 17.0)
    for smoothing in (0.0, 1e-6):
        exact = F.cross_entropy(logits.double(), target, reduction="none", label_smoothing=smoothing)
        loss = linear_masked_cross_entropy(
            torch.eye(4), logits.t().contiguous(), target, reduction="none", label_smoothing=smoothing
        )
        torch.testing.assert_close(loss.double(), exact, rtol=0, atol=3e-7)
