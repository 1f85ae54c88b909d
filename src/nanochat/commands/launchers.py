"""Hydra's plugins for sweeps: what is missing on this machine, and how to have it."""

import shutil
from collections.abc import Iterable

EXTRAS = {"hydra/launcher": "cluster", "hydra/sweeper": "sweep"}  # of pyproject.toml


def check_launcher(words: Iterable[str]) -> None:
    """ValueError where a sweep is to be run by Slurm and there is none."""
    if "hydra/launcher=submitit_slurm" in words and not shutil.which("sbatch"):
        raise ValueError(
            "hydra/launcher=submitit_slurm needs Slurm (sbatch), and there is none here; "
            "hydra/launcher=submitit_local starts the trials on this machine"
        )


def is_of_launcher(error: Exception) -> bool:
    """Whether it is submitit's: a job that was refused or failed."""
    return type(error).__module__.startswith("submitit.")


def not_installed(group: str, name: str) -> str:
    """
    >>> not_installed("hydra/launcher", "submitit_slurm")
    "hydra/launcher=submitit_slurm is not installed; pip install 'nanochat[cluster]'"
    """
    return f"{group}={name} is not installed; pip install 'nanochat[{EXTRAS[group]}]'"
