"""Paths: the base directory for everything a run writes, the hub mirror, and the configs."""

import os
from pathlib import Path


def base_dir() -> Path:
    """Root of everything nanochat writes: `NANOCHAT_BASE_DIR`, or `~/.cache/nanochat`."""
    return Path(os.environ.get("NANOCHAT_BASE_DIR") or "~/.cache/nanochat").expanduser().absolute()


def hub_dir() -> Path | None:
    """A local mirror of the Hugging Face hub (`NANOCHAT_HUB_DIR`), used instead of the network;
    None without one."""
    value = os.environ.get("NANOCHAT_HUB_DIR")
    return Path(value).expanduser().absolute() if value else None


def conf_dir() -> Path:
    """The Hydra configs: package data in an installed wheel, at the top level in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "conf", package.parents[1] / "conf"):
        if (candidate / "train.yaml").is_file():
            return candidate
    raise FileNotFoundError(
        f"no conf/train.yaml in {package} or {package.parents[1]}; reinstall nanochat"
    )
