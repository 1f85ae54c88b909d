"""What an update rule is, and where it is found.

A rule is a module: a file of this folder, named in YAML by its name (`rule: muon`), or any module
that can be imported, named by its path (`rule: my_package.lion`). It declares

- `Options`: a dataclass, whose fields are its settings, with types, ranges and defaults;
- `step(params, grads, state, group)`: one update in place of a list of tensors;
- `new_state(p, group)`: the fresh state of one tensor, a dict (left out: the rule keeps none);
- `SCHEDULED`: which of its options follow `optim.schedule` (left out: the learning rate alone);
- `NDIM`: how many dimensions its tensors must have (left out: any);
- `BY_ROWS`: true if rows of a tensor can be updated apart, as with a rule that works element by
  element. The tensors in its state then have the tensor's rows, or no dimensions (left out: false).
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

from torch import Tensor

from nanochat.optim.schedules import Scheduled
from nanochat.runtime.in_words import shown
from nanochat.runtime.settings import parameters

SHAPES = {1: "vectors", 2: "matrices"}


def _stateless(p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Rule:
    """The declarations of a rule's module."""

    name: str
    Options: type
    step: Callable[[list[Tensor], list[Tensor], dict[Tensor, dict[str, Any]], dict[str, Any]], None]
    new_state: Callable[[Tensor, dict[str, Any]], dict[str, Any]] = _stateless
    SCHEDULED: tuple[Scheduled, ...] = ("lr",)
    NDIM: int | None = None
    BY_ROWS: bool = False

    def check_shape(self, p: Tensor, name: Any, path: str) -> None:
        """ValueError if this rule cannot update parameter `p`. `path` is the key of its group."""
        if self.NDIM is not None and p.ndim != self.NDIM:
            shapes = SHAPES.get(self.NDIM, f"tensors of {self.NDIM} dimensions")
            others = ", ".join(other for other in rules() if find(other).NDIM in (None, p.ndim))
            raise ValueError(
                f"{path}.rule={self.name} updates {shapes}, but {name} has shape {tuple(p.shape)}; "
                f"choose from {others}"
            )


def find(name: Any, path: str = "rule") -> Rule:
    """The rule of this name. ValueError if there is none; `path` is the key that names it."""
    module = str(name) if "." in str(name) else f"nanochat.optim.{name}"
    try:
        found = vars(importlib.import_module(module))
    except Exception as error:  # whatever the module raises
        if not (isinstance(error, ModuleNotFoundError) and error.name == module) or "." in str(
            name
        ):
            why = f"{type(error).__name__}: {error}"
            raise ValueError(f"{path}={shown(name)} cannot be imported ({why})") from error
        found = {}
    if not {"Options", "step"} <= found.keys():
        where = f"{module} has no Options and step" if found else "is not known"
        raise ValueError(f"{path}={shown(name)} {where}; choose from {', '.join(rules())}")
    known = ("Options", "step", "new_state", "SCHEDULED", "NDIM", "BY_ROWS")
    rule = Rule(str(name), **{key: found[key] for key in known if key in found})
    if wrong := set(rule.SCHEDULED) - (set(get_args(Scheduled)) & parameters(rule.Options).keys()):
        raise ValueError(
            f"{module}.SCHEDULED names {', '.join(sorted(wrong))}; it may name"
            f" {', '.join(get_args(Scheduled))}, those that Options has"
        )
    return rule


def rules() -> list[str]:
    """The rules of this folder: the modules with `Options` and `step`."""
    folder = importlib.import_module("nanochat.optim")  # not at the top: it imports this module
    names = [module.name for module in pkgutil.iter_modules(folder.__path__)]
    modules = {name: vars(importlib.import_module(f"{folder.__name__}.{name}")) for name in names}
    return sorted(name for name, module in modules.items() if {"Options", "step"} <= module.keys())
