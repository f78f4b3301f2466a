"""Memory that is used again, and never while somebody looks at it."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from awfulowl.limits import KIB, MIB
from awfulowl.wire import buffers
from awfulowl.wire.buffers import Buffers


def address(memory: memoryview) -> int:
    return torch.frombuffer(memory, dtype=torch.uint8).data_ptr()


def test_memory_is_used_again_when_its_last_view_is_gone() -> None:
    pool = Buffers()
    memory = pool.take(MIB)
    first = address(memory)
    part = memory[1000:2000].toreadonly()
    tensor = torch.frombuffer(part, dtype=torch.uint8)
    del memory, part
    assert address(pool.take(MIB)) != first
    row = tensor.reshape(10, 100)[3]
    del tensor
    assert address(pool.take(MIB)) != first
    del row
    assert address(pool.take(MIB)) == first


def test_memory_fits_and_is_not_wasted_on_little() -> None:
    pool = Buffers()
    large = address(pool.take(8 * MIB))
    assert len(pool.take(7 * MIB)) == 7 * MIB
    assert address(pool.take(7 * MIB)) == large
    assert address(pool.take(MIB)) != large
    assert address(pool.take(9 * MIB)) != large


def test_small_memory_is_not_kept() -> None:
    pool = Buffers()
    assert bytes(pool.take(10)) == bytes(10)
    assert pool._blocks == []
    assert len(pool.take(0)) == 0


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_MOST_BYTES", 3 * MIB)
    pool = Buffers()
    lent = [pool.take(MIB) for _ in range(10)]
    assert sum(len(block.memory) for block in pool._blocks) <= 3 * MIB
    for number, memory in enumerate(lent):
        memory[:] = bytes([number]) * MIB
    assert [memory[-1] for memory in lent] == list(range(10))


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 4), st.integers(64 * KIB, 400 * KIB)), max_size=30))
def test_no_two_users_have_the_same_memory(steps: list[tuple[int, int]]) -> None:
    pool, held = Buffers(), dict[int, memoryview]()
    for number, (slot, size) in enumerate(steps):
        held.pop(slot, None)
        memory = pool.take(size)
        assert len(memory) == size
        memory[:] = bytes([number]) * size
        held[slot] = memory
        seen = [(address(memory), address(memory) + len(memory)) for memory in held.values()]
        assert all(a is b or a[1] <= b[0] or b[1] <= a[0] for a in seen for b in seen)


def test_threads_do_not_share() -> None:
    pool, seen = Buffers(), list[int]()
    memory = pool.take(MIB)
    first = address(memory)
    del memory
    thread = threading.Thread(target=lambda: seen.append(address(pool.take(MIB))))
    thread.start()
    thread.join()
    assert seen != [first]


def test_what_is_larger_than_all_that_is_kept_pushes_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_MOST_BYTES", 3 * MIB)
    pool = Buffers()
    first = address(pool.take(MIB))
    assert len(pool.take(4 * MIB)) == 4 * MIB
    assert address(pool.take(MIB)) == first


@pytest.mark.parametrize("shape", [(), (3,), (0, 5), (200, 300), (4, 64, 16, 16)])
def test_tensors_are_float32_whatever_the_default(shape: tuple[int, ...]) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        tensor = buffers.empty(shape)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (tensor.shape, tensor.dtype, tensor.is_contiguous()) == (shape, torch.float32, True)
    assert tensor.data_ptr() % buffers.ALIGNMENT == 0
