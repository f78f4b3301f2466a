"""The choice of a backend: whatever is not equal to the oracle is out, whatever its mistake is."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from awfulowl.arithmetic import digits, products
from awfulowl.arithmetic.products import BACKENDS, Backend, Digits, Oracle, Pieces, Weights, fastest, is_right

Multiply8 = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(autouse=True)
def _nothing_is_remembered() -> Iterator[None]:
    fastest.cache_clear()
    yield
    fastest.cache_clear()


def saturating_pairs(x: Tensor, weight: Tensor) -> Tensor:
    """What processors before VNNI do: two products of bytes are added up in 16 bits."""
    pad = torch.nn.functional.pad
    each = pad(x, (0, x.shape[1] % 2)).int()[:, None] * pad(weight, (0, x.shape[1] % 2)).int()[None]
    pairs = each[:, :, ::2] + each[:, :, 1::2]
    return pairs.clamp(-(2**15), 2**15 - 1).sum(2).int()


def saturating_sums(x: Tensor, weight: Tensor) -> Tensor:
    """Sums that stop at the ends of 32 bits in place of wrapping around."""
    return (x.double() @ weight.double().T).clamp(-(2**31), 2**31 - 1).int()


def float32_sums(x: Tensor, weight: Tensor) -> Tensor:
    """Sums that have 24 bits."""
    return (x.float() @ weight.float().T).long().int()


def seven_bits(x: Tensor, weight: Tensor) -> Tensor:
    """The lowest byte is taken for one more than it is."""
    return (x.clamp(min=-127).double() @ weight.double().T).long().int()


def unwritten(x: Tensor, weight: Tensor) -> Tensor:
    """What PyTorch 2.13 does with strides that oneDNN refuses, of which a weight of one input is the commonest."""
    return torch.full((len(x), len(weight)), 7, dtype=torch.int32) if x.shape[1] == 1 else products.multiply8(x, weight)


def one_off(x: Tensor, weight: Tensor) -> Tensor:
    """One bit of one number."""
    y = (x.double() @ weight.double().T).long().int()
    y[-1, -1] ^= 1
    return y


MISTAKES: list[Multiply8] = [saturating_pairs, saturating_sums, float32_sums, seven_bits, unwritten, one_off]


class Mistaken(Digits):
    """Digits, multiplied by something else."""

    def __init__(self, multiply8: Multiply8) -> None:
        self._multiply8 = multiply8

    def dense(self, planes: Tensor, x: Tensor, width: int) -> Tensor:
        return digits.multiply(self._multiply8, digits.split(x), planes, width)


class WithoutCarry(Digits):
    """Bytes are taken for signed digits, without what is carried into the next."""

    def prepare(self, weight: Tensor) -> Weights:
        return Weights(torch.stack([(weight >> (8 * place)).to(torch.int8) for place in range(weight.itemsize)]))


class Float32(Oracle):
    """Products as floats have them."""

    def dense(self, planes: Tensor, x: Tensor, width: int) -> Tensor:
        y = (x.float() @ planes[0].float().T).long()
        return y.int() if width <= 4 else y


class Raising(Oracle):
    """There is no such product here."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def dense(self, planes: Tensor, x: Tensor, width: int) -> Tensor:
        raise self._error


class AnotherType(Oracle):
    """The right numbers, in more bytes than were asked for."""

    def dense(self, planes: Tensor, x: Tensor, width: int) -> Tensor:
        return super().dense(planes, x, 8)


@pytest.mark.parametrize("backend", BACKENDS, ids=[backend.name for backend in BACKENDS])
def test_every_backend_is_right_here(backend: Backend) -> None:
    assert is_right(backend)


def test_padding_for_gpus_is_right() -> None:
    assert is_right(Mistaken(products._in_tiles))


@pytest.mark.parametrize("multiply8", MISTAKES)
def test_mistakes_in_products_of_bytes_are_seen(multiply8: Multiply8) -> None:
    assert not is_right(Mistaken(multiply8))


@pytest.mark.parametrize("backend", [WithoutCarry(), Float32(), AnotherType()])
def test_mistakes_of_backends_are_seen(backend: Backend) -> None:
    assert not is_right(backend)


@pytest.mark.parametrize(
    "error", [RuntimeError("no such kernel"), NotImplementedError("not here"), AttributeError("torch has no _int_mm")]
)
def test_products_that_are_not_there_are_not_right(error: Exception) -> None:
    assert not is_right(Raising(error))


def test_other_errors_are_told() -> None:
    with pytest.raises(ZeroDivisionError):
        is_right(Raising(ZeroDivisionError()))


def test_the_fastest_is_right_and_remembered() -> None:
    chosen = fastest()
    assert chosen in BACKENDS[1:]
    assert fastest() is chosen


def test_of_right_ones_the_fastest_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for slow, quick in ((Pieces, Digits), (Digits, Pieces)):
        times = {slow.name: 2.0, quick.name: 1.0}
        monkeypatch.setattr(products, "_seconds", lambda backend, device, times=times: times[backend.name])
        fastest.cache_clear()
        assert type(fastest()) is quick


@pytest.mark.parametrize("multiply8", [saturating_pairs, saturating_sums, float32_sums, one_off])
def test_products_of_bytes_that_are_wrong_are_not_used(multiply8: Multiply8, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "multiply8", multiply8)
    assert type(fastest()) is Pieces


def test_without_products_of_bytes_there_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "_int_mm")
    assert type(fastest()) is Pieces


def test_where_nothing_fast_is_right_the_oracle_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "multiply8", one_off)
    monkeypatch.setattr(products, "in_pieces", lambda _, x, weight, terms: (x.float() @ weight.float().T).long())
    assert type(fastest()) is Oracle
