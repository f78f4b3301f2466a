"""Lies are as large as they should be, and counted when they are any."""

import pytest
import torch

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
