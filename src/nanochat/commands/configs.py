"""Look-ups in the config folders: the names in a group, one choice, a whole command, every key.

The folders are `conf/` and, if given, the user's folder of `--config-dir`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nanochat.runtime.paths import base_dir, conf_dir


def register() -> None:
    """Register the resolvers used in the configs, such as `${nanochat.base_dir:}`, evaluated at
    composition."""
    OmegaConf.register_new_resolver("nanochat.base_dir", lambda: str(base_dir()), replace=True)


def config_dirs() -> list[Path]:
    """`conf/`, and the folder of `--config-dir` on the command line."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=Path)
    more = parser.parse_known_args(sys.argv[1:])[0].config_dir
    return [conf_dir(), *([more.absolute()] if more else [])]


def choices(group: str) -> list[str]:
    """The names in a config group."""
    found = {path.stem for folder in config_dirs() for path in (folder / group).glob("*.yaml")}
    return sorted(name for name in found if not name.startswith("_"))


def group_names() -> list[str]:
    """The names of the config groups."""
    return sorted({path.name for folder in config_dirs() for path in folder.glob("*/")})


def compose_choice(group: str, name: str) -> dict[str, Any]:
    """One file of a config group with its defaults merged in, as plain values."""
    found = compose_command(f"{group}/{name}")[group]
    return OmegaConf.to_container(found, resolve=True)  # type: ignore[return-value]


def compose_command(name: str, words: Sequence[str] = ()) -> DictConfig:
    """A command's configuration with these words on its command line. A running command keeps its
    search path."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    if GlobalHydra.instance().is_initialized():
        return compose(name, list(words))
    register()
    more = ",".join(f"'file://{folder}'" for folder in config_dirs()[1:])
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(name, [*words, *([f"hydra.searchpath=[{more}]"] if more else [])])


def known_keys(name: str) -> list[str]:
    """Every dotted key of the command's default composition, with the choices of this command
    line."""
    chosen = [
        word
        for word in sys.argv[1:]
        if word.lstrip("+").partition("=")[0] in group_names() and "," not in word
    ]
    try:
        cfg = compose_command(name, chosen)
    except Exception:  # an unknown choice is reported elsewhere
        cfg = compose_command(name)
    keys: list[str] = []

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.items():
            keys.append(f"{prefix}{key}")
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")

    walk(OmegaConf.to_container(cfg, resolve=False), "")
    return keys
