"""One optimizer object for the whole model: groups by parameter role, each with its own update rule.

The YAML gives `{role: {rule: muon, lr: …}}`; the model gives name -> role; every parameter lands in exactly one group. An update
rule is a module of this folder with `Options`, whose fields are its settings, and `step(params, grads, state, group)`.
"""

import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nanochat.gpt import GPT, ROLES
from nanochat.optim.schedules import Schedule
from nanochat.runtime.settings import Decay, Setting, Settings, check, parameters, shown

NOT_RULES = {"__init__", "groups", "schedules"}
REFERENCE_WIDTH = 768  # from: facts sheet 2.1, AdamW rates of matrices-by-vocabulary scale with (width / 768) ** -0.5


def rules() -> list[str]:
    """The update rules there are: the modules of this folder."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in NOT_RULES)


class OfGroup(Settings):
    """What every rule's group may say beside the rule's own options."""

    rule: str
    scale_width: bool = False  # rate times (width / 768) ** -0.5
    scale_batch: bool = True  # rate times the plan's factor for the batch size
    weight_decay: Decay | Literal["auto"] = 0.0  # auto: the plan's


def _options(rule: str) -> Any:
    return importlib.import_module(f"nanochat.optim.{rule}").Options


def options_of(values: Mapping[str, Any], path: str) -> dict[str, Setting]:
    """The settings of the group of a role, by the `rule` in it. ValueError for a role or a rule that there is not."""
    role, rule = path.rpartition(".")[2], values.get("rule")
    if role not in ROLES.values():
        raise ValueError(
            f"{path} is not a role of any parameter; the roles are {', '.join(sorted(set(ROLES.values())))}"
        )
    if rule not in rules():
        raise ValueError(f"{path}.rule={shown(rule)} is not known; choose from {', '.join(rules())}")
    return {**parameters(_options(rule)), **parameters(OfGroup)}


class GroupedOptimizer(torch.optim.Optimizer):
    """Applies to each parameter group the rule named in it. `schedule_step(step, total)` sets what follows a schedule.

    A rule also finds the network's `compute_dtype` in its group; it is not saved, because another machine may compute in another.
    """

    def __init__(self, param_groups: list[dict[str, Any]], compute_dtype: torch.dtype = torch.float32) -> None:
        complete = []
        for group in param_groups:
            given = {k: v for k, v in group.items() if k not in ("params", "names", "role", "rule")}
            kind = _options(group["rule"])
            options = vars(kind(**check(given, kind, f"optim.groups.{group.get('role', group['rule'])}.")))
            complete.append(
                {**group, **options, "initial_lr": options["lr"], "initial_weight_decay": options["weight_decay"]}
            )
        super().__init__(complete, {})
        self.compute_dtype = compute_dtype
        self._steps: list[Callable] = [
            importlib.import_module(f"nanochat.optim.{g['rule']}").step for g in self.param_groups
        ]

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, rule_step in zip(self.param_groups, self._steps, strict=True):
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                options = {**group, "compute_dtype": self.compute_dtype}
                rule_step(params, [p.grad for p in params], self.state, options)
        return loss

    def schedule_step(self, schedule: Schedule, step: int, total: int) -> None:
        """Set learning rate, momentum and weight decay of every group for optimizer step `step` of `total`."""
        for group in self.param_groups:
            group["lr"] = group["initial_lr"] * schedule.lr(step, total)
            if group["rule"] == "muon":
                group["momentum"] = schedule.momentum(step, total)
                group["weight_decay"] = group["initial_weight_decay"] * schedule.decay(step, total)


def build(
    gpt: GPT,
    groups: dict[str, dict[str, Any]],
    *,
    lr_factor: float = 1.0,
    weight_decay: float | None = None,
) -> GroupedOptimizer:
    """The optimizer of a GPT. `groups` maps each parameter role to `rule` and the rule's options, and may add what `OfGroup` has.

    `weight_decay`, from the plan, replaces that of groups whose `weight_decay` is `auto`.
    Raises ValueError for a role of the model without a group, an unknown rule or an option that is not what it must be.
    """
    roles = gpt.parameter_roles()
    params = dict(gpt.named_parameters())
    width = gpt.config.n_embd
    present = sorted(set(roles.values()))
    if missing := [r for r in present if r not in groups]:
        raise ValueError(
            f"optim.groups names no rule for {', '.join(missing)}; the model has the roles {', '.join(present)}"
        )
    result, factors = [], []
    for role, given in groups.items():
        path = f"optim.groups.{role}"
        options = check(given, options_of(given, path), f"{path}.")
        names = [n for n, r in roles.items() if r == role]
        if not names:
            continue
        rule = options["rule"]
        scale_width, scale_batch = options.pop("scale_width", False), options.pop("scale_batch", True)
        factors.append(
            ((width / REFERENCE_WIDTH) ** -0.5 if scale_width else 1.0) * (lr_factor if scale_batch else 1.0)
        )
        if options.get("weight_decay") == "auto":
            options["weight_decay"] = weight_decay or 0.0
        if rule == "muon" and (flat := [n for n in names if params[n].ndim != 2]):
            raise ValueError(
                f"optim.groups.{role}: muon updates matrices, {flat[0]} has shape {tuple(params[flat[0]].shape)}; use adamw"
            )
        result.append({"params": [params[n] for n in names], "names": names, "role": role, **options})
    optimizer = GroupedOptimizer(result, gpt.compute_dtype)
    for group, factor in zip(optimizer.param_groups, factors, strict=True):  # the range is that of the typed rate
        group["lr"] = group["initial_lr"] = group["lr"] * factor
    return optimizer


def load_moments(optimizer: GroupedOptimizer, saved: dict[str, Any]) -> int:
    """Take the state of each parameter, by its name, from a saved `state_dict` of such an optimizer, where rule and shapes agree; rates
    and options stay. Returns how many parameters got one."""
    old = {
        name: (group["rule"], group.get("variant"), saved["state"].get(index))
        for group in saved["param_groups"]
        for name, index in zip(group["names"], group["params"], strict=True)
    }
    taken = 0
    for group in optimizer.param_groups:
        for name, p in zip(group["names"], group["params"], strict=True):
            rule, variant, state = old.get(name, (None, None, None))
            sizes = {v.shape for k, v in (state or {}).items() if k in ("exp_avg", "momentum_buffer")}
            same = (rule, variant) == (group["rule"], group.get("variant"))
            if state and same and sizes == {p.shape}:
                optimizer.state[p] = {
                    k: v.detach().clone().to(p.device) if torch.is_tensor(v) else v for k, v in state.items()
                }
                taken += 1
    return taken


def uses_planned_decay(groups: dict[str, dict[str, Any]]) -> bool:
    """Does any group take its weight decay from the plan (`weight_decay: auto`)? If not, `plan.weight_decay` has no effect."""
    return any(options.get("weight_decay") == "auto" for options in groups.values())


def table(optimizer: GroupedOptimizer) -> Iterable[tuple[str, str, str, str, str]]:
    """Rows (parameter, shape, rule, rate, decay) of every parameter, runs of equal layers folded into one row."""
    for group in optimizer.param_groups:
        folded: dict[tuple[str, tuple[int, ...]], int] = {}
        for name, p in zip(group["names"], group["params"], strict=True):
            short = ".".join("*" if part.isdigit() else part for part in name.split("."))
            folded[short, tuple(p.shape)] = folded.get((short, tuple(p.shape)), 0) + 1
        for (name, shape), count in folded.items():
            label = f"{name}  x{count}" if count > 1 else name
            yield (
                label,
                "x".join(map(str, shape)),
                group["rule"],
                f"{group['initial_lr']:.4g}",
                f"{group['initial_weight_decay']:.4g}",
            )
