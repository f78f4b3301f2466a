"""Copy the structure of a model while it keeps its tensors, with other modules in some places."""

import copy
import functools
import types
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from awfulowl.blocks.adapters.stand_in import StandIn
from awfulowl.errors import ModelError

_HOOK_TABLES = (
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_load_state_dict_post_hooks",
    "_load_state_dict_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
)


def substitute(
    model: nn.Module, replacements: Mapping[nn.Module, nn.Module], *, tensors: Literal["frozen", "same", "own"]
) -> nn.Module:
    """Return a copy of a model in which some modules are replaced.

    Modules, containers and other attributes are copied deeply, so that the original is never touched: what is
    shared inside the model is shared inside the copy, and hooks that are methods of its modules are methods of the
    copies. Hooks of somebody else stay theirs. Tensors in slots of foreign classes are copied.

    Args:
        model: left as it is.
        replacements: the new module for each old one, wherever it stands; they become part of the copy.
        tensors: parameters and other tensors are aliases without gradient in the same memory, or the very same
            objects, or copies.

    Raises:
        ModelError: something in the model cannot be copied.
        ScatteredError: the model is scattered already.
    """
    memo: dict[int, Any] = {}
    for tensor in _tensors(model):
        if tensors == "frozen" or is_lazy(tensor):
            memo[id(tensor)] = _alias(tensor)
        elif tensors == "same":
            memo[id(tensor)] = tensor
    own = {id(module) for module in model.modules()}
    for table in (vars(module).get(table, {}) for module in model.modules() for table in _HOOK_TABLES):
        owners = (owner for hook in table.values() for owner in _owners(hook))
        memo |= {id(owner): owner for owner in owners if id(owner) not in own}
    memo |= {id(old): new for old, new in replacements.items()}
    stand_ins = [part for new in replacements.values() for part in new.modules() if isinstance(part, StandIn)]
    memo |= {id(stand_in): stand_in for stand_in in stand_ins}
    prepared = memo.copy()
    try:
        copied: nn.Module = copy.deepcopy(model, memo)
        for stand_in in stand_ins:
            stand_in.adopt(memo)
    except (TypeError, copy.Error) as error:
        where = _uncopyable(model, prepared)
        raise ModelError(f"the model cannot be copied at {where}: {error}. Set it after scattering") from error
    return copied


def _alias(tensor: Tensor) -> Tensor:
    """Return a tensor in the same memory, outside of every graph; one without a shape has no memory to share."""
    if is_lazy(tensor):
        kind: Any = type(tensor)
        alias: Tensor = kind(requires_grad=tensor.requires_grad, device=tensor.device, dtype=tensor.dtype)
    elif isinstance(tensor, nn.Parameter):
        alias = nn.Parameter(tensor.detach(), requires_grad=False)
    else:
        alias = tensor.detach()
    vars(alias).update(vars(tensor))
    return alias


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yield every tensor that is reached through attributes and containers."""
    waiting: list[Any] = [model]
    seen: set[int] = set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, Mapping):
            waiting += item.values()
        elif isinstance(item, list | tuple | set | frozenset | deque):
            waiting += item
        elif isinstance(item, types.MethodType):
            waiting.append(item.__self__)
        elif isinstance(item, functools.partial):
            waiting += [item.args, item.keywords]
        elif hasattr(item, "__dict__") and not isinstance(item, type | types.FunctionType | types.ModuleType):
            waiting.append(vars(item))


def _owners(hook: Any) -> Iterator[Any]:
    """Yield the objects whose state a hook works on; containers are copied, since modules may be in them."""
    if isinstance(hook, types.MethodType):
        yield hook.__self__
    elif isinstance(hook, functools.partial):
        yield from _owners(hook.func)
        carried = (*hook.args, *hook.keywords.values())
        yield from (value for value in carried if not isinstance(value, Tensor | list | tuple | dict | set))
    elif type(hook).__module__.startswith("torch."):
        # PyTorch's own wrappers know their module, so they are copied; what they wrap may be anybody's.
        yield from _owners(vars(hook).get("hook"))
    elif not isinstance(hook, types.FunctionType):
        yield hook


def _uncopyable(model: nn.Module, memo: Mapping[int, Any]) -> str:
    """Return the name of the first attribute that cannot be copied."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            try:
                if attribute != "_modules":
                    copy.deepcopy(value, dict(memo))
            except (TypeError, copy.Error):
                return f"'{name}.{attribute}'".replace("'.", "'")
    return "its own state"
