"""Checkpoints opened to be served, under names that say which they are."""

import torch

from nanochat.checkpoint.opened import Opened, open_checkpoint
from nanochat.inference.engine import MAX_ROWS, POOL_BYTES, Engine
from nanochat.runtime import hardware
from nanochat.sandbox.execution import python_tool
from nanochat.serve.service import ServedModel
from nanochat.serve.worker import Worker


def open_models(
    ckpts: list[str],
    *,
    device: str = "auto",
    precision: str = "auto",
    force: bool = False,
    gpus: int = 1,
    max_rows: int = MAX_ROWS,
    log_texts: bool = False,
    python: bool = False,
    pool_bytes: int = POOL_BYTES,
    compile: bool = False,
) -> list[ServedModel]:
    """A model for each of `ckpts`, each with an engine on every one of `gpus` GPUs. ValueError
    where one cannot be had."""
    if gpus < 1:
        raise ValueError(f"gpus={gpus} must be at least 1")
    if gpus > 1:
        there = torch.cuda.device_count() if hardware.pick_device(device).type == "cuda" else 0
        if there < gpus:
            raise ValueError(
                f"gpus={gpus} but torch sees {there} CUDA devices here; try gpus={max(1, there)}"
            )
    devices = [device] if gpus == 1 else [f"cuda:{n}" for n in range(gpus)]
    models: dict[str, ServedModel] = {}
    for ckpt in ckpts:
        opened = [
            open_checkpoint(ckpt, device=device, precision=precision, force=force)
            for device in devices
        ]
        name = model_name(opened[0], set(models))
        workers = [
            Worker(
                Engine(
                    copy.gpt,
                    copy.tokenizer,
                    max_rows=max_rows,
                    pool_bytes=pool_bytes,
                    run_python=python_tool if python else None,
                    compile=compile,
                ),
                name=f"{name} on {copy.device}",
                log_texts=log_texts,
            )
            for copy in opened
        ]
        models[name] = ServedModel(
            name, opened[0].path, opened[0].phase, opened[0].tokenizer, workers
        )
    return list(models.values())


def model_name(opened: Opened, taken: set[str]) -> str:
    """Its name (`short_name`), with a number if that is `taken`."""
    name = opened.name
    return next(
        free
        for n in range(1, len(taken) + 2)
        if (free := name if n == 1 else f"{name}-{n}") not in taken
    )
