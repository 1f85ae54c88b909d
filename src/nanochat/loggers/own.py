"""What the loggers that are written here share."""

import importlib.util
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class OwnLogger(Logger):
    """A logger without versions. It takes no hyperparameters: the composed config is in
    config.yaml."""

    name = ""
    version = ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


def check_package(name: str, install: str = "") -> None:
    """ValueError if the package that logger=NAME needs is not there."""
    if importlib.util.find_spec(name) is None:
        raise ValueError(
            f"logger={name} needs the package {name}: pip install {install or name}, "
            "or choose logger=csv"
        )
