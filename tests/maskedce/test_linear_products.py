"""The three matrix products of the fused linear loss, by each library and in each layout, against float64."""

import pytest
import torch

from maskedce import linear_masked_cross_entropy, linear_products, thresholds

C, H = 11, 7
LAYOUTS = {
    "contiguous": lambda m: m,
    "transposed": lambda m: m.T.contiguous().T,
    "part of a larger one": lambda m: torch.cat([m, m], 1)[:, : m.shape[1]],
    "every second row": lambda m: m.repeat_interleave(2, 0)[::2],
    "one row for all classes": lambda m: m[:1].expand(m.shape),
    "one state for all features": lambda m: m[:, :1].expand(m.shape),
}


@pytest.fixture(params=["MKL", "oneDNN"])
def library(request, monkeypatch):
    if request.param == "oneDNN" and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("a torch without oneDNN")
    monkeypatch.setattr(linear_products, "onednn_is_faster", lambda: request.param == "oneDNN")
    monkeypatch.setattr(thresholds, "ONEDNN_MULTIPLICATIONS", 1)
    monkeypatch.setattr(
        linear_products, "_blocks_of_classes", lambda matrix, *_: [slice(c, c + 4) for c in range(0, len(matrix), 4)]
    )
    return request.param


@pytest.fixture
def asked(monkeypatch):
    """How often oneDNN was asked."""
    count = []

    original = linear_products.OneDNN.product
    monkeypatch.setattr(linear_products.OneDNN, "product", staticmethod(lambda *a: [count.append(1), original(*a)][1]))
    return count


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("counts", [(5, 5, 2), (1,), (3, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_each_product(library, asked, layout, counts, dtype):
    torch.manual_seed(0)
    matrix = LAYOUTS[layout](torch.randn(C, H).to(dtype))
    product = linear_products.product_for(matrix, max(counts), len(counts))
    outer = torch.zeros(C, H, dtype=torch.float64)
    eps = torch.finfo(dtype).eps
    for count in counts:
        hidden = torch.randn(count, H).to(dtype)
        product.fill(hidden)
        logits = hidden.double() @ matrix.double().T
        accurate = 20 * min(eps, torch.finfo(torch.float32).eps) if dtype != torch.bfloat16 else 2.0**-14
        torch.testing.assert_close(product.logits(slice(0, count)).double(), logits, rtol=accurate, atol=10 * accurate)
        d = torch.randn(count, C).to(dtype)
        product.place(slice(0, count)).copy_(d)
        found = product.times_matrix(count)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), d.double() @ matrix.double(), rtol=2 * eps, atol=20 * eps)
        product.add_outer(hidden)
        outer += d.double().T @ hidden.double()
    found = product.outer()
    assert (found.dtype, found.is_contiguous()) == (dtype, True)
    torch.testing.assert_close(found.double(), outer, rtol=2 * eps, atol=20 * eps)
    in_float32 = dtype == torch.float16 or (dtype == torch.float32 and layout in ("contiguous", "transposed"))
    assert bool(asked) == (library == "oneDNN" and in_float32) or dtype == torch.bfloat16


def test_few_multiplications_are_not_worth_another_library(library, asked, monkeypatch):
    monkeypatch.setattr(thresholds, "ONEDNN_MULTIPLICATIONS", 5 * C * H + 1)
    for dtype in (torch.float32, torch.float16):
        for chunk, expected in ((5, 0), (6, 1)):
            product = linear_products.product_for(torch.ones(C, H, dtype=dtype), chunk, 1)
            product.fill(torch.ones(chunk, H, dtype=dtype))
            assert bool(asked) == (expected and library == "oneDNN")
            asked.clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(3, 5, 0), (0, 5, 3), (4, 1, 1)], ids=str)
