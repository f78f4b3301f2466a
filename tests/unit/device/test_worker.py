"""What a worker does when it is asked, and when its fabric fails it."""

import asyncio
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from awfulowl.blocks.kernels import Dense
from awfulowl.device.lies import Liar, Misstep
from awfulowl.device.worker import Offer, Worker
from awfulowl.errors import ClosedError, RefusedError
from awfulowl.fabric.base import Channel, Fabric, Link, Payload, Receive
from awfulowl.wire.digest import digest
from awfulowl.wire.messages import Apply, ApplyTransposed, Commit, Fetch, Freeze, Load, Measure, Release, Request, Step
from awfulowl.wire.parts import Sheet, Term
from awfulowl.wire.session import Requested
from tests.loops import run
from tests.unit.device.pupil import HEAVY, PLAIN

ROWS, SLICES = (b"r" * 16,), (b"s" * 16,)
TERM = Term(ROWS, SLICES)
SHEET = Sheet(ROWS, (3,), SLICES, (4,), Dense())


class _LostLink(Link):
    """A link that was lost for good, as every send says."""

    async def _send(self, peer: str, payload: Payload, channel: Channel) -> None:
        raise ClosedError("the broker is lost")

    async def _close(self) -> None:
        return


class _LostFabric(Fabric):
    async def _join(self, me: str, receive: Receive) -> Link:
        await asyncio.sleep(0)
        return _LostLink(me, 1 << 20)


def test_a_fabric_that_is_lost_is_one_error_and_no_group_of_them() -> None:
    with pytest.raises(ClosedError, match="the broker is lost"):
        run(Worker("d1", _LostFabric(), Offer()).run())


class Asked:
    """A worker that holds one sheet, and is asked without a network."""

    def __init__(self) -> None:
        self.worker = Worker("d1", _LostFabric(), Offer())
        self.weight = torch.randn(3, 4)
        self.ask(Load((SHEET,)), self.weight)

    def ask(self, body: Request, *tensors: Tensor) -> Sequence[Tensor]:
        """What it answers, of as many tensors as the verb says."""
        answer = self.worker._do(Requested(1, body, list(tensors)))
        assert len(answer) == body.answer_tensors()
        return answer

    def fetch(self, parts: int = 1, frozen: int = 0) -> Sequence[Tensor]:
        return self.ask(Fetch(ROWS, SLICES, parts, frozen))


def test_every_verb_of_training_is_done() -> None:
    asked, x, dy = Asked(), torch.randn(5, 4), torch.randn(5, 3)
    (y,) = asked.ask(Apply(SLICES, (TERM,), keep=7), x)
    torch.testing.assert_close(y, x @ asked.weight.T)
    (dx,) = asked.ask(ApplyTransposed(ROWS, SLICES, (TERM,), job=1, kept=7), dy)
    torch.testing.assert_close(dx, dy @ asked.weight)
    assert asked.ask(ApplyTransposed(ROWS, SLICES, (), job=2), dy, x) == []
    gradient = 2 * dy.double().T @ x.double()
    (length,) = asked.ask(Measure(ROWS, SLICES, (1, 2)))
    assert float(length) == pytest.approx(float(gradient.square().sum()), rel=1e-5)
    assert asked.ask(Freeze((TERM,), 4)) == []
    assert asked.ask(Step((TERM,), 1, (1, 2), HEAVY)) == []
    weight, lost, momentum = asked.fetch(parts=3)
    wanted = HEAVY.moved(asked.weight.double(), torch.zeros(3, 4).double(), gradient)
    torch.testing.assert_close(weight.double() + lost.double(), wanted[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(momentum.double(), wanted[1], rtol=1e-5, atol=1e-5)
    (frozen,) = asked.fetch(frozen=4)
    assert torch.equal(frozen, asked.weight)
    (said,) = asked.ask(Commit(ROWS, SLICES, 3))
    assert torch.equal(said, digest([weight, lost, momentum]))
    assert asked.ask(Release(SLICES)) == []
    with pytest.raises(RefusedError, match="not held"):
        asked.fetch()


def test_a_state_is_loaded_with_its_step() -> None:
    asked = Asked()
    parts = [torch.randn(3, 4), torch.zeros(3, 4), torch.randn(3, 4)]
    assert asked.ask(Load((SHEET,), 3, 5), *parts) == []
    assert all(map(torch.equal, asked.fetch(parts=3), parts))
    with pytest.raises(RefusedError, match="another step"):
        asked.ask(Step((TERM,), 1, (), HEAVY))
    asked.ask(Step((TERM,), 6, (), HEAVY))


def test_inputs_in_several_tensors_are_kept_as_one() -> None:
    asked, x, dy = Asked(), torch.randn(5, 4), torch.randn(5, 3)
    asked.ask(Apply(SLICES, (TERM,), keep=7), x[:, :1], x[:, 1:])
    asked.ask(ApplyTransposed(ROWS, SLICES, (), job=1, kept=7), dy)
    asked.ask(Step((TERM,), 1, (1,), PLAIN))
    (weight,) = asked.fetch()
    wanted = asked.weight.double() - 0.125 * dy.double().T @ x.double()
    torch.testing.assert_close(weight.double(), wanted, rtol=1e-5, atol=1e-5)


def test_inputs_are_kept_only_if_that_is_asked_for_and_the_product_was_made() -> None:
    asked = Asked()
    asked.ask(Apply(SLICES, (TERM,)), torch.ones(5, 4))
    with pytest.raises(RefusedError):
        asked.ask(Apply(SLICES, (TERM,), keep=7), torch.ones(5, 3))
    assert asked.worker.learner.held_bytes == 0


def test_answers_of_both_ways_are_falsified_and_steps_by_another_way() -> None:
    asked, x, dy = Asked(), torch.randn(5, 4), torch.randn(5, 3)
    asked.worker.tamper = Liar("sign", None)
    asked.worker.learner.tamper = Misstep("skipped")
    (y,) = asked.ask(Apply(SLICES, (TERM,)), x)
    torch.testing.assert_close(y, -x @ asked.weight.T)
    (dx,) = asked.ask(ApplyTransposed(ROWS, SLICES, (TERM,), job=1), dy, x)
    torch.testing.assert_close(dx, -dy @ asked.weight)
    asked.ask(Step((TERM,), 1, (1,), PLAIN))
    (weight,) = asked.fetch()
    assert torch.equal(weight, asked.weight)


def given(asked: Asked) -> None:
    """Keep inputs of one batch, and take note of a job of another."""
    asked.ask(Apply(SLICES, (TERM,), keep=7), torch.ones(5, 4))
    asked.ask(ApplyTransposed(ROWS, SLICES, (), job=1), torch.ones(6, 3), torch.ones(6, 4))
    assert asked.worker.learner.held_bytes == 4 * (20 + 18 + 24)


def test_with_its_session_a_device_forgets_jobs_as_well_as_blocks() -> None:
    asked = Asked()
    given(asked)
    asked.worker._forget()
    assert asked.worker.learner.held_bytes == 0
    with pytest.raises(RefusedError, match="not held"):
        asked.fetch()


def test_what_belongs_to_released_blocks_takes_no_room() -> None:
    asked = Asked()
    given(asked)
    asked.ask(Release(SLICES))
    assert asked.worker.learner.held_bytes == 0
