"""Trackio: experiment tracking on this machine, with the interface of W&B. `trackio show` opens its
page."""

from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from nanochat.loggers.own import OwnLogger, check_package


class Trackio(OwnLogger):
    """A run of a resumed folder goes on under the same name."""

    name = "trackio"

    def __init__(self, folder: Path, project: str = "nanochat") -> None:
        super().__init__()
        import trackio

        self.folder = folder
        self.run = trackio.init(
            project=project, name=f"{folder.parent.name}-{folder.name}", resume="allow", embed=False
        )

    @staticmethod
    def check(project: str = "nanochat") -> None:
        check_package("trackio")

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.run.log(metrics, step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.run.finish()
