"""One optimizer for the whole model: a group of parameters for each role, with its own update rule.

The YAML gives `{role: {rule: muon, lr: …}}`; the model gives name -> role; every parameter is in
exactly one group. What a rule is: `rule.py`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from nanochat.distributed import active, gathered
from nanochat.distributed.sharing import Replicated, Unshared
from nanochat.gpt import GPT, ROLES
from nanochat.optim.rule import Rule, find
from nanochat.optim.schedules import Schedule
from nanochat.runtime.settings import Decay, Setting, Settings, check, parameters

# from: facts sheet 2.1, AdamW rates of width x vocabulary matrices scale with (width / 768) ** -0.5
REFERENCE_WIDTH = 768


class OfGroup(Settings):
    """The settings of a group besides the options of its rule."""

    rule: str
    scale_width: bool = False  # rate times (width / 768) ** -0.5
    scale_batch: bool = True  # rate times the plan's factor for the batch size
    weight_decay: Decay | Literal["auto"] = 0.0  # auto: the plan's


def options_of(values: Mapping[str, Any], path: str) -> dict[str, Setting]:
    """The settings of a role's group, by the `rule` in it. ValueError for an unknown role or
    rule."""
    if path.rpartition(".")[2] not in ROLES.values():
        raise ValueError(
            f"{path} is not a role of any parameter; the roles are "
            f"{', '.join(sorted(set(ROLES.values())))}"
        )
    own = parameters(find(values.get("rule"), f"{path}.rule").Options)
    common = parameters(OfGroup)
    return {**own, **{k: v for k, v in common.items() if k != "weight_decay" or k in own}}


def configured(group: Mapping[str, Any], name: str) -> Any:
    """An option of a group: its value, or the default of its rule; None if the rule has no such."""
    setting = parameters(find(group["rule"]).Options).get(name)
    return None if setting is None else group.get(name, setting.default)


class GroupedOptimizer(torch.optim.Optimizer):
    """Applies to each parameter group the rule that it names.

    A rule also finds the network's `compute_dtype` in its group, and whether that is `compiled`;
    both are not saved, because the machine that resumes may do otherwise. In a run of several
    processes each updates a share, and has the state of that share alone (distributed/sharing.py).
    """

    def __init__(
        self,
        param_groups: list[dict[str, Any]],
        compute_dtype: torch.dtype = torch.float32,
        compiled: bool = False,
    ) -> None:
        self._rules = [find(group["rule"]) for group in param_groups]
        complete = []
        for group, rule in zip(param_groups, self._rules, strict=True):
            given = {k: v for k, v in group.items() if k not in ("params", "names", "role", "rule")}
            path = f"optim.groups.{group.get('role', rule.name)}"
            names = group.get("names", range(len(group["params"])))
            for name, p in zip(names, group["params"], strict=True):
                rule.check_shape(p, name, path)
            options = vars(rule.Options(**check(given, rule.Options, f"{path}.")))
            initial = {f"initial_{name}": options.get(name, 0.0) for name in ("lr", "weight_decay")}
            complete.append({**group, **options, **initial})
        super().__init__(complete, {})
        self.compute_dtype, self.compiled = compute_dtype, compiled
        params = [p for group in self.param_groups for p in group["params"]]
        self.sharing = sharing_of(params)
        self.sharing.begin(params, [rule.BY_ROWS for _, _, rule, _ in self.named()])

    def _grouped(self) -> Iterable[tuple[dict[str, Any], Rule]]:
        return zip(self.param_groups, self._rules, strict=True)

    def named(self) -> Iterable[tuple[Any, Tensor, Rule, dict[str, Any]]]:
        """(name, parameter, rule, group) of every parameter; its number where it has no name."""
        count = 0
        for group, rule in self._grouped():
            names = group.get("names", range(count, count + len(group["params"])))
            count += len(group["params"])
            yield from ((n, p, rule, group) for n, p in zip(names, group["params"], strict=True))

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        batches = [
            ((group, rule), batch)
            for group, rule in self._grouped()
            for batch in self.sharing.batches([p for p in group["params"] if p.grad is not None])
        ]
        for (group, rule), updates in self.sharing.updates(batches):
            if updates:
                options = {**group, "compute_dtype": self.compute_dtype, "compiled": self.compiled}
                for p, rows, _ in updates:
                    if not self.state[p]:
                        self.state[p] = rule.new_state(rows, options)
                params, grads = [u.rows for u in updates], [u.grad for u in updates]
                rule.step(params, grads, {u.rows: self.state[u.param] for u in updates}, options)
        return loss

    def schedule_step(self, schedule: Schedule, step: int, total: int) -> None:
        """Set the options that the rules declare as scheduled, for step `step` of `total`."""
        for group, rule in self._grouped():
            for name in rule.SCHEDULED:
                group[name] = schedule.value(name, group.get(f"initial_{name}", 0.0), step, total)

    def state_dict(self) -> dict[str, Any]:
        """As torch's, of what is here; and `rows`, of each parameter by name the [start, stop) of
        it."""
        own = self.sharing.own
        rows = {name: tuple(own[p][:2]) for name, p, _, _ in self.named() if p in own}
        return {**super().state_dict(), "rows": rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the options of the groups, and of the state what belongs to this rank.

        `state` is torch's, whole, or a function of a parameter's name and rows (`Reader`)."""
        super().load_state_dict({**state_dict, "state": {}})
        read = reader(state_dict)
        for name, p, _, _ in self.named():
            if (own := self.sharing.own.get(p)) and (state := read(name, own.start, own.stop)):
                self.state[p] = _on(p.device, state)


