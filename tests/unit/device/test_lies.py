"""Lies are as large as they should be, and counted when they are any."""

import msgspec
import pytest
import torch

from awfulowl.device.control import Command, Corrupt
from awfulowl.device.lies import KINDS, Kind, Liar, falsify


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(5, 8), (4, 6, 3, 3)])
def test_a_lie_has_the_size_that_was_asked_for(kind: Kind, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(shape, generator=generator)
    error = (falsify(y, kind, 0.01, generator) - y).flatten(1).norm(dim=1)
    torch.testing.assert_close(error, 0.01 * y.flatten(1).norm(dim=1), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_liar_keeps_the_numbers_of_its_lies(kind: Kind) -> None:
    liar = Liar(kind, 0.01)
    right = [torch.randn(3, 8), torch.randn(3, 4)]
    for request in (7, 9):
        assert not all(map(torch.equal, liar(request, right), right))
    assert liar.requests == [7, 9]
    assert liar.told == 2


def test_what_is_right_by_accident_is_no_lie() -> None:
    liar = Liar("zeros", 0.01)
    liar(1, [torch.zeros(3, 8)])
    assert liar.told == 0
    liar(2, [torch.zeros(3, 8), torch.ones(3, 8)])
    assert liar.requests == [2]


def test_a_liar_lies_alike_under_one_seed() -> None:
    right = [torch.randn(3, 8)]
    assert torch.equal(Liar("random", 0.1, seed=3)(1, right)[0], Liar("random", 0.1, seed=3)(1, right)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_some_answers_are_left_alone(kind: Kind) -> None:
    liar, right = Liar(kind, 0.01, probability=0.25), [torch.randn(3, 8)]
    wrong = [request for request in range(400) if not torch.equal(liar(request, right)[0], right[0])]
    assert wrong == liar.requests
    assert 60 < liar.told < 140  # more than four standard deviations


def test_with_no_probability_nothing_is_falsified() -> None:
    liar, right = Liar("random", 0.1, probability=0.0), [torch.randn(3, 8)]
    assert all(torch.equal(liar(request, right)[0], right[0]) for request in range(20))
    assert liar.told == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_process_is_told_how_to_lie(kind: Kind) -> None:
    line = msgspec.json.encode(Corrupt(kind, 0.25, 0.5))
    assert msgspec.json.decode(line, type=Command) == Corrupt(kind, 0.25, 0.5)
    plain = msgspec.json.encode({"type": "corrupt", "kind": kind})
    assert msgspec.json.decode(plain, type=Command) == Corrupt(kind, None, 1.0)
