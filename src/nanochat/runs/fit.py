"""Train a run in this process: the network, the phase, its callbacks and loggers, and Lightning's
Trainer around them."""

import logging
import os
import warnings
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers.logger import DummyLogger

from nanochat.callbacks.garbage import HoldGarbage
from nanochat.callbacks.save import SaveWhenStopped
from nanochat.callbacks.trial import TrialStep
from nanochat.checkpoint.lightning_io import FolderCheckpointIO
from nanochat.checkpoint.runs import RunCheckpoints
from nanochat.gpt import GPT, counts
from nanochat.modules.phase import PhaseModule
from nanochat.runs import parent, show
from nanochat.runs.memory import state_bytes
from nanochat.runs.parts import build, build_loggers
from nanochat.runs.recipe import Recipe
from nanochat.runs.run_folder import SAMPLES, RunFolder, add_to_record, read_record, write_summary
from nanochat.runs.start import newest
from nanochat.runs.trainer import build_trainer, fast_steps, repeated_steps
from nanochat.runtime import hardware
from nanochat.runtime.settings import locate
from nanochat.runtime.signals import kill_workers_at_exit


def fit(recipe: Recipe, folder: RunFolder) -> bool:
    """Train a recipe in this process: all of it, or one rank of it. True if a signal stopped it."""
    rank = int(os.environ.get("RANK", 0))
    quiet_lightning()
    torch.manual_seed(recipe.config["seed"])
    recipe.attach()
    start, problems = newest(recipe, folder)
    checkpoints = recipe.checkpoints(folder)
    resume_step = int(start.name.removeprefix("step_")) if start else 0
    if rank == 0:
        say_resumed(folder, resume_step, problems)
    hardware.limit_memory(recipe.device, recipe.config["compute"]["memory_gb"])
    before = hardware.memory_used(recipe.device)
    gpt = recipe.build_gpt(filled=start is None)
    shape = (recipe.data.micro_rows, recipe.gpt_config.sequence_len)
    recomputed = recipe.config["compute"]["checkpointing"]
    chosen = gpt.prepare(
        compute_dtype=recipe.dtype[0],
        attention_backend=recipe.attention(),
        checkpointing="none" if recomputed == "auto" else recomputed,
        eight_bits=recipe.config["compute"]["fp8"],
        compile_for=shape if recipe.wants_compile() else None,
        by_block=recipe.config["trainer"]["strategy"] == "fsdp",
    )
    moments = (
        parent.moments(recipe.config["init_optimizer"], recipe.parent) if start is None else None
    )
    module = recipe.build_module(gpt, moments)
    module.total_steps = min(
        module.total_steps, fast_steps(recipe.config["trainer"]) or module.total_steps
    )
    if rank == 0:
        say_prepared(recipe, gpt, chosen)
        print(f"run folder: {folder.path}")
    callbacks = build_callbacks(recipe, folder, module, rank, checkpoints)
    with_trial = [*trial(recipe), *callbacks.values()]
    trainer = trainer_of(recipe, folder, module, with_trial, rank, resume_step, checkpoints)
    if start is not None:
        recipe.data.start_step = resume_step
    save, evaluate = callbacks["save"], callbacks.get("evaluate")
    # Lightning adds callbacks of its own to those it was given
    trainer.callbacks.append(SaveWhenStopped(save))
    if module.automatic_optimization:  # else a step writes texts, and there is time
        trainer.callbacks.append(HoldGarbage())
    save.listen(trainer)
    kill_workers_at_exit()
    try:
        trainer.fit(module, datamodule=recipe.data, ckpt_path=start)
    except MisconfigurationException as error:
        raise ValueError(f"Lightning refuses this run: {error}") from error
    peak = hardware.memory_peak(recipe.device) - before
    step = trainer.global_step
    # it was stopped between a step and the evaluation of it: the last one, or by a callback
    if (
        evaluate is not None
        and not save.told_to_stop
        and (step < module.total_steps or resume_step >= step)
    ):
        evaluate.catch_up(trainer, module)
    if rank == 0:
        add_to_record(folder, {"outcome": what_it_took(recipe, module, peak, step)})
        say_ended(recipe, folder, trainer, module.clock.seconds)
    return save.told_to_stop


def trainer_of(
    recipe: Recipe,
    folder: RunFolder,
    module: PhaseModule,
    callbacks: list[Any],
    rank: int,
    resume_step: int,
    checkpoints: RunCheckpoints,
) -> Trainer:
    """Lightning's Trainer with the flags of the configuration and those that the run sets."""
    settings = dict(recipe.config["trainer"])
    if not module.automatic_optimization:  # it clips its gradients itself
        del settings["gradient_clip_val"]
    recipe.data.repeat_steps = repeated_steps(settings)
    loggers: list[Any] = [DummyLogger()]
    if rank == 0:
        loggers = build_loggers(recipe.config["logger"] or {}, folder.path, resume_step)
    record = {"config": recipe.config, **read_record(folder)}
    plugin = FolderCheckpointIO(recipe.gpt_config, recipe.tokenizer, record, checkpoints.writer)
    return build_trainer(
        settings,
        steps=module.total_steps,
        accumulate=recipe.data.accumulate,
        callbacks=callbacks,
        logger=loggers,
        default_root_dir=folder.path,
        plugins=[plugin],
    )


def trial(recipe: Recipe) -> list[TrialStep]:
    """What tries a micro-batch before the first step, where that was asked for."""
    config, memory = recipe.config, recipe.config["compute"]["memory_gb"]
    if config["compute"]["trial"] is not True:
        return []
    with torch.device("meta"):
        optimizer = recipe.build_optimizer(recipe.plan)(GPT(recipe.gpt_config))
    cap = int(memory * 1e9) if memory and recipe.device.type == "cpu" else None
    reserved = state_bytes(optimizer, recipe.world_size)
    return [TrialStep(recipe.data, reserved=reserved, cap=cap)]


