"""The plans at work on one fleet, each for one model: devices know a plan's handles once."""

import asyncio

from awfulowl.errors import PlanError
from awfulowl.owner.deployment import Deployment
from awfulowl.owner.loading import Progress
from awfulowl.placement.plan import Plan


class Deployments:
    """Starts and stops them. All methods run in the event loop.

    Two at work with the same handles would load their blocks over each other's whenever a device comes back; where
    weights are shared, with shares that do not go together, so that honest devices look like liars.
    """

    def __init__(self) -> None:
        self._all: list[Deployment] = []
        self._changing = asyncio.Lock()

    async def start(self, deployment: Deployment, timeout_s: float, progress: Progress | None = None) -> None:
        """Start one, once those are stopped whose models are gone; one that cannot be started is stopped again.

        Raises:
            PlanError: its plan is at work.
            UnavailableError: as `Deployment.start`.
            ModelError: as `Deployment.start`.
        """
        for other in [one for one in self._all if one.is_abandoned]:
            await self.stop(other)
        async with self._changing:
            plan = deployment.assignment.plan()
            if any(not _handles(plan).isdisjoint(_handles(other.assignment.plan())) for other in self._all):
                raise PlanError(
                    "this plan is in use on this fleet: release the model that it serves, or make a new plan"
                )
            self._all.append(deployment)
        try:
            await deployment.start(timeout_s, progress)
        except BaseException:
            await self.stop(deployment)
            raise

    async def stop(self, deployment: Deployment) -> None:
        """Stop one, after which its plan may be started again."""
        async with self._changing:
            await deployment.stop()
            if deployment in self._all:
                self._all.remove(deployment)


def _handles(plan: Plan) -> set[bytes]:
    return {handle for panel in plan.panels for handle in panel.slice_handles}
