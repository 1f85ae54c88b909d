"""`optim.groups.ROLE.rule=RULE` on the command line: the options of the old rule are removed, those
of the new rule are taken from its preset."""

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf


def change_rules(
    cfg: DictConfig,
    overridden: Callable[[str], list[str]],
    preset: Callable[[str], dict[str, Any]],
    chosen: str,
    names: list[str],
) -> None:
    """Set the options of each role whose rule was given on the command line; options given there
    are kept.

    `preset(name)` is a choice of the config group optim, `names` are all choices, `chosen` is that
    of this run. The preset with the name of the rule comes first, then any preset that has the rule
    for this role. If there is none, only the given options remain.
    """
    groups = cfg.optim.get("groups") if isinstance(cfg.optim, DictConfig) else None
    for role, group in groups.items() if isinstance(groups, DictConfig) else ():
        key = f"optim.groups.{role!s}"
        if (
            not isinstance(group, DictConfig)
            or not overridden(f"{key}.rule")
            or preset(chosen)["groups"].get(role, {}).get("rule") == group.rule
        ):
            continue
        presets = (
            preset(name)["groups"].get(role, {})
            for name in sorted(names, key=lambda name: name != group.rule)
        )
        options = next(
            (found for found in presets if found.get("rule") == group.rule), {"rule": group.rule}
        )
        typed = {str(name): value for name, value in group.items() if overridden(f"{key}.{name!s}")}
        OmegaConf.update(cfg, key, {**options, **typed}, merge=False, force_add=True)
