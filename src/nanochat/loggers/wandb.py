"""Weights & Biases."""

import hashlib
from pathlib import Path

from lightning.pytorch.loggers import Logger, WandbLogger

from nanochat.loggers.csv import CsvLogger
from nanochat.loggers.own import check_package

INSTEAD = "or choose logger.wandb.offline=true or logger=csv"


def wandb(folder: Path, resume_step: int, project: str, offline: bool) -> Logger:
    """The run id follows from the run folder, so a resumed run continues the same one, offline too.

    W&B writes late: what it does not have of the steps before `resume_step`, since the run was
    killed, it gets from metrics.csv. An offline run begins a new file, which so has every step.
    ValueError if W&B does not take the run.
    """
    from wandb import Error

    name = f"{folder.parent.name}/{folder.name}"
    run_id = hashlib.sha256(name.encode()).hexdigest()[:12]
    logger = WandbLogger(
        name=name, id=run_id, project=project, offline=offline, save_dir=str(folder), resume="allow"
    )
    try:
        _ = logger.experiment  # begins the run, here rather than in the middle of the first step
    except Error as error:
        raise ValueError(f"logger=wandb: {error}; {INSTEAD}") from error
    if resume_step:
        has = logger.experiment.summary.get("trainer/global_step", 0)
        for row in CsvLogger(folder, resume_step).rows():
            if has < (step := int(row.pop("step"))) <= resume_step:
                logger.log_metrics(
                    {name: float(value) for name, value in row.items() if value}, step
                )
    return logger


def check(project: str, offline: bool) -> None:
    check_package("wandb")
    import wandb

    try:
        settings = wandb.Settings(project=project)
    except (ValueError, wandb.Error) as error:
        # pydantic says it in several lines; variables WANDB_… are read here too
        raise ValueError(f"logger=wandb: {str(error).splitlines()[-1].strip()}") from error
    if offline or settings.mode != "online":  # WANDB_MODE
        return
    try:
        there = wandb.login(prompt=False, verify=True)
    except wandb.Error as error:
        raise ValueError(
            f"logger=wandb: W&B did not confirm the login ({error}); look at the network, type "
            f"`wandb login --relogin` for another key, {INSTEAD}"
        ) from error
    if not there:
        raise ValueError(
            f"logger=wandb has no login on this machine: type `wandb login` first, {INSTEAD}"
        )


wandb.check = check  # type: ignore[attr-defined]
