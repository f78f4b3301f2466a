"""A device that runs out of memory drops what it cannot use, and takes no more of it."""

import pytest
import torch
from torch import Tensor

from awfulowl.blocks.kernels import Dense
from awfulowl.device.shortage import is_shortage
from awfulowl.device.store import Store
from awfulowl.errors import LimitError, RefusedError
from awfulowl.limits import DEFAULT
from awfulowl.wire.messages import Apply, Load
from awfulowl.wire.parts import Sheet, Term

ROWS = (b"r" * 16,)
ONE, TWO, THREE = (bytes([letter]) * 16 for letter in b"123")
WEIGHT_BYTES = 3 * 4 * 4


def sheet(*slices: bytes) -> Sheet:
    return Sheet(ROWS, (3,), slices, (4,) * len(slices), Dense())


def store(memory_bytes: int = 10 * WEIGHT_BYTES) -> Store:
    """Return a store of three slices; the first two lie in one sheet."""
    found = Store(DEFAULT, memory_bytes)
    found.load(Load((sheet(ONE, TWO), sheet(THREE))), [torch.randn(3, 8), torch.randn(3, 4)])
    return found


def test_shortages_are_known_by_type_and_by_the_words_of_pytorch() -> None:
    assert is_shortage(MemoryError())
    assert is_shortage(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_shortage(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_shortage(ValueError("allocate memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.int8)
    assert is_shortage(caught.value)


def test_whole_sheets_are_given_up_and_named() -> None:
    held = store()
    assert set(held.give_up([ONE, b"?" * 16])) == {ONE, TWO}
    assert len(held) == 1
    assert held.give_up([ONE]) == ()


def test_what_was_given_up_is_not_taken_again_before_all_is_forgotten() -> None:
    held = store()
    held.give_up([THREE])
    with pytest.raises(LimitError, match=f"{2 * WEIGHT_BYTES} offered"):
        held.load(Load((sheet(THREE),)), [torch.randn(3, 4)])
    held.clear()
    held.load(Load((sheet(THREE),)), [torch.randn(3, 4)])
    assert len(held) == 1


@pytest.mark.parametrize(("message", "kind"), [("can't allocate memory", RuntimeError), ("shapes", RefusedError)])
def test_a_shortage_is_no_refusal(message: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is this device's trouble, not the owner's."""
    held = store()

    def fail(*_: Tensor) -> Tensor:
        raise RuntimeError(message)

    monkeypatch.setattr(held, "_multiply_floats", fail)
    with pytest.raises(kind) as caught:
        held.apply(Apply((ONE,), (Term(ROWS, (ONE,)),)), torch.ones(2, 4))
    assert isinstance(caught.value, RefusedError) == (kind is RefusedError)
