"""A secret permutation of hidden units is undone exactly, and one that only resembles as well as it can be."""

from collections.abc import Sequence
from itertools import pairwise, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from awfulowl.errors import InputError
from awfulowl.lab.shuffled.symmetry import Symmetry, find_symmetry
from awfulowl.lab.shuffled.weight_matching import State, draw_permutations, match, permute
from awfulowl.models.digits import DigitsNet
from awfulowl.randomness import Entropy
from tests.unit.lab.shuffled.networks import ResNet, made, settled


def invert(permutations: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The permutations that undo others."""
    return [torch.argsort(one) for one in permutations]


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def shuffled(model: nn.Module, seed: int) -> tuple[Symmetry, tuple[Tensor, ...], dict[str, Tensor]]:
    symmetry = find_symmetry(model)
    secret = draw_permutations(symmetry, Entropy(seed))
    return symmetry, secret, permute(model.state_dict(), symmetry, secret)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (made(mlp, 20, 64, 48, 32, 10), (20,)),
        (made(mlp, 2, 64, 64, 64, 64, 2), (2,)),
        (made(DigitsNet), (1, 8, 8)),
        (made(ResNet, 16), (3, 8, 8)),
    ],
)
def test_a_permuted_copy_is_undone_exactly(model: nn.Module, shape: tuple[int, ...], seed: int) -> None:
    model = settled(model, *shape)
    symmetry, secret, stolen = shuffled(model, seed)
    found = match(model.state_dict(), stolen, symmetry, Entropy(seed + 10))
    assert same(permute(stolen, symmetry, found.permutations), model.state_dict())
    assert all(torch.equal(one, other) for one, other in zip(found.permutations, invert(secret), strict=True))


def test_units_that_are_alike_tie_and_the_network_is_still_right() -> None:
    model = made(mlp, 6, 8, 3)
    with torch.no_grad():
        model[0].weight[1] = model[0].weight[0]
        model[0].bias[1] = model[0].bias[0]
        model[2].weight[:, 1] = model[2].weight[:, 0]
    symmetry, _, stolen = shuffled(model, 1)
    found = match(model.state_dict(), stolen, symmetry, Entropy(0))
    assert same(permute(stolen, symmetry, found.permutations), model.state_dict())


@pytest.mark.parametrize("seed", range(3))
def test_a_permuted_copy_is_undone_from_a_network_that_was_trained_on(seed: int) -> None:
    model = settled(made(ResNet, 16), 3, 8, 8)
    symmetry, secret, stolen = shuffled(model, seed)
    generator = torch.Generator().manual_seed(seed)
    noisy = {
        name: tensor + 0.5 * tensor.std() * torch.randn(tensor.shape, generator=generator)
        if tensor.dim() > 1
        else tensor
        for name, tensor in model.state_dict().items()
    }
    found = match(noisy, stolen, symmetry, Entropy(seed))
    right = [one == other for one, other in zip(found.permutations, invert(secret), strict=True)]
    assert float(torch.cat(right).double().mean()) > 0.97


def test_a_network_from_other_weights_gives_nothing_to_find() -> None:
    model, other = made(mlp, 20, 200, 10, seed=1), made(mlp, 20, 200, 10, seed=2)
    symmetry, secret, stolen = shuffled(model, 3)
    found = match(other.state_dict(), stolen, symmetry, Entropy(0))
    assert int((found.permutations[0] == invert(secret)[0]).sum()) < 10


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_one_group_is_solved_as_well_as_by_trying_all(seed: int) -> None:
    one, other = made(mlp, 3, 5, 2, seed=seed), made(mlp, 3, 5, 2, seed=seed + 1)
    symmetry = find_symmetry(one)
    reference, stolen = one.state_dict(), other.state_dict()

    def similarity(order: Tensor) -> float:
        moved = permute(stolen, symmetry, [order])
        moving = ("0.weight", "0.bias", "2.weight")
        return sum(float((reference[name].double() * moved[name].double()).sum()) for name in moving)

    best = max(similarity(torch.tensor(order)) for order in permutations(range(5)))
    found = match(reference, stolen, symmetry, Entropy(0))
    assert found.similarity == pytest.approx(best)
    assert similarity(found.permutations[0]) == pytest.approx(best)


def test_the_similarity_never_falls_below_that_of_the_truth() -> None:
    model = made(mlp, 4, 16, 16, 16, 3)
    symmetry, secret, stolen = shuffled(model, 5)
    generator = torch.Generator().manual_seed(0)
    noisy = {
        name: tensor + 0.3 * tensor.std() * torch.randn(tensor.shape, generator=generator)
        for name, tensor in stolen.items()
    }
    found = match(model.state_dict(), noisy, symmetry, Entropy(0))
    true = permute(noisy, symmetry, invert(secret))
    reference = model.state_dict()
    moving = [name for name, axes in symmetry.axes.items() if any(axes)]
    truth = sum(float((reference[name].double() * true[name].double()).sum()) for name in moving)
    assert found.similarity >= truth - 1e-9


def test_equal_seeds_give_equal_numbers() -> None:
    one, other = made(mlp, 4, 16, 16, 3, seed=1), made(mlp, 4, 16, 16, 3, seed=2)
    symmetry = find_symmetry(one)
    first, second = (match(one.state_dict(), other.state_dict(), symmetry, Entropy(4)) for _ in range(2))
    assert first.similarity == second.similarity
    assert all(torch.equal(*pair) for pair in zip(first.permutations, second.permutations, strict=True))


@given(st.integers(0, 100))
def test_a_permutation_and_its_inverse_cancel(seed: int) -> None:
    model = made(DigitsNet)
    symmetry, secret, stolen = shuffled(model, seed)
    assert same(permute(stolen, symmetry, invert(secret)), model.state_dict())


def test_networks_of_other_shapes_are_refused() -> None:
    one, other = made(mlp, 4, 16, 3), made(mlp, 4, 17, 3)
    symmetry = find_symmetry(one)
    with pytest.raises(InputError, match="other tensors"):
        match(one.state_dict(), other.state_dict(), symmetry, Entropy(0))
    with pytest.raises(InputError, match="do not fit"):
        permute(one.state_dict(), symmetry, [torch.arange(3)])


def test_weights_that_are_no_numbers_are_refused() -> None:
    one = made(mlp, 4, 16, 3)
    stolen = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    stolen["0.weight"][0, 0] = float("nan")
    with pytest.raises(InputError, match=r"0\.weight"):
        match(one.state_dict(), stolen, find_symmetry(one), Entropy(0))
