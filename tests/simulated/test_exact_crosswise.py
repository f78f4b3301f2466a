"""Scattered equals the twin bit for bit, whatever multiplies, on however many threads, on any fleet."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from awfulowl.arithmetic.products import BACKENDS, Backend, is_right
from awfulowl.owner.policy import Policy
from awfulowl.veil.shares import sharing_of
from tests.contract.adapters.cases import CASES, Case, Example, linear_bound, seeds
from tests.simulated.memory_fleet import MemoryFleet, memory_fleet
from tests.simulated.twins import (
    MODES,
    called_with,
    equals_twin,
    has_numbers,
    require_case,
    require_one_lane,
    unfolding,
)

some = settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.reuse, Phase.generate],  # shapes are small, and a fleet that fails takes seconds
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@st.composite
def wide_linears(draw: st.DrawFn) -> Example:
    """Large enough for kernels to cut the work, and for the owner to leave it to other threads."""
    torch.manual_seed(draw(seeds))
    batch, inputs, outputs = (
        draw(st.sampled_from([33, 130, 900])),
        draw(st.integers(100, 400)),
        draw(st.integers(50, 200)),
    )
    return Example(nn.Linear(inputs, outputs), (torch.randn(batch, inputs),), {})


ALL = CASES | {"wide linear": Case("linear", wide_linears(), linear_bound)}


class Setting(NamedTuple):
    """What multiplies, and for whom."""

    arithmetic: str
    sharing: str | None
    parties: dict[str, str]
    backend: Backend
    threads: int

    @contextmanager
    def opened(self) -> Iterator[MemoryFleet]:
        """Open the fleet: its threads are begun under the number of threads that they are to have."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with (
                patch("awfulowl.device.store.fastest", lambda _="cpu": self.backend),
                memory_fleet(self.parties, Policy(math_threads=self.threads)) as fleet,
            ):
                yield fleet
        finally:
            torch.set_num_threads(before)


@functools.cache
def right_backends() -> list[Backend]:
    """The fast kernel, if this processor has a right one, and the one of float64 that works everywhere."""
    return [backend for backend in BACKENDS[1:] if is_right(backend)]


async def threads() -> int:
    """Those that devices multiply on, asked where they do."""
    return torch.get_num_threads()


@st.composite
def settings_drawn(draw: st.DrawFn) -> Setting:
    arithmetic, sharing = draw(st.sampled_from(MODES))
    domains = sharing_of(sharing).lanes + draw(st.integers(0, 2))
    more = draw(st.lists(st.integers(0, domains - 1), max_size=3))
    parties = {f"d{number}": f"party{domain}" for number, domain in enumerate([*range(domains), *more], 1)}
    return Setting(
        arithmetic, sharing, parties, draw(st.sampled_from(right_backends())), threads=draw(st.sampled_from([1, 2]))
    )


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("case", ALL.values(), ids=ALL.keys())
def test_every_adapter_on_any_fleet_gives_the_bits_of_its_twin(case: Case) -> None:
    ran = 0

    @some
    @given(example=case.examples.filter(has_numbers), setting=settings_drawn(), blocks=st.integers(1, 12))
    def one(example: Example, setting: Setting, blocks: int) -> None:
        nonlocal ran
        largest = max(max(weight.shape[:2]) for weight in example.module.parameters() if weight.dim() > 1)
        with setting.opened() as fleet, unfolding(case):
            plan = equals_twin(
                fleet,
                example.module,
                called_with(example),
                arithmetic=setting.arithmetic,
                sharing=setting.sharing,
                block=-(-largest // blocks),
            )
            assert all(worker._store._backend is setting.backend for worker in fleet.workers.values())
            assert fleet._loop.run(threads()) == setting.threads
        require_case(case, example, plan)
        require_one_lane(plan)
        ran += 1

    one()
    assert ran >= some.max_examples
