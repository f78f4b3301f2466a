"""The owner's handle on a set of devices."""

import atexit
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from torch import Tensor, nn

from awfulowl.allocator import give_back
from awfulowl.errors import InputError, PlanError, ScatteredError
from awfulowl.fabric.base import Fabric
from awfulowl.owner.checkpoint import Checkpoint, prune_checkpoints
from awfulowl.owner.deployment import Deployment
from awfulowl.owner.deployments import Deployments
from awfulowl.owner.descents import OPTIMIZERS
from awfulowl.owner.engine import Engine
from awfulowl.owner.freezing import freeze
from awfulowl.owner.gather import gather
from awfulowl.owner.ledger import Event
from awfulowl.owner.loading import Progress
from awfulowl.owner.loop import LoopThread
from awfulowl.owner.math_threads import single_threaded
from awfulowl.owner.modules import scatter
from awfulowl.owner.optimizer import Course, FleetOptimizer, own_gradients, places, trainable
from awfulowl.owner.peer import Standing
from awfulowl.owner.pipeline import pipelined
from awfulowl.owner.policy import Policy
from awfulowl.owner.saving import check_extra, moment, restore, resume, save, states
from awfulowl.owner.snapshots import settle
from awfulowl.owner.training import TrainedDeployment
from awfulowl.placement.ledger import UNKNOWN, Device
from awfulowl.placement.plan import Plan, model_digest
from awfulowl.placement.survey import Part, parts_of

T = TypeVar("T")


