"""Where metrics go besides the screen. Each function here makes one logger for a run folder; `conf/logger/*.yaml` names them.

What a logger needs from outside (a package, a login, the network) is looked at by `check` before there is a run folder.
"""

import hashlib
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.utils import get_method
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from nanochat.callbacks.csv_logger import CsvLogger


def csv(folder: Path, resume_step: int) -> Logger:
    return CsvLogger(folder, resume_step)


def wandb(folder: Path, resume_step: int, project: str, offline: bool) -> Logger:
    """Weights & Biases. The run id follows from the run folder, so a resumed run continues the same one, offline too.

    W&B writes late: what it does not have of the steps before `resume_step`, since the run was killed, it gets from metrics.csv. An offline run
    begins a new file, which so has every step. ValueError if W&B does not take the run.
    """
    from wandb import Error

    name = f"{folder.parent.name}/{folder.name}"
    run_id = hashlib.sha256(name.encode()).hexdigest()[:12]
    logger = WandbLogger(name=name, id=run_id, project=project, offline=offline, save_dir=str(folder), resume="allow")
    try:
        _ = logger.experiment  # begins the run, here rather than in the middle of the first step
    except Error as error:
        raise ValueError(f"logger=wandb: {error}; {INSTEAD}") from error
    if resume_step:
        has = logger.experiment.summary.get("trainer/global_step", 0)
        for row in CsvLogger(folder, resume_step).rows():
            if has < (step := int(row.pop("step"))) <= resume_step:
                logger.log_metrics({name: float(value) for name, value in row.items() if value}, step)
    return logger


def tensorboard(folder: Path, resume_step: int) -> Logger:
    """TensorBoard. What an interrupted run wrote after the step it is resumed from is hidden; that step's points stay."""
    purge = resume_step + 1 if resume_step else 0
    return TensorBoardLogger(save_dir=str(folder), name="tensorboard", version="", purge_step=purge)


INSTEAD = "or choose logger.wandb.offline=true or logger=csv"


def check(loggers: dict[str, dict[str, Any]]) -> None:
    """ValueError if a run with these loggers (`_target_` and settings of each) could not begin."""
    for name, settings in loggers.items():
        make = get_method(settings["_target_"])
        options = {key: value for key, value in settings.items() if key != "_target_"}
        known = inspect.signature(make).parameters.keys() - {"folder", "resume_step"}
        if unknown := sorted(options.keys() - known):
            has = f"it has {', '.join(sorted(known))}" if known else "it has none"
            raise ValueError(f"logger.{name}.{unknown[0]} is not a setting of this logger; {has}")
        if missing := sorted(known - options.keys()):
            raise ValueError(f"logger.{name}.{missing[0]} must be given: add +logger.{name}.{missing[0]}=…")
        if make in CHECKS:
            CHECKS[make](**options)


def check_wandb(project: str, offline: bool) -> None:
    if not isinstance(offline, bool):
        raise ValueError(f"logger.wandb.offline={offline} must be true or false")
    if importlib.util.find_spec("wandb") is None:
        raise ValueError("logger=wandb needs the package wandb: pip install wandb, or choose logger=csv")
    import wandb

    try:
        settings = wandb.Settings(project=project)
    except (ValueError, wandb.Error) as error:  # pydantic says it in several lines; variables WANDB_… are read here too
        raise ValueError(f"logger=wandb: {str(error).splitlines()[-1].strip()}") from error
    if offline or settings.mode != "online":  # WANDB_MODE
        return
    try:
        there = wandb.login(prompt=False, verify=True)
    except wandb.Error as error:
        raise ValueError(
            f"logger=wandb: W&B did not confirm the login ({error}); look at the network, type `wandb login --relogin` for another key, {INSTEAD}"
        ) from error
    if not there:
        raise ValueError(f"logger=wandb has no login on this machine: type `wandb login` first, {INSTEAD}")


def check_tensorboard() -> None:
    if importlib.util.find_spec("tensorboard") is None:
        raise ValueError(
            "logger=tensorboard needs the package tensorboard: pip install 'nanochat[tensorboard]', or choose logger=csv"
        )


CHECKS: dict[Any, Callable[..., None]] = {wandb: check_wandb, tensorboard: check_tensorboard}
