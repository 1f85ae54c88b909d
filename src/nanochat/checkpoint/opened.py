"""A checkpoint opened for running: the first step of every command that takes `ckpt=`."""

from pathlib import Path
from typing import NamedTuple

import torch

from nanochat.checkpoint import folder
from nanochat.checkpoint.runs import resolve
from nanochat.inference.frozen_gpt import FrozenGPT
from nanochat.runtime import hardware
from nanochat.runtime.paths import base_dir
from nanochat.tokenizer.tokenizer import Tokenizer


class Opened(NamedTuple):
    path: Path
    gpt: FrozenGPT
    tokenizer: Tokenizer
    phase: str | None  # phase that made it, None if unknown
    device: torch.device
    dtype: torch.dtype
    why: str  # reason for the dtype

    @property
    def chats(self) -> bool:
        return self.phase != "base"


def open_checkpoint(ckpt: str, *, device: str = "auto", precision: str = "auto") -> Opened:
    """The checkpoint that `resolve` finds for `ckpt`. ValueError if there is none, or for a setting
    that does not fit."""
    path = resolve(ckpt, base_dir() / "runs")
    chosen = hardware.pick_device(device)
    dtype, why = hardware.compute_dtype(precision, chosen)
    tokenizer, phase = folder.load_tokenizer(path), folder.phase(path)
    gpt = folder.load_to_run(path, device=chosen, compute_dtype=dtype)
    return Opened(path, gpt, tokenizer, phase, chosen, dtype, why)
