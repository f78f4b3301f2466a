"""Norms of rows and columns, and what they are compared with."""

from typing import Any

import pytest
import torch

from awfulowl.lab.positions.profiles import (
    add_standardised,
    at_places,
    column_scores,
    input_strength,
    profile_tables,
    row_scores,
)
from awfulowl.lab.sites.placing import NEVER, standardise
from tests.sites import copying, hidden, inner


def correlation(one: Any, other: Any) -> Any:
    return float(torch.corrcoef(torch.stack([one, other]))[0, 1])


@pytest.mark.parametrize("make", [hidden, inner])
def test_rows_and_columns_are_correlated_with_what_is_expected(make: Any) -> None:
    case = make(3)
    site, spoils = case.site, case.site.spoils
    influence, strength = torch.rand(site.grid.outputs), torch.rand(site.grid.inputs)
    rows, columns = row_scores(spoils, site.places, influence), column_scores(spoils, site.places, strength)
    block = spoils.blocks[1]
    down, across = site.grid.rows[0], site.grid.columns[1].span
    by_row = block.flatten(1).norm(dim=1)
    by_column = block.transpose(0, 1).flatten(1).norm(dim=1)
    assert rows[1, 0].item() == pytest.approx(correlation(by_row, influence[down.start : down.stop]), abs=1e-4)
    assert columns[1, 1].item() == pytest.approx(correlation(by_column, strength[across.start : across.stop]), abs=1e-4)


def test_other_sizes_do_not_fit() -> None:
    case = hidden((8, 7))
    rows = row_scores(case.site.spoils, case.site.places, torch.rand(20))
    heights = torch.tensor([len(block) for block in case.site.spoils.blocks])
    assert torch.equal(rows[:, -1] == NEVER, heights != 4)


def test_strength_is_the_root_mean_square_of_inputs() -> None:
    case = copying()
    values = torch.repeat_interleave(case.public.inputs, 5, dim=1)
    assert torch.allclose(input_strength(case.site), values.square().mean(dim=0).sqrt(), atol=1e-6)
    convolution = inner().site
    expected = convolution.entered.inputs.square().mean(dim=(0, 2, 3)).sqrt()
    assert torch.allclose(input_strength(convolution), expected, atol=1e-6)


def test_tables_add_up_at_places() -> None:
    site = hidden((5, 6)).site
    tables = profile_tables(site)
    (rows, _), (columns, _) = tables
    scores = at_places(tables, site)
    for place, (row, column) in enumerate(site.places.positions.tolist()):
        assert torch.allclose(scores[:, place], rows[:, row].double() + columns[:, column].double())
    assert len(profile_tables(site, columns=False)) == len(profile_tables(site, rows=False)) == 1


def test_standardised_tables_are_added_with_a_weight() -> None:
    site = hidden((5, 6)).site
    tables = profile_tables(site)
    scores = torch.randn(16, 16, dtype=torch.float64)
    added = (add_standardised(scores.clone(), tables, 0.5) - scores) / 0.5
    # The same up to how far rows and columns of a block depend on each other.
    assert added.mean().item() == pytest.approx(0, abs=1e-6)
    assert added.std(correction=0).item() == pytest.approx(1, rel=0.1)
    assert torch.allclose(standardise(added), standardise(at_places(tables, site)), atol=1e-6)


def test_no_tables_add_nothing() -> None:
    site = hidden((5, 6)).site
    assert at_places([], site).abs().max() == 0
    scores = torch.randn(16, 16, dtype=torch.float64)
    assert torch.equal(add_standardised(scores.clone(), [], 0.5), scores)
