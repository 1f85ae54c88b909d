"""Trackio: experiment tracking on this machine, with the interface of W&B. `trackio show` opens its
page."""

import importlib.util
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class Trackio(Logger):
    """A run of a resumed folder goes on under the same name."""

    def __init__(self, folder: Path, project: str = "nanochat") -> None:
        super().__init__()
        import trackio

        self.folder = folder
        self.run = trackio.init(
            project=project, name=f"{folder.parent.name}-{folder.name}", resume="allow", embed=False
        )

    @staticmethod
    def check(project: str = "nanochat") -> None:
        if importlib.util.find_spec("trackio") is None:
            raise ValueError(
                "logger=trackio needs the package trackio: pip install trackio, or choose "
                "logger=csv"
            )

    @property
    def name(self) -> str:
        return "trackio"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The composed config is in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.run.log(metrics, step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.run.finish()
