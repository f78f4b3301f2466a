"""Optimizers of parameters at the owner and at devices alike."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from awfulowl.arithmetic.numbers import FLOAT32
from awfulowl.blocks.adapters.catalogue import scatterable
from awfulowl.blocks.adapters.weight import ScatteredWeight
from awfulowl.errors import CheckpointError, InputError, ModelError, PlanError, ScatteredError, UnavailableError
from awfulowl.owner.checkpoint import Checkpoint, kept_state
from awfulowl.owner.clipping import squared_norm
from awfulowl.owner.deployment import Deployment
from awfulowl.owner.history import History, Rule
from awfulowl.owner.loop import LoopThread
from awfulowl.owner.training import TrainedDeployment
from awfulowl.placement.plan import Plan
from awfulowl.placement.survey import Part, product_name

_HOOK_TABLES: Final = ("_backward_hooks", "_post_accumulate_grad_hooks")
"""Of a parameter, None until the first hook."""


class Course(NamedTuple):
    """What an optimizer moves: a model, where it is, and the panels that each of its scattered parameters is in."""

    scattered: nn.Module
    deployment: TrainedDeployment
    panels: Mapping[ScatteredWeight, Sequence[int]]
    loop: LoopThread


class FleetOptimizer(torch.optim.Optimizer):
    """What optimizers have in common whose scattered parameters move at the devices that hold them.

    Schedulers, parameter groups and `zero_grad` work as ever. `step` returns when every device has taken the step, or
    is known to have missed it.
    """

    options: ClassVar[frozenset[str]]
    """What may be given beside the learning rate."""
    kept: ClassVar[Mapping[str, str]]
    """Tensors that are kept for each parameter at the owner: by their names in a checkpoint, those in `state`."""

    _step_supports_amp_scaling = True
    """So that a GradScaler says that it is there, and can be refused: it would unscale what is kept alone."""

    def __init__(
        self,
        course: Course,
        params: Iterable[nn.Parameter] | Iterable[Mapping[str, Any]] | None,
        *,
        lr: float,
        decoupled_weight_decay: bool = False,
        **options: Any,
    ) -> None:
        unknown = sorted(options.keys() - self.options)
        if unknown:
            raise InputError(f"{', '.join(unknown)}: no options here; there are lr, {', '.join(sorted(self.options))}")
        own = [one for one in course.scattered.parameters() if one.requires_grad]
        chosen: Any = own if params is None else params
        self._scattered = course.scattered
        self._training = course.deployment
        self._panels = course.panels
        self._loop = course.loop
        self._decoupled = decoupled_weight_decay
        self._scale = 1.0
        self.steps = 0
        """Steps taken, those before a checkpoint included."""
        try:
            super().__init__(chosen, lr=lr, **options)  # type: ignore[call-arg]  # those of a class of torch.optim
        except (TypeError, ValueError, IndexError) as error:
            raise InputError(f"this optimizer cannot be made: {error}") from error
        self._groups()

    def _rule(self, group: Mapping[str, Any], number: int) -> Rule:
        """Return what devices step by.

        Raises:
            InputError: settings are not those of a step that can be checked.
        """
        raise NotImplementedError

    def _step_here(self) -> None:
        """Move what is kept."""
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own, as in `torch.optim.Optimizer`."""
        param_group.setdefault("decoupled_weight_decay", self._decoupled)
        super().add_param_group(param_group)

    def kept_tensors(self) -> dict[str, Tensor]:
        """Return copies of what is kept for parameters at the owner, by the names of a checkpoint."""
        return {
            f"{short}.{name}": self.state[parameter][key].clone()
            for name, parameter in self._scattered.named_parameters()
            if not isinstance(parameter, ScatteredWeight) and parameter in self.state
            for short, key in self.kept.items()
            if isinstance(self.state[parameter].get(key), Tensor)
        }

    def state_dict(self) -> dict[str, Any]:
        """Refuse: half of the state is on devices.

        Raises:
            ScatteredError: always.
        """
        raise ScatteredError(
            "what devices keep of scattered weights (momentum, mean squares) is not here: fleet.checkpoint saves all "
            "of a training, optimizer.load(awfulowl.read_checkpoint(path)) goes on from it"
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse: a state of another optimizer says nothing of what devices keep.

        Raises:
            ScatteredError: always.
        """
        del state_dict
        raise ScatteredError(
            "devices keep momentum and mean squares of scattered weights, which no state_dict holds: go on from what "
            "fleet.checkpoint wrote, with fleet.scatter(..., checkpoint=found) and optimizer.load(found)"
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, here and at devices."""
        self._training.forget()
        self._scale = 1.0
        super().zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step.

        Raises:
            UnavailableError: the step was taken, and nothing honest is left that could give a snapshot that is due, or
                state weights that Adam moved.
            InputError: gradients or settings are not finite, or momentum is 1 or more; nothing has moved.
        """
        if closure is not None:
            raise InputError("closures ask for several passes in one step, which devices do not take; call step()")
        if hasattr(self, "grad_scale"):
            raise InputError("gradients were scaled by a GradScaler: devices compute in float32 and need none")
        if self._training.is_spent:
            raise InputError("these gradients were followed already: call zero_grad(), and backward() again")
        rules = {number: self._rule(group, number) for number, group in self._groups().items()}
        for one in self._kept_parameters():
            if one.grad is not None and not bool(one.grad.isfinite().all()):
                raise InputError("a gradient is not finite (is the loss?): nothing has moved; call zero_grad()")
        broken = self._step_elsewhere(rules)
        self._step_here()
        self.steps += 1
        if broken is not None:
            raise broken
        self._loop.run(self._training.look_after())
        return None

    def _kept_parameters(self) -> Iterator[nn.Parameter]:
        for group in self.param_groups:
            yield from (one for one in group["params"] if not isinstance(one, ScatteredWeight))

    def _step_elsewhere(self, rules: Mapping[int, Rule]) -> KeyboardInterrupt | UnavailableError | None:
        """Let devices step; what interrupts that is returned when they have, since half a step would be none."""
        interrupted, future = None, self._loop.submit(self._training.step(rules))
        while True:
            try:
                future.result()
            except KeyboardInterrupt as error:
                interrupted = error
            except UnavailableError as error:
                return interrupted or error
            else:
                return interrupted

    def clip_grad_norm_(self, max_norm: float) -> float:
        """Scale all gradients, here and at devices, so that together they are no longer than `max_norm`.

        Returns:
            Their length before.

        Raises:
            UnavailableError: nothing honest is left that could say how long they are.
            InputError: they are not finite.
        """
        own = [one.grad for one in self._kept_parameters() if one.grad is not None]
        squares = sum(float(grad.double().square().sum()) for grad in own)
        elsewhere = self._loop.run(squared_norm(self._training, sorted(self._groups())))
        norm = math.sqrt(squares + self._scale**2 * elsewhere)  # devices have not scaled yet
        if not math.isfinite(norm):
            raise InputError("gradients are not finite (is the loss?): nothing has moved; call zero_grad()")
        scale = min(1.0, max_norm / (norm + 1e-6))  # as torch.nn.utils.clip_grad_norm_
        self._scale *= scale
        for grad in own:
            grad.mul_(scale)
        return norm

    def settings(self) -> tuple[dict[str, Any], ...]:
        """Return the options of all groups, without their parameters."""
        return tuple(
            {key: _plain(value) for key, value in group.items() if key != "params"} for group in self.param_groups
        )

    def load(self, found: Checkpoint) -> None:
        """Go on where a checkpoint was made, after its model was scattered.

        Raises:
            CheckpointError: it has other groups, or was not made of this model.
        """
        if len(found.facts.groups) != len(self.param_groups):
            raise CheckpointError(
                f"the checkpoint has {len(found.facts.groups)} groups of parameters, not as many as here"
            )
        for group, settings in zip(self.param_groups, found.facts.groups, strict=True):
            if settings.keys() != group.keys() - {"params"} and not settings.keys() >= self.options:
                raise CheckpointError("the checkpoint was made with another optimizer")
            group.update(settings)
        for parameter, tensors in kept_state(found, self._scattered, self.kept).items():
            self.state[parameter].update(tensors)
        self.steps = found.facts.step

    def _groups(self) -> dict[int, dict[str, Any]]:
        """Return the group of each panel.

        Raises:
            InputError: parameters of one panel are in different groups.
        """
        groups: dict[int, dict[str, Any]] = {}
        for group in self.param_groups:
            for weight in group["params"]:
                for number in self._panels.get(weight, ()) if isinstance(weight, ScatteredWeight) else ():
                    if groups.setdefault(number, group) is not group:
                        raise InputError(
                            f"{weight!r} and others with the same input are trained together: put them in one group"
                        )
        return groups


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def own_gradients(scattered: nn.Module, deployment: TrainedDeployment, parts: Iterable[Part]) -> None:
    """Let a model answer for gradients at devices: `zero_grad()` clears them, too, and `grad` of a weight refuses.

    None would be taken for no gradient by whoever clips or looks at those of all parameters, as
    `torch.nn.utils.clip_grad_norm_` does.
    """
    kept, histories = scattered.zero_grad, deployment.histories

    def zero_grad(set_to_none: bool = True) -> None:
        deployment.forget()
        kept(set_to_none)

    vars(scattered)["zero_grad"] = zero_grad
    for weight, numbers in places(scattered, deployment, parts).items():
        weight.gradient_waits = partial(_any_pending, [histories[number] for number in numbers])


def _any_pending(histories: Iterable[History]) -> bool:
    return any(history.pending for history in histories)


def places(
    scattered: nn.Module, deployment: Deployment, parts: Iterable[Part]
) -> dict[ScatteredWeight, tuple[int, ...]]:
    """Return the panels that each scattered parameter of a model is in."""
    where = {member.product: number for number, panel in enumerate(deployment.panels) for member in panel.members}
    found: dict[ScatteredWeight, tuple[int, ...]] = {}
    for part in parts:
        module = part.target.module
        for name in part.target.adapter.parameters(module):
            weight = scattered.get_parameter(f"{part.target.name}.{name}" if part.target.name else name)
            storage = module.get_parameter(name).untyped_storage().data_ptr()
            products = part.target.adapter.products(module)
            alone = len(products) == 1
            numbers = {
                where[product_name(part.target.name, made.name)]
                for made in products
                if alone or made.weights[0].untyped_storage().data_ptr() == storage
            }
            if isinstance(weight, ScatteredWeight):
                found[weight] = tuple(sorted(numbers))
    return found


def trainable(model: nn.Module, plan: Plan, parts: Iterable[Part]) -> list[bool]:
    """Say for each panel of a plan whether its weights require gradients.

    Raises:
        PlanError: the plan is not one of plain float32.
        ModelError: a panel has weights that do and others that do not; weights are also used elsewhere, or not float32;
            a parameter has hooks.
    """
    rounded = [panel.title for panel in plan.panels if panel.arithmetic != FLOAT32]
    if rounded or plan.sharing:
        what = f"sharing {plan.sharing!r}" if plan.sharing else rounded[0]
        raise PlanError(f"{what}: integers are not trained, make a plan of float32")
    parts = tuple(parts)
    _refuse_hooks(model, parts)
    wanted: dict[str, bool] = {}
    tied = scatterable(model).tied
    for part in parts:
        module, path = part.target.module, part.target.name
        for name in part.target.adapter.parameters(module):
            full = f"{path}.{name}" if path else name
            if module.get_parameter(name).dtype is not torch.float32:
                raise ModelError(
                    f"{full} is {module.get_parameter(name).dtype}, only float32 is trained: call .float()"
                )
            if full in tied and module.get_parameter(name).requires_grad:
                raise ModelError(
                    f"{full} is also {', '.join(tied[full])}, which stays at the owner: they would be trained apart. "
                    f"Keep the layer (keep=[{path!r}]) when you plan, or untie them"
                )
        own = {module.get_parameter(name).requires_grad for name in part.target.adapter.parameters(module)}
        if len(own) > 1:
            raise ModelError(f"{path or 'the model'} is partly frozen: freeze all of its weights, or none")
        wanted |= {product_name(path, made.name): own == {True} for made in part.target.adapter.products(module)}
    found = []
    for panel in plan.panels:
        own = {wanted[member.product] for member in panel.members}
        if len(own) > 1:
            raise ModelError(
                f"{panel.title}: some of its layers are frozen and some are not, and they are trained together: "
                "freeze them before you plan"
            )
        found.append(own == {True})
    return found


def _refuse_hooks(model: nn.Module, parts: Iterable[Part]) -> None:
    """Stop hooks of parameters, which the copy that is trained would never call; those of modules go with it."""
    layers = {
        parameter: part.target.name
        for part in parts
        for parameter in map(part.target.module.get_parameter, part.target.adapter.parameters(part.target.module))
    }
    for name, one in model.named_parameters():
        if not one.requires_grad or not any(getattr(one, table, None) for table in _HOOK_TABLES):
            continue  # what is frozen calls none in PyTorch either
        way = f"get_parameter({name!r}) of what scatter returns"
        if one in layers:
            way += f", with the layer kept (keep=[{layers[one]!r}]): devices have gradients of scattered weights"
        raise ModelError(f"hooks of {name} would not be called: remove them, and register them on {way}")


def _refuse_foreign(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Stop optimizers that would leave scattered weights where they are, without a word."""
    del args, kwargs
    if isinstance(optimizer, FleetOptimizer):
        return
    for group in optimizer.param_groups:
        for one in group["params"]:
            if isinstance(one, ScatteredWeight):
                raise ScatteredError(
                    f"{one!r} lives on devices, where this optimizer cannot move it: use fleet.optimizer"
                )


register_optimizer_step_pre_hook(_refuse_foreign)