def sharing_of(params: list[Tensor]) -> Unshared:
    """How the update of these parameters is shared out in this process."""
    if not active():
        return Unshared()
    from nanochat.distributed.fsdp import ByRows, is_sharded

    return ByRows() if is_sharded(params) else Replicated()


# the state of rows [start, stop) of the parameter of this name; None if there is none.
# ValueError if there is one of other rows only.
Reader = Callable[[Any, int, int], dict[str, Any] | None]


def reader(saved: dict[str, Any]) -> Reader:
    """Reads the `state` of a saved `state_dict` by name and rows."""
    states = saved["state"]
    if callable(states):
        return states
    index = {
        name: number
        for group in saved["param_groups"]
        for name, number in zip(group.get("names", group["params"]), group["params"], strict=True)
    }

    def read(name: Any, start: int, stop: int) -> dict[str, Any] | None:
        state = states.get(index.get(name))
        return state and {k: rows_of_state(v, start, stop) for k, v in state.items()}

    return read


def rows_of_state(value: Any, start: int, stop: int) -> Any:
    """Rows [start, stop) of a value in the state of a whole parameter. A value without rows is that
    of each."""
    if not torch.is_tensor(value) or value.ndim == 0 or (start == 0 and stop >= len(value)):
        return value
    return value[start:stop]


def _on(device: torch.device, state: dict[str, Any]) -> dict[str, Any]:
    return {k: v.detach().clone().to(device) if torch.is_tensor(v) else v for k, v in state.items()}


