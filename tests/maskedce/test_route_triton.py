"""The Triton kernels, run by Triton's interpreter: a process of its own, since the environment says so before anything is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if not INTERPRETED:
    import torch

    from maskedce import route_triton

    def test_under_the_interpreter():
        """This file once more, interpreted. Triton comes with the dev extra where it exists (Linux); elsewhere there is nothing to test."""
        if sys.platform == "linux":
            import triton  # noqa: F401  # missing, it is an error: these tests are not to be skipped in silence
        else:
            pytest.skip("Triton exists for Linux only")
        environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            str(Path(__file__)),
        ]
        done = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
        assert " passed" in done.stdout
        assert "skipped" not in done.stdout

    CAN_RUN = torch.cuda.is_available() and route_triton.triton is not None

    @pytest.mark.skipif(CAN_RUN, reason="a CUDA device is here")
    def test_without_a_device_it_says_why():
        assert "triton" in route_triton.UNAVAILABLE or "CUDA" in route_triton.UNAVAILABLE
        with pytest.raises(RuntimeError, match=r"CUDA|triton"):
            route_triton.triton_masked_cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]))

    @pytest.mark.skipif(not CAN_RUN, reason="no CUDA device here")
    def test_with_a_device_it_is_available():
        assert route_triton.UNAVAILABLE == ""

else:
    import torch
    import torch.nn.functional as F
    from forced_routes import take_route

    from maskedce import masked_cross_entropy
    from maskedce.route_triton import UNAVAILABLE, triton_masked_cross_entropy
    from xentcheck.implementation import find
    from xentcheck.run.examiner import Examiner
    from xentcheck.spec.loader import load_all, select

    # Every clause; of those whose cases are many or large for an interpreter, the part that the kernels could break.
    CLAUSES = (
        "accuracy/confident*,accuracy/*tail*,all-ignored,answers,bad-input,class-weights,empty-batch,ignore-lists,ignored-nonfinite,"
        "ignored-positions,infinite-or-nan-valid-row,label-smoothing,layouts,logit-range,minus-infinity,modes/double*,modes/twice*,"
        "modes/no*,modes/inference*,plain-values,target-dtypes,upstream-gradient"
    )
    CASES = select(load_all(), CLAUSES)

    def size(case):
        shape = case.question.logits.shape
        return 0 if shape is None else torch.Size(shape).numel()

    def test_the_kernels_run_here():
        assert UNAVAILABLE == ""

    @pytest.mark.parametrize("clause", sorted({case.clause.clause for case in CASES}))
    def test_every_case(clause):
        examiner, implementation = Examiner(), find("maskedce_triton")[0]
        asked = [case for case in CASES if case.clause.clause == clause and size(case) <= 10_000]
        verdicts = [examiner.examine(case, aspect, implementation) for case in asked for aspect in case.aspects]
        wrong = [v for v in verdicts if not v.status.is_good]
        assert not wrong, "\n".join(f"{v.case} {v.aspect}: {v.message}" for v in wrong)
        assert any(v.status == "pass" for v in verdicts)

    def both(x, target, upstream=None, **options):
        """Losses and gradients of the kernels and of the loss on the CPU."""
        found = []
        for loss in (triton_masked_cross_entropy, masked_cross_entropy):
            leaf = x.detach().requires_grad_()
            value = loss(leaf, target, **options)
            found.append((value, *torch.autograd.grad(value, leaf, upstream)))
        return found

    @pytest.mark.parametrize("shape", [(3, 9001), (2, 130, 70), (5000, 3), (2, 65, 9, 8), (4, 1), (1, 4096)], ids=str)
    def test_more_than_one_tile(shape):
        """Several tiles of classes, the last of them partial, and several of positions."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(shape, generator=generator) * 3
        target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
        target.view(-1)[1::3] = -100
        weight = torch.rand(shape[1], generator=generator) + 0.5
        for options in ({}, {"weight": weight, "label_smoothing": 0.1}, {"label_smoothing": 1.0}, {"normalizer": 7}):
            mine, other = both(x, target, **options)
            torch.testing.assert_close(mine[0], other[0], rtol=2e-6, atol=1e-6)
            torch.testing.assert_close(mine[1], other[1], rtol=2e-5, atol=float(other[1].abs().max()) * 2e-6 + 1e-7)

    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize(
        ("offset", "peak", "smoothing"),
        [(0, 40, 1e-3), (100, 40, 1e-3), (-1000, 10, 0.1), (1e4, 40, 1e-3), (0, -300, 1), (0, -300, 0.5)],
    )
    def test_smoothing_cancels_nothing(offset, peak, smoothing, weighted):
        """A confident prediction far from 0, whose loss is small."""
        generator = torch.Generator().manual_seed(0)
        x, target = torch.randn(4, 5000, generator=generator), torch.tensor([3, 4999, 0, 17])
        x[torch.arange(4), target] += peak
        x += offset
        weight = torch.rand(5000, generator=generator) + 0.5 if weighted else None
        options = {"label_smoothing": smoothing, "weight": weight, "reduction": "none"}
        exact = F.cross_entropy(
            x.double(),
            target,
            weight if weight is None else weight.double(),
            reduction="none",
            label_smoothing=smoothing,
        )
        torch.testing.assert_close(triton_masked_cross_entropy(x, target, **options).double(), exact, rtol=1e-6, atol=0)

    def test_large_logits_do_not_overflow_by_smoothing():
        for x in (torch.full((2, 10), 1e38), torch.full((2, 10), -3e38)):
            loss = triton_masked_cross_entropy(x, torch.tensor([1, 2]), label_smoothing=0.1)
            torch.testing.assert_close(loss, torch.tensor(10.0).log())
        x = torch.tensor([[-torch.inf, 1.0, 2.0]])
        for smoothing, weight in ((0.3, None), (1.0, torch.tensor([0.0, 1.0, 2.0]))):
            options = {"label_smoothing": smoothing, "weight": weight, "reduction": "sum"}
            mine, other = both(x, torch.tensor([0]), **options)
            torch.testing.assert_close(mine, other, equal_nan=True)

    @pytest.mark.parametrize("unused", [torch.inf, torch.nan])
    def test_a_weight_that_no_target_has_reaches_nothing(unused):
        x, target = torch.randn(3, 4), torch.tensor([0, 1, -100])
        for weight in (torch.tensor([1.0, 2, 1, unused]), torch.full((4,), 2e38)):
            mine, other = both(x, target, weight=weight)
            assert other[1].isfinite().all()
            torch.testing.assert_close(mine, other, equal_nan=True)

    def test_classes_in_the_last_dimension_of_memory():
        x = torch.randn(2, 6, 5, 50).permute(0, 3, 1, 2)
        target = torch.randint(50, (2, 6, 5))
        mine, other = both(x, target)
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)

    def test_ignored_rows_are_not_read():
        """Rows outside of the memory that belongs to the tensor: whoever read them would find NaN, and nobody reads what is a hole."""
        memory = torch.full((4, 2, 6), torch.nan)
        x = memory[:, 0]
        x[::2] = torch.randn(2, 6)
        mine = triton_masked_cross_entropy(x, torch.tensor([1, -100, 2, -100]), reduction="none")
        assert mine.isfinite().all()
        torch.testing.assert_close(mine[::2], F.cross_entropy(x[::2], torch.tensor([1, 2]), reduction="none"))

    def test_addresses_beyond_31_bits():
        """Two rows 2^31 elements apart, in memory of which nothing else is touched."""
        apart = 2**31 + 64
        memory = torch.empty(apart + 8, dtype=torch.float16)  # the interpreter cuts bfloat16 off instead of rounding it
        x = memory.as_strided((2, 5), (apart, 1))
        x.copy_(torch.tensor([[1.0, 2, 3, 4, 5], [5, 4, 3, 2, 1]]))
        mine, other = both(x, torch.tensor([0, 1]), reduction="none", upstream=torch.ones(2, dtype=torch.float16))
        assert torch.equal(mine[0], other[0])
        assert torch.equal(mine[1], other[1])

    def test_the_saved_values_are_of_the_positions():
        """Between forward and backward there is nothing of the logits' size beside the logits."""
        x = torch.randn(8, 3000, requires_grad=True)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            loss = triton_masked_cross_entropy(x, torch.randint(3000, (8,)))
        assert loss.requires_grad
        assert sum(t.numel() for t in saved if t.data_ptr() != x.data_ptr()) < 200

    def test_the_function_for_users_comes_here(monkeypatch):
        """As it does on a CUDA device, but for what the kernels cannot do."""
        from maskedce import route_triton, routes

        monkeypatch.setattr(routes, "_is_on_cuda", lambda input: True)
        take_route("composed", monkeypatch)
        asked = []
        kernel_loss = route_triton.kernel_loss
        monkeypatch.setattr(route_triton, "kernel_loss", lambda *a: asked.append(a) or kernel_loss(*a))
        x, target = torch.randn(4, 5, requires_grad=True), torch.tensor([1, -100, 4, 0])
        for options in ({}, {"weight": torch.rand(5), "reduction": "sum"}, {"normalizer": torch.tensor(3.0)}):
            before = len(asked)
            mine, kernels = (
                masked_cross_entropy(x, target, **options),
                triton_masked_cross_entropy(x, target, **options),
            )
            assert len(asked) == before + 2
            assert torch.equal(mine, kernels)
            assert torch.equal(*(torch.autograd.grad(loss, x)[0] for loss in (mine, kernels)))
        before = len(asked)
        for probabilities in (torch.rand(4, 5), torch.rand(4, 5, requires_grad=True)):
            torch.testing.assert_close(masked_cross_entropy(x, probabilities), F.cross_entropy(x, probabilities))
        per_row = torch.func.vmap(masked_cross_entropy)(x.detach(), torch.tensor([1, 2, 4, 0]))
        torch.testing.assert_close(per_row, F.cross_entropy(x, torch.tensor([1, 2, 4, 0]), reduction="none"))
        assert len(asked) == before

    def test_second_derivatives():
        x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
        target = torch.tensor([1, -100, 4, 0])
        for options in ({}, {"reduction": "none"}, {"label_smoothing": 0.2}):
            loss = lambda x, options=options: triton_masked_cross_entropy(x, target, **options)  # noqa: E731
            assert torch.autograd.gradcheck(loss, x)
            assert torch.autograd.gradgradcheck(loss, x)