def what_it_took(recipe: Recipe, module: PhaseModule, peak: int, step: int) -> dict[str, Any]:
    """What became of the forecast, for the record. `peak`: bytes above those before the network was
    built."""
    seconds, batch = module.clock.seconds, recipe.batch_of_report()
    return {
        "peak_bytes": peak,
        "training_seconds": seconds,
        "tokens_per_second": step * batch / seconds if batch and seconds else None,
        "rows_per_device": getattr(recipe.data, "micro_rows", None),
        "computed_in_parts": module.halving.parts,
    }


def say_resumed(folder: RunFolder, step: int, problems: list[str]) -> None:
    """What a run goes on from, and the checkpoints that cannot be used."""
    for line in problems:
        print(f"skipped: {line}")
    if folder.resumed:
        since = f"after step {step:,}" if step else "from the start: it has no checkpoint yet"
        print(f"resuming {folder.path} {since}")


def say_ended(recipe: Recipe, folder: RunFolder, trainer: Trainer, seconds: float) -> None:
    """Why it ended, what it trained on and its results; also written into the run folder."""
    step, steps, checkpoints = trainer.global_step, recipe.plan.steps, recipe.checkpoints(folder)
    for callback in trainer.callbacks:
        if why := getattr(callback, "stopping_reason_message", None):  # EarlyStopping
            print(why)
    if trainer.fast_dev_run:
        print(
            f"trainer.fast_dev_run: {step} steps and what comes at the end of a run; "
            "nothing was kept"
        )
        return
    repeated = recipe.data.repeat_steps
    ledger = recipe.data.ledger(min(step, repeated or step))
    write_summary(folder, step, seconds, ledger)
    place = checkpoints.path(step)
    if step < steps:
        show.stopped(step, steps, place)
        return
    metrics = checkpoints.metrics(step)
    if repeated:
        print(f"the tokens of the first {repeated} steps were trained again and again:")
    best = checkpoints.best()
    show.finished(step, seconds, ledger, metrics, best, place, chats=recipe.chats)
    recipe.print_result(checkpoints.metrics(0), metrics)


def say_prepared(recipe: Recipe, gpt: GPT, chosen: dict[str, str]) -> None:
    """Device, dtypes, attention and optimizer. `chosen` is what the network decided on."""
    print(
        f"device: {recipe.hardware.name}; fp32 weights, {chosen['compute dtype']} compute "
        f"({recipe.dtype[1]}); compile: {chosen['compile']}"
    )
    print(f"attention: {chosen['attention']}")
    show.optimizer(recipe.build_optimizer(recipe.plan)(gpt))


def build_callbacks(
    recipe: Recipe, folder: RunFolder, module: PhaseModule, rank: int, checkpoints: RunCheckpoints
) -> dict[str, Any]:
    """By name, in the order in which they run: what others change (averages of weights) is saved,
    evaluated and sampled."""
    config = recipe.config
    sample = dict(config["sample"])
    chosen = {name: c for name, c in config["callbacks"].items() if c}
    prompts = list(sample.pop("prompts") or [])
    # a progress bar of Lightning's takes the place of ours
    bar = config["progress"] == "auto" and any(
        issubclass(locate(c["_target_"]), ProgressBar) for c in chosen.values()
    )

    def write(gpt: GPT, texts: list[str]) -> list[str]:
        return recipe.sampled(gpt, texts, sample)

    given: dict[str, dict[str, Any]] = {
        "report": {
            "batch_tokens": recipe.batch_of_report(),
            "flops_per_token": counts.flops_per_token(recipe.gpt_config),
            "peak_flops": recipe.hardware.peak_flops,
            "log_every": config["log_every"],
            "run_folder": folder.path,
            "show": "none" if rank or bar else config["progress"],
        },
        "save": {"checkpoints": checkpoints, "every": config["save_every"]},
        "evaluate": {
            "evals": recipe.evals(rank),
            "checkpoints": checkpoints,
            "at_start": config["eval_at_start"],
        },
        "sample": {
            "complete": write,
            "prompts": prompts,
            "every": config["sample_every"],
            "file": folder.path / SAMPLES,
        },
    }
    order = [
        "report",
        *(name for name in chosen if name not in given),
        "save",
        "evaluate",
        "sample",
    ]
    made: dict[str, Any] = {type(c).__name__: c for c in recipe.first_callbacks(folder)}
    for name in order:
        if name in chosen:
            made[name] = build(chosen[name], given.get(name) or of_stock(name, folder))
            if name == "report":
                given["save"]["before"] = made[name].flush
    return made


def of_stock(name: str, folder: RunFolder) -> dict[str, Any]:
    """What suits a callback of Lightning here, where to it a run is one epoch without end."""
    return {
        "check_on_train_epoch_end": False,  # EarlyStopping: after each evaluation
        "save_on_train_epoch_end": False,  # ModelCheckpoint, likewise
        "dirpath": str(folder.path / name),
    }


def quiet_lightning() -> None:
    """Lightning's banners and hints say nothing that the plan does not."""
    for name in (
        "lightning.pytorch",
        "lightning.fabric",
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.rank_zero",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in (
        "lightning.pytorch.profilers.profiler",
        "lightning.pytorch.callbacks.model_summary",
    ):
        logging.getLogger(name).setLevel(logging.INFO)  # what a user has asked for
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