def build(
    gpt: GPT,
    groups: dict[str, dict[str, Any]],
    *,
    lr_factor: float = 1.0,
    weight_decay: float | None = None,
) -> GroupedOptimizer:
    """The optimizer of a GPT. `groups` maps each role to `rule`, its options, and what `OfGroup`
    has.

    `weight_decay`, from the plan, replaces that of groups whose `weight_decay` is `auto`.
    ValueError: a role of the model without a group, an unknown rule, an option of the wrong type or
    out of its range, or a parameter of a shape that its rule cannot update.
    """
    roles = gpt.parameter_roles()
    params = dict(gpt.named_parameters())
    width = gpt.config.n_embd
    present = sorted(set(roles.values()))
    if missing := [r for r in present if r not in groups]:
        raise ValueError(
            f"optim.groups names no rule for {', '.join(missing)}; the model has the roles "
            f"{', '.join(present)}"
        )
    result, factors = [], []
    for role, given in groups.items():
        path = f"optim.groups.{role}"
        options = check(given, options_of(given, path), f"{path}.")
        names = [n for n, r in roles.items() if r == role]
        if not names:
            continue
        scale_width = options.pop("scale_width", False)
        scale_batch = options.pop("scale_batch", True)
        factors.append(
            ((width / REFERENCE_WIDTH) ** -0.5 if scale_width else 1.0)
            * (lr_factor if scale_batch else 1.0)
        )
        if options.get("weight_decay") == "auto":
            options["weight_decay"] = weight_decay or 0.0
        result.append(
            {"params": [params[n] for n in names], "names": names, "role": role, **options}
        )
    optimizer = GroupedOptimizer(result, gpt.compute_dtype, gpt.compiled)
    # the range is that of the typed rate
    for group, factor in zip(optimizer.param_groups, factors, strict=True):
        group["lr"] = group["initial_lr"] = group["lr"] * factor
    return optimizer


def load_moments(optimizer: GroupedOptimizer, saved: dict[str, Any]) -> int:
    """Take the state of each parameter, by its name, from the saved `state_dict` of such an
    optimizer.

    Only where the rule and the shapes of its state agree; rates and options stay. Returns how many
    parameters got their state."""
    read = reader(saved)
    rules = {name: group["rule"] for group in saved["param_groups"] for name in group["names"]}
    taken = set()
    for name, p, rule, group in optimizer.named():
        own, local = optimizer.sharing.own.get(p), optimizer.sharing.local(p)
        if own is None or local is None or rules.get(name) != rule.name:
            continue
        try:
            state = read(name, own.start, own.stop)
        except ValueError:  # of fewer rows
            continue
        fresh = rule.new_state(local, group)
        if state and _shapes(state) == _shapes(fresh):
            optimizer.state[p] = _on(p.device, state)
            taken.add(name)
    return len(set().union(*gathered(taken)))


def _shapes(state: dict[str, Any]) -> dict[str, torch.Size | None]:
    return {name: value.shape if torch.is_tensor(value) else None for name, value in state.items()}


def shows_length(
    groups: Mapping[str, Mapping[str, Any]],
    schedule: Schedule,
    weight_decay: float,
    done: int,
    old: int,
    new: int,
) -> str | None:
    """What is scheduled differently in the first `done` steps of runs of `old` and of `new` steps.

    None if nothing is.
    `weight_decay` is the plan's, of the groups that have `auto`."""
    names: dict[Any, str] = {}
    for group in groups.values():
        rule = find(group["rule"])
        for name in rule.SCHEDULED:
            value = configured(group, name)
            if name != "weight_decay" or (weight_decay if value == "auto" else value):
                of_rule = f"{rule.name.capitalize()} {name.replace('_', ' ')}"
                names.setdefault(name, "learning rate" if name == "lr" else of_rule)
    for step in range(done):
        for name, what in names.items():
            if schedule.value(name, 1.0, step, old) != schedule.value(name, 1.0, step, new):
                return f"{what} of step {step:,}"
    return None


def uses_planned_decay(groups: dict[str, dict[str, Any]]) -> bool:
    """Does any group take its weight decay from the plan (`weight_decay: auto`)? If not,
    `plan.weight_decay` has no effect."""
    return any(options.get("weight_decay") == "auto" for options in groups.values())


def table(optimizer: GroupedOptimizer) -> Iterable[tuple[str, str, str, str, str]]:
    """Rows (parameter, shape, rule, rate, decay) of every parameter, runs of equal layers folded
    into one row."""
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
