"""A checkpoint opened for running: the first step of every command that takes `ckpt=`."""

import sys
from pathlib import Path
from typing import NamedTuple

import torch

from nanochat.checkpoint import exported, folder, imported
from nanochat.checkpoint.runs import described, resolve, short_name
from nanochat.inference.frozen_gpt import FrozenGPT
from nanochat.interop import huggingface
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
    name: str  # short, to choose it by

    @property
    def chats(self) -> bool:
        return self.phase != "base"


def open_checkpoint(
    ckpt: str, *, device: str = "auto", precision: str = "auto", force: bool = False
) -> Opened:
    """The checkpoint that `resolve` finds for `ckpt`, or the model that hf:ID-or-folder names; a
    line on stderr says which. ValueError if there is none, or for a setting that does not fit, and
    for an export whose certificate is red unless `force`."""
    chosen = hardware.pick_device(device)
    dtype, why = hardware.compute_dtype(precision, chosen)
    if ckpt.startswith(huggingface.PREFIX):
        place = imported.hub_place(ckpt)
        kind = huggingface.read_settings(place)["model_type"]
        if kind != "gpt2" and not exported.is_exported(place):
            return _open_hub(ckpt, place, kind, chosen, dtype, why)
    path = resolve(ckpt, base_dir() / "runs", force=force)
    print(described(path), file=sys.stderr)
    tokenizer, phase = folder.load_tokenizer(path), folder.phase(path)
    gpt = folder.load_to_run(path, device=chosen, compute_dtype=dtype)
    return Opened(path, gpt, tokenizer, phase, chosen, dtype, why, short_name(path))


def _open_hub(
    ckpt: str, place: Path, kind: str, device: torch.device, dtype: torch.dtype, why: str
) -> Opened:
    from nanochat.interop import hub_model

    gpt, tokenizer = hub_model.load(place, device=device, compute_dtype=dtype)
    phase = None if tokenizer.template else "base"  # only with a template it is known how to ask it
    print(
        f"checkpoint: {place}, a {kind} run through transformers, {gpt.config.n_layer} layers, "
        f"{'chats by its own template' if tokenizer.template else 'without a chat template'}; it "
        "cannot be trained here",
        file=sys.stderr,
    )
    return Opened(place, gpt, tokenizer, phase, device, dtype, why, imported.hub_name(ckpt))
