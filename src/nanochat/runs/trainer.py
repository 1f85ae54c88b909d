"""Lightning's Trainer for a run: which of its flags can be set, and what is set instead of the
others.

Every argument of `lightning.Trainer` is a field of `TrainerFlags` or a key of `INSTEAD`
(tests/runs/test_trainer.py).
"""

from typing import Annotated, Any, Literal

import lightning as L
from hydra.utils import instantiate
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from pydantic import Field

from nanochat.runtime.settings import Count, Positive, Ranks, Setting, Settings, parameters

LENGTH = "max_steps=N, plan.tokens=N or data.num_epochs=N sets the length of a run"
EVALUATION = "eval_every=N evaluates every N steps, and eval_tokens=N says on how much text"
ONLY_FIT = (
    "a run trains, and evaluates by evaluations of its own; call lightning.Trainer in Python for "
    "the rest"
)
# flags that the run sets itself, or that can have no effect: why, and what to type
INSTEAD = {
    "precision": (
        "weights are fp32 always; compute.precision=bf16 sets the dtype of activations and products"
    ),
    "logger": (
        "the loggers are a group: logger=csv, or "
        "+logger.NAME._target_=lightning.pytorch.loggers.CSVLogger"
    ),
    "callbacks": (
        "the callbacks are a group: "
        "+callbacks.NAME._target_=lightning.pytorch.callbacks.EarlyStopping"
    ),
    "max_epochs": LENGTH,
    "min_epochs": LENGTH,
    "max_steps": LENGTH,
    "min_steps": (
        "it would keep a signal from stopping the run; a longer patience keeps a callback from it"
    ),
    "limit_val_batches": EVALUATION,
    "limit_test_batches": ONLY_FIT,
    "limit_predict_batches": ONLY_FIT,
    "inference_mode": ONLY_FIT,
    "val_check_interval": EVALUATION,
    "check_val_every_n_epoch": EVALUATION,
    "num_sanity_val_steps": "eval_at_start=true evaluates before the first step",
    "log_every_n_steps": "every step is logged; log_every=N sets how often the loss is looked at",
    "enable_checkpointing": (
        "callbacks.save writes the checkpoints; save_every=null writes one, at the end"
    ),
    "enable_progress_bar": "progress=bar, lines or none says what is shown",
    "accumulate_grad_batches": "it follows from batch_tokens and data.rows_per_device",
    "use_distributed_sampler": "the data share out each batch over the processes themselves",
    "barebones": "a run needs its callbacks; limit_train_batches and profiler help to measure",
    "plugins": "the run's own plugin writes its checkpoint folders",
    "sync_batchnorm": "the network has no batch normalisation",
    "reload_dataloaders_every_n_epochs": "to Lightning a run is one epoch without end",
    "default_root_dir": "NANOCHAT_BASE_DIR and run_name=… set the folder of a run",
    "enable_autolog_hparams": "config.yaml in the run folder has every setting",
    "model_registry": "checkpoints stay in the run folder",
    "compile": "it is compute.compile=… now",
    "attention": "it is compute.attention=… now",
    "expected_mfu": "it is compute.expected_mfu=… now",
}


class TrainerFlags(Settings):
    """The flags that a user can set. null is Lightning's default."""

    accelerator: Literal["cpu", "gpu", "cuda", "mps"]
    devices: Ranks
    num_nodes: Ranks
    strategy: Literal[
        "auto", "ddp", "fsdp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false"
    ]
    gradient_clip_val: Positive | None
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    max_time: (
        Annotated[
            str,
            Field(
                pattern=r"^\d+:\d\d:\d\d:\d\d$",
                description="DAYS:HOURS:MINUTES:SECONDS",
                examples=["00:08:00:00"],
            ),
        ]
        | None
    ) = None
    limit_train_batches: Count | None = None
    overfit_batches: Count | None = None
    fast_dev_run: bool | Count | None = None
    deterministic: bool | Literal["warn"] | None = None
    benchmark: bool | None = None
    profiler: Literal["simple", "advanced", "pytorch"] | dict | None = None
    detect_anomaly: bool | None = None
    enable_model_summary: bool | None = None


# batches are a run's, not Lightning's
OURS = ("limit_train_batches", "overfit_batches", "fast_dev_run")


def flags(values: dict[str, Any], path: str) -> dict[str, Setting]:
    """The settings of the group `trainer`. ValueError for a flag that the run sets itself."""
    known = dict(parameters(TrainerFlags))
    for key in values:
        if key in INSTEAD and key not in known:
            raise ValueError(f"{path}.{key} cannot be set: {INSTEAD[key]}")
    if values.get("gradient_clip_algorithm") and not values.get("gradient_clip_val"):
        raise ValueError(
            f"{path}.gradient_clip_algorithm cannot take effect: add {path}.gradient_clip_val=1.0"
        )
    if values.get("limit_train_batches") and values.get("overfit_batches"):
        raise ValueError(
            f"{path}.limit_train_batches and {path}.overfit_batches say the same; keep one of them"
        )
    return known


def fast_steps(settings: dict[str, Any]) -> int | None:
    """The steps of a quick pass through everything that keeps nothing (`fast_dev_run`), None for a
    real run."""
    return int(settings.get("fast_dev_run") or 0) or None


def repeated_steps(settings: dict[str, Any]) -> int | None:
    """The steps whose batches are trained on again and again, None where none are."""
    return settings.get("limit_train_batches") or settings.get("overfit_batches")


def strategy(settings: dict[str, Any]) -> Any:
    """What `trainer.strategy` means with these devices: one process needs none."""
    world_size = settings["devices"] * settings["num_nodes"]
    if world_size == 1:
        return "auto"
    from nanochat.distributed.strategies import FolderDDP, FolderFSDP

    if settings["strategy"] == "fsdp":
        return FolderFSDP(world_size)
    unused = settings["strategy"].endswith("_true")
    return FolderDDP(find_unused_parameters=unused)


def cluster(world_size: int) -> ClusterEnvironment:
    """Where Lightning finds the ranks: in torchrun's variables, which all of our launchers set."""
    return LightningEnvironment() if world_size == 1 else TorchElasticEnvironment()


def build_trainer(
    settings: dict[str, Any], *, steps: int, accumulate: int, **given: Any
) -> L.Trainer:
    """Lightning's Trainer with the flags of `settings` and what the run gives: `callbacks`,
    `logger`, `plugins` …"""
    own = {key: value for key, value in settings.items() if value is not None and key not in OURS}
    own["strategy"] = strategy(own)
    fast, callbacks = fast_steps(settings), given["callbacks"]
    return instantiate({**own, "_partial_": True})(
        **{
            "precision": "32-true",
            "max_steps": steps,
            "max_epochs": -1,
            "accumulate_grad_batches": accumulate,
            "fast_dev_run": fast * accumulate if fast else False,
            # evaluations are a callback's (callbacks/evaluate.py), not those of Lightning's loop
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "use_distributed_sampler": False,
            "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
            "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
            # where processes come from is this run's business (runs/launched.py), and not to be
            # guessed
            "plugins": [*given.pop("plugins", []), cluster(own["devices"] * own["num_nodes"])],
            "enable_model_summary": own.get("enable_model_summary", False),
            **given,
        }
    )
