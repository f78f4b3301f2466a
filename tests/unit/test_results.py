"""Results: intervals that hold what they promise, and values that go through JSON unchanged."""

import math

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from awfulowl.errors import InputError
from awfulowl.randomness import Entropy
from awfulowl.results import Interval, Result, bootstrap, versions, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 10, 0.0, 0.27754), (10, 10, 0.72246, 1.0), (5, 10, 0.23659, 0.76341), (1, 29, 0.00611, 0.17175)],
)
def test_wilson_against_published_values(successes: int, n: int, low: float, high: float) -> None:
    """R. G. Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, and by hand."""
    assert wilson(successes, n) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 10**7), st.data())
def test_wilson_holds_the_rate(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    interval = wilson(successes, n)
    assert 0 <= interval.low <= successes / n <= interval.high <= 1
    assert interval.low < interval.high


@given(st.integers(1, 1000), st.floats(0.5, 0.999), st.floats(0.5, 0.999))
def test_more_confidence_is_wider(n: int, one: float, other: float) -> None:
    narrow, wide = (wilson(n // 2, n, confidence) for confidence in sorted((one, other)))
    assert wide.low <= narrow.low <= narrow.high <= wide.high


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.5])
def test_wilson_covers_as_promised(rate: float) -> None:
    n, trials = 400, 4000
    covered = 0
    generator = torch.Generator().manual_seed(0)
    for successes in (torch.rand(trials, n, generator=generator) < rate).sum(dim=1).tolist():
        interval = wilson(successes, n)
        covered += interval.low <= rate <= interval.high
    assert wilson(covered, trials, 0.9999).high > 0.94


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (0, 0), (-1, 5), (6, 5)])
def test_no_rate(successes: int, n: int) -> None:
    with pytest.raises(InputError, match="no rate"):
        wilson(successes, n)


def test_bootstrap_covers_as_promised() -> None:
    trials, covered = 300, 0
    generator = torch.Generator().manual_seed(1)
    for seed in range(trials):
        values = torch.randn(60, generator=generator).tolist()
        low, high = bootstrap(values, Entropy(seed))
        covered += low <= 0 <= high
    assert wilson(covered, trials, 0.9999).high > 0.93
    assert wilson(covered, trials, 0.9999).low < 0.97


def test_bootstrap_is_as_wide_as_the_theory() -> None:
    values = torch.randn(2000, generator=torch.Generator().manual_seed(2)).tolist()
    low, high = bootstrap(values, Entropy(1))
    assert high - low == pytest.approx(2 * 1.96 / math.sqrt(2000), rel=0.15)


def test_bootstrap_of_equal_values_is_a_point() -> None:
    assert bootstrap([3.0] * 7, Entropy(1)) == (3.0, 3.0)


def test_equal_seeds_give_equal_intervals() -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(3)).tolist()
    assert bootstrap(values, Entropy(4)) == bootstrap(values, Entropy(4))
    assert bootstrap(values, Entropy(4)) != bootstrap(values, Entropy(5))


def test_nothing_has_no_mean() -> None:
    with pytest.raises(InputError, match="no values"):
        bootstrap([], Entropy(1))
    with pytest.raises(InputError, match="no values"):
        Result.mean("nothing", [], Entropy(1))
    with pytest.raises(InputError, match="no rate"):
        Result.rate("nothing", 0, 0)


def test_a_rate_has_all_that_belongs_to_it() -> None:
    result = Result.rate(
        "caught", 9, 10, seeds=[1, 2], cost={"checks": 10.0}, configuration={"z": 10.0, "kind": "zeros"}
    )
    assert result.value == 0.9
    assert result.n == 10
    assert result.interval == wilson(9, 10)
    assert result.seeds == (1, 2)
    assert result.versions == versions()
    assert versions().keys() == {"python", "awfulowl", "torch"}


def test_a_mean_has_all_that_belongs_to_it() -> None:
    result = Result.mean("milliseconds", [1.0, 2.0, 3.0], Entropy(1), seeds=[1])
    assert (result.value, result.n, result.cost, result.configuration) == (2.0, 3, {}, {})
    assert result.interval == bootstrap([1.0, 2.0, 3.0], Entropy(1))


def test_results_cannot_be_changed() -> None:
    result = Result.rate("caught", 9, 10)
    with pytest.raises(AttributeError):
        result.value = 1.0  # type: ignore[misc]


def test_a_result_keeps_no_hold_on_what_it_was_made_from() -> None:
    configuration: dict[str, str | int | float | bool | None] = {"z": 10.0}
    result = Result.rate("caught", 9, 10, configuration=configuration)
    configuration["z"] = 11.0
    assert result.configuration == {"z": 10.0}


def test_results_go_through_json() -> None:
    result = Result.rate(
        "caught", 9, 10, seeds=[3], cost={"checks": 10.0}, configuration={"kind": "zeros", "none": None}
    )
    assert msgspec.json.decode(msgspec.json.encode(result), type=Result) == result
    assert isinstance(msgspec.json.decode(msgspec.json.encode(result), type=Result).interval, Interval)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"name": "caught"}', type=Result)
