"""What is passed to a worker and back arrives bit for bit."""

import math
import socket
import struct
import threading
import time
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
import torch

from xentcheck.implementation import Deviation, find
from xentcheck.run.isolation.protocol import TOKEN, frame, receive
from xentcheck.run.observe import Answer, Failure, Observation, Raised, observe
from xentcheck.spec.batch import build
from xentcheck.spec.loader import load_all

token = bytes(range(TOKEN))


def passed(value):
    """The value as it arrives, in pieces of at most 1000 bytes."""
    here, there = socket.socketpair()
    data = b"".join(frame(token, value))

    def write():
        for start in range(0, len(data), 1000):
            here.sendall(data[start : start + 1000])

    writing = threading.Thread(target=write)
    writing.start()
    with here, there:
        found, arrived = receive(there, token)
        writing.join()
        there.setblocking(False)
        with pytest.raises(BlockingIOError):
            there.recv(1)
    assert found == token
    return arrived


def storage(tensor):
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy().tobytes()


def same(one, two):
    """Alike to the last bit and of the same types all the way down; tensors with their strides and the gaps between."""
    assert type(one) is type(two)
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape, one.stride(), one.storage_offset()) == (
            two.dtype,
            two.shape,
            two.stride(),
            two.storage_offset(),
        )
        assert storage(one) == storage(two)
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape, one.tobytes()) == (two.dtype, two.shape, two.tobytes())
    elif isinstance(one, dict):
        assert list(one) == list(two)
        for key in one:
            same(one[key], two[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            same(a, b)
    elif hasattr(one, "__dataclass_fields__"):
        for field in fields(one):
            same(getattr(one, field.name), getattr(two, field.name))
    elif isinstance(one, float):
        assert struct.pack("<d", one) == struct.pack("<d", two)
    else:
        assert one == two


PLAIN = [
    None, True, 0, -(10**30), 0.1, -0.0, math.inf, -math.inf, math.nan, 5e-324, "", "ä\n\0😀", "\ud800", (), [], {}, (1,), [1, (2.5, None)],
    {"a": [1], 2: {"b": (3,)}}, frozenset({"x", "y"}),
]  # fmt: skip


@pytest.mark.parametrize("value", PLAIN, ids=range(len(PLAIN)))
def test_plain_values(value):
    same(value, passed(value))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3, 4), (300, 200)])
@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8", "u1", "?", ">f8", "c16"])
def test_arrays(dtype, shape):
    value = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    same(value, passed(value))


def test_an_array_that_is_not_contiguous_keeps_its_values():
    value = np.arange(24.0).reshape(4, 6).T[::2]
    assert np.array_equal(passed(value), value)


def test_tensors_that_share_their_memory_are_passed_once_and_share_it_there():
    whole = torch.arange(6.0)
    value = [whole, whole.view(2, 3).T, whole[2:], torch.arange(6.0)]
    assert [len(part) for part in frame(token, value)].count(6 * 4) == 2
    found = passed(value)
    same(value, found)
    assert len({tensor.untyped_storage().data_ptr() for tensor in found}) == 2


TENSORS = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


@pytest.mark.parametrize("dtype", TENSORS, ids=str)
@pytest.mark.parametrize(
    "view",
    [
        lambda t: t,
        lambda t: t.T,
        lambda t: t[:, ::2],
        lambda t: t[1:-1],
        lambda t: t[2, 3],
        lambda t: t[:0],
        lambda t: t[:1].expand(5, 6),
        lambda t: t[:, :0],
        lambda t: t.as_strided((3, 3), (1, 1), 7),
    ],
)
def test_tensors(dtype, view):
    bits = torch.arange(6 * 6 * dtype.itemsize) % (2 if dtype == torch.bool else 251)
    tensor = view(bits.to(torch.uint8).view(dtype).reshape(6, -1)[:, :6])
    arrived = passed(tensor)
    same(tensor, arrived)
    assert arrived.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr() or not storage(tensor)


def test_tensors_of_nothing_and_of_one():
    for tensor in (torch.empty(0), torch.tensor(1.5), torch.empty(0, 3).T):
        same(tensor, passed(tensor))


def test_the_bits_of_a_nan():
    tensor = torch.tensor([0x7FC00001, 0x7F800001, -1], dtype=torch.int32).view(torch.float32)
    assert passed(tensor).view(torch.int32).tolist() == [0x7FC00001, 0x7F800001, -1]
    array = np.array([0x7FF8000000000001, 0x7FF0000000000001], dtype=np.int64).view(np.float64)
    assert np.array_equal(passed(array).view(np.int64), array.view(np.int64))


def test_every_batch_of_the_specification():
    cases = [case for case in load_all() if not case.is_huge]
    for case in cases:
        batch = build(case)
        same(batch, passed(batch))
        same(batch.fresh(), passed(batch).fresh())


def test_an_observation_comes_without_the_tensor_whose_memory_is_elsewhere(case):
    asked = case("logits: {shape: [3, 4]}")
    seen = observe(find("native")[0], build(asked), True)
    assert seen.first.tensor is not None
    same(
        replace(seen, first=replace(seen.first, tensor=None), again=replace(seen.again, tensor=None)),
        passed(seen),
    )


@pytest.mark.parametrize(
    "value",
    [
        Observation(Answer(raised=Raised("call", "ValueError", "no\nno")), None, ("input",), ("Warning: w",)),
        Failure("crash", "the worker"),
        Deviation("a/*", "loss", "it is known", "value", "https://example.org", max_units=2.5, certain=False),
    ],
)
def test_dataclasses(value):
    same(value, passed(value))


@dataclass(frozen=True)
class Foreign:
    x: int = 1


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"loss": object()}, "dict['loss']: expected"),
        (Answer(loss=[1, {2, 3}]), "Answer.loss[1]: expected"),
        (Observation(Answer(), Answer(second=np.array([None])), ()), "Observation.again.second: expected"),
        (Foreign(), f"found {__name__}.Foreign, which cannot be passed to a worker"),
        (np.float64(1), "found numpy.float64"),
        (torch.zeros(2, requires_grad=True), "found torch.Tensor"),
        (torch.zeros(2).to_sparse(), "found torch.Tensor"),
        (torch.zeros(2, device="meta"), "found torch.Tensor"),
        (torch.zeros(2, dtype=torch.complex64).conj(), "found torch.Tensor"),
        (torch.nn.Parameter(torch.zeros(2)), "found torch.nn.parameter.Parameter"),
        (len, "found builtins.builtin_function_or_method"),
    ],
    ids=lambda v: v.partition(" ")[0] if isinstance(v, str) else "",
)
def test_what_cannot_be_passed_is_an_error_that_names_its_place(value, says):
    with pytest.raises(TypeError) as error:
        frame(token, value)
    assert says in str(error.value)


def test_a_field_that_stays_may_hold_anything():
    assert passed(Answer(tensor=object())).tensor is None


def test_bytes_that_are_no_frame():
    here, there = socket.socketpair()
    with here, there:
        here.sendall(b"x" * 100)
        with pytest.raises(ValueError, match="expected an answer; found b'xxx"):
            receive(there, token)


def test_a_frame_that_is_not_complete():
    here, there = socket.socketpair()
    with there:
        here.sendall(b"".join(frame(token, [1, 2]))[:-1])
        with pytest.raises(TimeoutError):
            receive(there, token, time.monotonic() + 0.01)
        with pytest.raises(TimeoutError):
            receive(there, token, time.monotonic() - 1)
        here.close()
        with pytest.raises(EOFError):
            receive(there, token)
