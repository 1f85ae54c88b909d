"""Where things lie: everything a run writes is under one base directory; the configs are beside the code."""

import os
from pathlib import Path


def base_dir() -> Path:
    """Root of everything nanochat writes: `NANOCHAT_BASE_DIR`, or `~/.cache/nanochat`."""
    return Path(os.environ.get("NANOCHAT_BASE_DIR") or "~/.cache/nanochat").expanduser().absolute()


def hub_dir() -> Path | None:
    """A local mirror of the Hugging Face hub (`NANOCHAT_HUB_DIR`), which then replaces the network; None without one."""
    value = os.environ.get("NANOCHAT_HUB_DIR")
    return Path(value).expanduser().absolute() if value else None


def conf_dir() -> Path:
    """The Hydra configs: inside an installed wheel they are package data, in a checkout they are at the top level."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "conf", package.parents[1] / "conf"):
        if (candidate / "train.yaml").is_file():
            return candidate
    raise FileNotFoundError(f"no conf/train.yaml in {package} or {package.parents[1]}; reinstall nanochat")