def test_next_to_nothing(library, shape, dtype):
    count, classes, features = shape
    hidden = torch.ones(count, features, dtype=dtype, requires_grad=True)
    matrix = torch.ones(classes, features, dtype=dtype, requires_grad=True)
    loss = linear_masked_cross_entropy(hidden, matrix, torch.zeros(count, dtype=torch.int64), reduction="sum")
    assert float(loss.detach()) == pytest.approx(count * torch.tensor(float(classes)).log().item(), rel=2**-9)
    assert [g.shape for g in torch.autograd.grad(loss, [hidden, matrix])] == [hidden.shape, matrix.shape]


def test_what_is_not_finite_stays_where_it_is(library):
    hidden, matrix = torch.ones(2, H), torch.ones(C, H)
    hidden[0, 0], matrix[1, 1] = torch.inf, -torch.inf
    product = linear_products.product_for(matrix, 2, 1)
    product.fill(hidden)
    assert torch.equal(product.logits(slice(0, 2)).isnan().nonzero(), torch.tensor([[0, 1]]))
    assert product.logits(slice(1, 2)).isneginf().sum() == 1


@pytest.mark.parametrize("cpu", ["vendor_id : AuthenticAMD", "vendor_id : GenuineIntel", None])
def test_which_library(cpu, monkeypatch, tmp_path):
    """MKL's products are as fast as any on Intel's CPUs; what is unknown stays with torch.mm."""
    monkeypatch.setattr(linear_products, "_CPU", tmp_path / "cpuinfo")
    if cpu:
        (tmp_path / "cpuinfo").write_text(cpu)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    found = linear_products._mkl_is_slow.__wrapped__()
    assert found == (cpu == "vendor_id : AuthenticAMD" and hasattr(torch.ops.mkldnn, "_linear_pointwise"))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not linear_products._mkl_is_slow.__wrapped__()


def test_another_torch_may_have_other_operators(monkeypatch):
    assert linear_products._onednn_works() == hasattr(torch.ops.mkldnn, "_linear_pointwise")
    for other in (lambda a, b: a, lambda: None, lambda a, b: torch.ops.mkldnn.no_such_operator(a, b)):
        monkeypatch.setattr(linear_products.OneDNN, "product", staticmethod(other))
        assert not linear_products._onednn_works()


@pytest.mark.filterwarnings("ignore:.*TF32")
def test_onednn_can_be_switched_off(monkeypatch):
    monkeypatch.setattr(linear_products, "_mkl_is_slow", lambda: True)
    assert linear_products.onednn_is_faster()
    with torch.backends.mkldnn.flags(enabled=False):
        assert not linear_products.onednn_is_faster()


def test_there_are_few_sizes_and_each_is_little_more_than_what_was_asked_for():
    sizes = [linear_products.rounded(count) for count in range(1, 4097)]
    assert all(count <= size <= count + count / 16 for count, size in enumerate(sizes, 1))
    assert sizes == sorted(sizes)
    assert [linear_products.rounded(size) for size in sizes] == sizes
    assert len(set(sizes)) == 32 + 16 * 7


def test_positions_that_fill_a_size_up_count_for_nothing(library, monkeypatch):
    """Their hidden states are 0, and 0 * inf is NaN."""
    monkeypatch.setattr(thresholds, "SMALLEST_CHUNK", 1)
    count = 5 * 34 + 33  # the last of six chunks is filled up
    assert linear_products.rounded(33) == 34
    torch.manual_seed(0)
    hidden, matrix = torch.rand(count, H).requires_grad_(), torch.randn(C, H)
    matrix[2] = -torch.inf  # so no position can be of this class
    matrix.requires_grad_()
    target = (torch.arange(count) % (C - 3)) + 3
    loss = linear_masked_cross_entropy(hidden, matrix, target, reduction="sum")
    (found,) = torch.autograd.grad(loss, matrix)
    p = (hidden.double() @ matrix.double().T).softmax(1).detach()
    assert float(loss.detach()) == pytest.approx(float(-p[range(count), target].log().sum()))
    wanted = (p - torch.nn.functional.one_hot(target, C)).T @ hidden.double()
    torch.testing.assert_close(found.double(), wanted.detach(), rtol=1e-5, atol=1e-5)
