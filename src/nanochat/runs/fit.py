"""Train a run in this process: the network, the phase, its callbacks and loggers, and Lightning's Trainer around them."""

import logging
import os
import warnings
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate

from nanochat.callbacks.evaluate import Evaluate
from nanochat.callbacks.report import Report
from nanochat.callbacks.sample import Sample
from nanochat.callbacks.save import Save
from nanochat.checkpoint.lightning_io import FolderCheckpointIO
from nanochat.gpt import GPT, counts
from nanochat.runs import show
from nanochat.runs.job import Job
from nanochat.runs.run_folder import RunFolder, read_record
from nanochat.runtime.signals import kill_workers_at_exit


def fit(job: Job, folder: RunFolder) -> bool:
    """Train `job` in this process: all of it, or one rank of it. True if a signal stopped it."""
    rank, checkpoints = int(os.environ.get("RANK", 0)), job.checkpoints(folder)
    quiet_lightning()
    torch.manual_seed(job.config["seed"])
    job.attach()
    start, problems = job.newest(folder)
    resume_step = int(start.name.removeprefix("step_")) if start else 0
    if rank == 0:
        for line in problems:
            print(f"skipped: {line}")
        if folder.resumed:
            since = f"after step {resume_step:,}" if start else "from the start: it has no checkpoint yet"
            print(f"resuming {folder.path} {since}")
    gpt = job.build_gpt(filled=start is None)
    shape = (job.data.micro_rows, job.gpt_config.sequence_len)
    chosen = gpt.prepare(
        compute_dtype=job.dtype[0],
        attention_backend=job.attention(),
        compile_for=shape if job.wants_compile() else None,
    )
    moments = job.moments() if start is None else None
    module = job.build_module(gpt, moments)
    if rank == 0:
        if job.config["init_optimizer"] and start is None and moments is None:
            print("optimizer: fresh, the checkpoint has no state of one")
        print(
            f"device: {job.hardware.name}; fp32 weights, {chosen['compute dtype']} compute ({job.dtype[1]}); "
            f"compile: {chosen['compile']}"
        )
        print(f"attention: {chosen['attention']}")
        show.optimizer(job.build_optimizer(job.plan)(gpt))
        print(f"run folder: {folder.path}")
    callbacks = build_callbacks(job, folder, rank)
    loggers = build_loggers(job, folder, resume_step) if rank == 0 else []
    trainer = build_trainer(job, folder, callbacks, loggers, clips=module.automatic_optimization)
    if start is not None:
        job.data.start_step = resume_step
    (save,) = (callback for callback in callbacks if isinstance(callback, Save))
    save.listen(trainer)
    kill_workers_at_exit()
    trainer.fit(module, datamodule=job.data, ckpt_path=start)
    if start is not None and resume_step >= job.plan.steps:  # it was stopped between its last step and the evaluation
        for callback in callbacks:
            if isinstance(callback, Evaluate):
                callback.catch_up(trainer, module)
    if rank == 0:
        step, place = trainer.global_step, checkpoints.path(trainer.global_step)
        if step < job.plan.steps:
            show.stopped(step, job.plan.steps, place)
        else:
            metrics, ledger = checkpoints.metrics(step), job.data.ledger(step)
            show.finished(step, module.clock.seconds, ledger, metrics, checkpoints.best(), place, chats=job.chats)
            job.print_result(checkpoints.metrics(0), metrics)
    return save.told_to_stop


def build_callbacks(job: Job, folder: RunFolder, rank: int) -> list[L.Callback]:
    config, checkpoints = job.config, job.checkpoints(folder)
    sample = dict(config["sample"])
    prompts = list(sample.pop("prompts") or [])

    def write(gpt: GPT, texts: list[str]) -> list[str]:
        return job.sampled(gpt, texts, sample)

    report = Report(
        batch_tokens=job.batch_of_report(),
        flops_per_token=counts.flops_per_token(job.gpt_config),
        peak_flops=job.hardware.peak_flops,
        log_every=config["log_every"],
        run_folder=folder.path,
        show=config["progress"] if rank == 0 else "none",
    )
    return [
        *job.first_callbacks(folder),
        report,
        Save(checkpoints, config["save_every"], before=report.flush),
        Evaluate(job.evals(rank), checkpoints, at_start=config["eval_at_start"]),
        Sample(write, prompts, config["sample_every"]),
        *[instantiate(c) for c in (config["callbacks"] or {}).values()],
    ]


def build_loggers(job: Job, folder: RunFolder, resume_step: int) -> list[Any]:
    made = (job.config["logger"] or {}).values()
    return [instantiate(logger, folder=folder.path, resume_step=resume_step) for logger in made]


def build_trainer(
    job: Job, folder: RunFolder, callbacks: list[L.Callback], loggers: list[Any], *, clips: bool
) -> L.Trainer:
    """`clips`: Lightning clips the gradients, not the module itself."""
    settings = job.config["trainer"]
    lineage = {"config": job.config, **read_record(folder)}
    return L.Trainer(
        accelerator=settings["accelerator"],
        devices=settings["devices"],
        num_nodes=settings["num_nodes"],
        strategy=settings["strategy"] if job.world_size > 1 else "auto",
        precision="32-true",
        max_steps=job.plan.steps,
        max_epochs=-1,
        accumulate_grad_batches=job.data.accumulate,
        gradient_clip_val=settings["gradient_clip_val"] if clips else None,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=loggers,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder.path,
        callbacks=callbacks,
        plugins=[FolderCheckpointIO(job.gpt_config, job.tokenizer, lineage)],
    )


def quiet_lightning() -> None:
    """Lightning's banners and hints say nothing that the plan does not."""
    for name in (
        "lightning.pytorch",
        "lightning.fabric",
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.rank_zero",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
