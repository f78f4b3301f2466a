"""From the words of a command line to a model, a plan, and what may be said about them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from awfulowl.cli.model_costs import Costs, costs
from awfulowl.cli.plan_report import PlanReport, describe
from awfulowl.cli.terminal import Stages
from awfulowl.errors import PlanError
from awfulowl.models.catalogue import Example, load_example
from awfulowl.placement import store
from awfulowl.placement.ledger import Device
from awfulowl.placement.options import Options
from awfulowl.placement.plan import Plan, model_digest
from awfulowl.placement.request import plan_model
from awfulowl.randomness import SYSTEM, Entropy


class Made(NamedTuple):
    """A plan, the model that it is of, and what may be shown of it."""

    plan: Plan
    example: Example
    report: PlanReport


def make(model: str, devices: Sequence[Device], options: Options, stages: Stages, *, seed: int | None = None) -> Made:
    """Build the model and make a plan.

    Raises:
        InputError: there is no such model.
        ModelError: nothing of it can be scattered.
        RuleError: the rules cannot be met.
    """
    example = build(model, stages)
    with stages.stage("planning"):
        entropy = SYSTEM if seed is None else Entropy(seed)
        made = plan_model(example.model, example.inputs, devices, options, entropy)
    return Made(made, example, describe(model, made, costs(example.model, example.inputs)))


def build(model: str, stages: Stages) -> Example:
    """Build the model that a MODEL argument means."""
    with stages.stage(f"building {model}"):
        return load_example(model)


def read(path: Path, key: Path, model: str | None) -> PlanReport:
    """Describe the plan in a file; with a model, after making sure that the plan is of it.

    Raises:
        PlanError: the file is not a plan, was tampered with, is of another key or of another model.
    """
    if model is None:
        return describe(None, store.load(path, open_key(key)), Costs(None, None))
    with Stages() as stages:
        example = build(model, stages)
    plan = load(path, key, example.model)
    return describe(model, plan, costs(example.model, example.inputs))


def load(path: Path, key: Path, model: nn.Module) -> Plan:
    """Read a plan file that has to be of this model.

    Raises:
        PlanError: the file is not a plan, was tampered with, is of another key or of another model.
    """
    return store.load(path, open_key(key), model_digest(model.named_parameters(remove_duplicate=False)))


def save(plan: Plan, path: Path, key: Path) -> None:
    """Write a plan file, encrypted under the fleet's key, which is made on first use.

    Raises:
        PlanError: a file cannot be written, or the key is open to others.
    """
    store.save(plan, path, store.fleet_key(key))


def open_key(path: Path) -> bytes:
    """Return the key of a fleet that has one.

    Raises:
        PlanError: the file is not there, or not fit to be used.
    """
    if not path.exists():
        raise PlanError(f"there is no key file {path}; name the one under which the plan was written with --key")
    return store.fleet_key(path)
