"""Callbacks and loggers of a run: each is built from its settings and what the run gives, ours and
Lightning's alike."""

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch import callbacks as stock
from lightning.pytorch.loggers import Logger

from nanochat.runtime.settings import Setting, locate, parameters

# A run cannot be without these: why, and what to type instead.
NEEDED = {
    "report": (
        "it stops a run whose loss is not finite and writes metrics.csv; progress=none shows "
        "nothing"
    ),
    "save": (
        "it writes the checkpoints and takes the signals that stop a run; save_every=null saves at "
        "the end alone"
    ),
}
# What the run gives to the callbacks of these names, and the setting it comes from where there is
# one.
GIVEN: dict[str, dict[str, str | None]] = {
    "report": {
        "log_every": "log_every=N",
        "show": "progress=lines",
        "batch_tokens": "batch_tokens=N",
        "flops_per_token": None,
        "peak_flops": None,
        "run_folder": "run_name=NAME",
    },
    "save": {"every": "save_every=N", "checkpoints": "checkpoints.keep_last=N", "before": None},
    "evaluate": {
        "evals": "eval_every=N",
        "at_start": "eval_at_start=true",
        "checkpoints": "checkpoints.keep_last=N",
    },
    "sample": {
        "every": "sample_every=N",
        "prompts": "sample.prompts=[…]",
        "complete": None,
        "file": None,
    },
}
PLANNED = "the plan of a run sets it, and the checkpoints of a run are of one plan"
# Callbacks of Lightning that cannot work in a run, and why.
CANNOT: dict[type, str] = {
    stock.StochasticWeightAveraging: "it averages at the ends of epochs, and to Lightning a run is "
    "one epoch without end; "
    "use lightning.pytorch.callbacks.EMAWeightAveraging",
    stock.GradientAccumulationScheduler: f"it changes the batch, and {PLANNED}",
    stock.BatchSizeFinder: (
        f"it changes the batch, and {PLANNED}; data.rows_per_device=N sets the rows of a forward "
        "pass"
    ),
    stock.LearningRateFinder: (
        f"it changes the learning rate, and {PLANNED}; optim.groups.matrix.lr=… sets it"
    ),
    stock.ModelPruning: "it renames the weights, and a checkpoint has those of the network",
    stock.BaseFinetuning: (
        "it unfreezes layers by epochs, and to Lightning a run is one epoch without end"
    ),
    stock.BasePredictionWriter: "a run trains and predicts nothing",
}


def callback_settings(values: Mapping[str, Any], path: str) -> Mapping[str, Setting]:
    """The settings of one of `callbacks`: the arguments of its class that the run does not give.
    ValueError if it cannot work."""
    target = _target(values, path, "lightning.pytorch.callbacks.Timer")
    if not (isinstance(target, type) and issubclass(target, stock.Callback)):
        raise ValueError(f"{path}._target_={values['_target_']} is not a callback of Lightning")
    for kind, why in CANNOT.items():
        if issubclass(target, kind):
            raise ValueError(f"{path}: {target.__name__} cannot work in a run: {why}")
    given = GIVEN.get(path.rpartition(".")[2], {})
    for key in values:
        if key in given:
            raise ValueError(
                f"{path}.{key} comes from the run" + (f"; set {given[key]}" if given[key] else "")
            )
    return {key: value for key, value in parameters(target).items() if key not in given}


def logger_settings(values: Mapping[str, Any], path: str) -> Mapping[str, Setting]:
    """The settings of one of `logger`: the arguments of its class that the run does not give."""
    known = parameters(_target(values, path, "lightning.pytorch.loggers.CSVLogger"))
    optional = {"save_dir": known["save_dir"]._replace(default=None)} if "save_dir" in known else {}
    return {
        key: value
        for key, value in {**known, **optional}.items()
        if key not in ("folder", "resume_step")
    }


def _target(values: Mapping[str, Any], path: str, example: str) -> Any:
    if not (name := values.get("_target_")):
        raise ValueError(f"{path} has no _target_: name its class, as +{path}._target_={example}")
    try:
        return locate(name)
    except ValueError as error:
        raise ValueError(
            f"{path}._target_={name}: {error}; see the files in conf/{path.partition('.')[0]}/"
        ) from error


def check_callbacks(callbacks: Mapping[str, Any]) -> None:
    """ValueError if what a run cannot be without was left out."""
    for name, why in NEEDED.items():
        if not callbacks.get(name):
            raise ValueError(f"callbacks.{name} cannot be left out: {why}")


def build(settings: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """Build what `settings` describe, with those arguments of `given` that it takes
    and that are not set."""
    takes = parameters(locate(settings["_target_"]))
    more = {key: value for key, value in given.items() if key in takes and key not in settings}
    return instantiate({**settings, "_partial_": True})(**more)


def build_logger(settings: Mapping[str, Any], folder: Path, resume_step: int = 0) -> Logger:
    """A logger, with the folder of the run under the names that it has for it."""
    given: dict[str, Any] = {"folder": folder, "resume_step": resume_step, "save_dir": str(folder)}
    if "save_dir" not in settings and not os.environ.get("MLFLOW_TRACKING_URI"):
        # MLflow (3.17) refuses the files that Lightning's MLFlowLogger would keep in save_dir
        given["tracking_uri"] = f"sqlite:///{folder}/mlflow.db"
    return build(settings, given)


def build_loggers(loggers: Mapping[str, Any], folder: Path, resume_step: int) -> list[Logger]:
    return [build_logger(settings, folder, resume_step) for settings in loggers.values()]


def check_loggers(loggers: Mapping[str, Any]) -> None:
    """ValueError if a run with these loggers could not begin."""
    for name, settings in loggers.items():
        target = locate(settings["_target_"])
        if check := getattr(target, "check", None):  # one of ours
            check(**{key: value for key, value in settings.items() if key != "_target_"})
            continue
        if not (isinstance(target, type) and issubclass(target, Logger)):
            raise ValueError(
                f"logger.{name}._target_={settings['_target_']} is not a logger of Lightning"
            )
        try:
            # none of Lightning's begins a run before it is given something to log
            with TemporaryDirectory() as folder:
                build_logger(settings, Path(folder))
        except ImportError as error:
            line = str(error).splitlines()[0]
            raise ValueError(
                f"logger.{name}: {target.__name__} needs a package that is not here: {line}"
            ) from error
        except Exception as error:  # of a library that only its logger knows
            raise ValueError(f"logger.{name}: {str(error).splitlines()[0]}") from error