class Fleet:
    """Devices that can be given models. Synchronous and thread-safe; unusable after a fork and after `close`.

    Use `local_fleet` or `connect` to open one.
    """

    def __init__(
        self,
        fabric: Fabric,
        devices: Sequence[Device],
        *,
        policy: Policy | None = None,
        loop: LoopThread | None = None,
    ) -> None:
        self.devices = tuple(devices)
        self._loop = loop or LoopThread()
        policy = policy or Policy()
        self._executor = single_threaded(policy.math_threads)
        self._engine = Engine(fabric, policy, executor=self._executor)
        self._scattered: weakref.WeakKeyDictionary[nn.Module, tuple[Deployment, tuple[Part, ...]]] = (
            weakref.WeakKeyDictionary()
        )
        self._saving: weakref.WeakKeyDictionary[nn.Module, Future[Path]] = weakref.WeakKeyDictionary()
        self._deployments = Deployments()
        self._closed = False
        self._loop.run(self._open(), 30)
        atexit.register(self.close)

    async def _open(self) -> None:
        await self._engine.start()
        self._engine.enrol(device.name for device in self.devices)

    def wait_for_devices(self, timeout_s: float = 60.0) -> None:
        """Wait until every device is there.

        Raises:
            UnavailableError: some are not, after `timeout_s`.
        """
        self._loop.run(self._engine.present([device.name for device in self.devices], timeout_s), timeout_s + 5)

    def admit(self, device: Device) -> None:
        """Let one more device take part from now on: it may take over blocks of others, also in plans at work.

        It can come later; `wait_for_devices` waits for it too.

        Raises:
            InputError: the fleet, or a plan at work, knows it in another domain.
        """
        known = next((one for one in self.devices if one.name == device.name), device)
        if known != device:
            raise InputError(f"device {device.name!r} is of domain {known.domain!r} here, not of {device.domain!r}")

        async def admit() -> None:
            for deployment, _ in list(self._scattered.values()):
                deployment.assignment.add(device)
            self._engine.enrol([device.name])

        self._loop.run(admit())
        if device not in self.devices:
            self.devices = (*self.devices, device)

    def scatter(
        self,
        model: nn.Module,
        plan: Plan,
        train: bool = False,
        *,
        timeout_s: float = 300.0,
        progress: Progress | None = None,
        on_change: Callable[[Plan], None] | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> nn.Module:
        """Load the plan's blocks onto the devices and return a model that asks them; the original is untouched.

        Args:
            model: the one that the plan was made for.
            plan: which block goes where.
            train: whether gradients pass, and `optimizer` may move the weights. The model then has kept tensors of its
                own; every scattered layer is float32, without sharing.
            timeout_s: seconds until every block must be loaded.
            progress: called with bytes loaded and bytes in all.
            on_change: called with the new plan whenever a block is given to another device, before it is sent: save
                it, so that a restarted owner knows who saw what.
            checkpoint: where training goes on (`owl.read_checkpoint`); `model` then only says what kind of model it is.

        Raises:
            CheckpointError: the checkpoint is of another model.
            PlanError: the plan was made for another model, names devices that this fleet does not have or knows in
                other domains, or serves a model on this fleet already: devices know its handles once.
            ModelError: weights are unreadable, or cannot be trained apart from others.
            UnavailableError: devices are missing, or the blocks could not be loaded within `timeout_s`.
        """
        if checkpoint is not None and not train:
            raise InputError("a checkpoint is to go on with: train=True. To serve it, load its .model into the model")
        if plan.model != model_digest(model.named_parameters(remove_duplicate=False)):
            raise PlanError("this plan was made for another model: names, shapes or types of parameters differ")
        unknown = {device.name for device in plan.devices} - {device.name for device in self.devices}
        if unknown:
            raise PlanError(f"the plan names devices that this fleet does not have: {', '.join(sorted(unknown))}")
        self._check_domains(plan)
        parts = tuple(parts_of(model, plan).values())
        weights = {name: product.weights for part in parts for name, product in part.products().items()}
        if train:
            moving = trainable(model, plan, parts)
            known = None if checkpoint is None else states(checkpoint, plan)
            deployment: Deployment = TrainedDeployment(self._engine, plan, weights, moving, on_change, known)
        else:
            deployment = Deployment(self._engine, plan, weights, on_change)
        self._loop.run(self._deployments.start(deployment, timeout_s, progress), timeout_s + 30)
        try:
            give_back()  # loading took frames and scratch that serving does not need
            scattered = scatter(model, deployment, parts, self._loop)
            if checkpoint is not None and isinstance(deployment, TrainedDeployment):
                restore(checkpoint, scattered)
                resume(checkpoint, deployment)
        except BaseException:
            self._loop.run(self._deployments.stop(deployment), 30)
            raise
        self._scattered[scattered] = deployment, parts
        if isinstance(deployment, TrainedDeployment):
            own_gradients(scattered, deployment, parts)
        return scattered

    def _check_domains(self, plan: Plan) -> None:
        """Refuse a plan in which a device is of another domain than here: its rules would mean nothing."""
        known = {device.name: device.domain for device in self.devices if device.domain != UNKNOWN}
        for device in plan.devices:
            if device.domain != known.get(device.name, device.domain):
                raise PlanError(
                    f"the plan says that {device.name} is of domain {device.domain!r}, the fleet says "
                    f"{known[device.name]!r}; make the plan with devices=fleet"
                )

    def optimizer(
        self,
        scattered: nn.Module,
        params: Iterable[nn.Parameter] | Iterable[Mapping[str, Any]] | None = None,
        *,
        lr: float,
        algorithm: str = "sgd",
        **options: Any,
    ) -> FleetOptimizer:
        """Return an optimizer of a model under training: here and at devices alike.

        What devices do is proved for stochastic gradient descent: every step of every block, within a bound (`drift`).
        Adam's steps are looked at in a share of the blocks only, and devices send all weights after each.

        Args:
            scattered: from `scatter` with train=True.
            params: some of its parameters, or groups with options of their own; None for all.
            lr: the learning rate.
            algorithm: sgd or adam.
            options: of sgd momentum, dampening, weight_decay, nesterov, maximize as in `torch.optim.SGD`, and
                decoupled_weight_decay; of adam betas, eps, weight_decay, maximize as in `torch.optim.Adam`, and
                decoupled_weight_decay, which makes it AdamW.

        Raises:
            ScatteredError: the model was not scattered by this fleet, or not for training.
            InputError: an option or algorithm cannot be had, parameters that are trained together are in different
                groups, or blocks have replicas and Adam is to move them.
        """
        deployment, parts = self._training(scattered)
        course = Course(scattered, deployment, places(scattered, deployment, parts), self._loop)
        if algorithm not in OPTIMIZERS:
            raise InputError(
                f"algorithm={algorithm!r}: there are {', '.join(OPTIMIZERS)}; AdamW is adam with "
                "decoupled_weight_decay=True"
            )
        return OPTIMIZERS[algorithm](course, params, lr=lr, **options)

    def pipeline(
        self, scattered: nn.Module, loss: Callable[[T], Tensor], batches: Sequence[T], *, threads: int = 4
    ) -> list[Tensor]:
        """Run the micro-batches of one step forward and backward, several at once, and add up their gradients.

        The devices of one layer multiply for one micro-batch while those of another do for the next. The result does
        not depend on who is faster. A step on the mean loss of n micro-batches divides each loss by n.

        Args:
            scattered: a model under training; its modules must not change in a forward pass, as batch norms do.
            loss: from a micro-batch to a number that requires a gradient.
            batches: the micro-batches.
            threads: so many are under way at once.

        Returns:
            The losses, in order, detached.

        Raises:
            ScatteredError: the model was not scattered by this fleet, or not for training.
            InputError: the model has statistics that a forward pass changes.
        """
        deployment, _ = self._training(scattered)
        return pipelined(scattered, deployment, loss, batches, threads)

    def drift(self, scattered: nn.Module) -> dict[str, float]:
        """Return for each layer how far devices may have moved its weights unseen, relative to their length.

        The bound is z standard deviations of what honest rounding leaves, added up over all snapshots so far.

        Raises:
            ScatteredError: the model was not scattered by this fleet, or not for training.
        """
        deployment, _ = self._training(scattered)
        return {panel.name: deployment.drifted(number) for number, panel in enumerate(deployment.panels)}

    def checkpoint(
        self,
        scattered: nn.Module,
        optimizer: FleetOptimizer,
        directory: Path | str,
        *,
        extra: Mapping[str, Any] | None = None,
        keep: int = 2,
        timeout_s: float = 300.0,
    ) -> Future[Path]:
        """Write a checkpoint while training goes on; call it between two steps.

        When this returns, devices have copied their blocks and the owner what it holds. The copies are fetched,
        verified and written beside the next steps; the future returned says when that is done, or why it failed.

        Args:
            scattered: the model under training.
            optimizer: its optimizer.
            directory: of all checkpoints of this training.
            extra: what else is needed to go on: a scheduler's state, the order of data, and states of generators other
                than PyTorch's on CPUs (`random`, NumPy, CUDA). Anything JSON can hold; of a scheduler leave out what a
                new one has anyway, if JSON cannot (MultiStepLR's milestones, mode_worse of ReduceLROnPlateau).
            keep: so many newest checkpoints stay.
            timeout_s: seconds until it has to be written.

        Raises:
            ScatteredError: the model was not scattered by this fleet, or not for training.
            InputError: `extra` would not come back as it is, or `keep` is below 1.
            UnavailableError: there is nobody honest for some block.
        """
        deployment, parts = self._training(scattered)
        if keep < 1:
            raise InputError(f"keep={keep}: at least the newest checkpoint stays")
        check_extra(extra or {})
        pending = self._saving.get(scattered)
        if pending is not None:
            pending.exception()  # each block is copied once at a time; why it failed, its own caller is told
        self._loop.run(settle(deployment), timeout_s)
        frozen = self._loop.run(freeze(deployment))
        now = moment(scattered, optimizer, self.plan_of(scattered), frozen, extra or {})

        async def work() -> Path:
            path = await save(deployment, parts, now, Path(directory), timeout_s)
            prune_checkpoints(Path(directory), keep)
            return path

        self._saving[scattered] = self._loop.submit(work())
        return self._saving[scattered]

    def gather(self, scattered: nn.Module, *, timeout_s: float = 300.0) -> dict[str, Tensor]:
        """Fetch every scattered weight, verify it, and return a plain state_dict of the whole model.

        Devices of an exact plan hold rounded weights: those come back, off by up to half a step.

        Raises:
            ScatteredError: the model was not scattered by this fleet.
            UnavailableError: a block could not be fetched from any honest device within `timeout_s`.
        """
        deployment, parts = self._scattering(scattered)
        if isinstance(deployment, TrainedDeployment):
            self._loop.run(settle(deployment), timeout_s)
        return self._loop.run(gather(deployment, scattered, parts, timeout_s), timeout_s + 5)

    def release(self, scattered: nn.Module) -> None:
        """Let the devices forget a model; calling it afterwards raises."""
        deployment = self._scattering(scattered)[0]
        self._loop.run(self._deployments.stop(deployment), 30)
        del self._scattered[scattered]

    def plan_of(self, scattered: nn.Module) -> Plan:
        """Return the plan as it stands now: with today's holders and everything that was seen so far. Secret."""
        return self._scattering(scattered)[0].assignment.plan()

    def _training(self, scattered: nn.Module) -> tuple[TrainedDeployment, tuple[Part, ...]]:
        deployment, parts = self._scattering(scattered)
        if not isinstance(deployment, TrainedDeployment):
            raise ScatteredError("this model was scattered to be served: scatter it with train=True")
        return deployment, parts

    def _scattering(self, scattered: nn.Module) -> tuple[Deployment, tuple[Part, ...]]:
        found = self._scattered.get(scattered)
        if found is None:
            raise ScatteredError("this model was not scattered by this fleet")
        return found

    @property
    def policy(self) -> Policy:
        """How long the owner waits, and what it does; may be replaced between requests."""
        return self._engine.policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        """Let the next requests follow another policy."""
        self._engine.policy = policy

    @property
    def statistics(self) -> dict[str, int]:
        """Counters since the fleet was opened, by name (`owner.ledger.Ledger` says what each counts)."""
        return self._engine.ledger.counts()

    @property
    def events(self) -> list[Event]:
        """The last events: devices that came, went, lied, and what was done about it."""
        return list(self._engine.ledger.events)

    @property
    def standing(self) -> dict[str, Standing]:
        """What the owner thinks of each device now."""
        return {name: peer.standing for name, peer in self._engine.peers.items()}

    def close(self) -> None:
        """Say goodbye to the devices, which drop their blocks. Closing again, or after a fork, does nothing."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        if self._loop.is_of_another_process:
            return
        try:
            self._loop.run(self._engine.close(), 30)
            self._shut_down()
        finally:
            self._loop.close()
            self._executor.shutdown(wait=False)

    def _shut_down(self) -> None:
        """Stop what a subclass started, once the devices were told."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
