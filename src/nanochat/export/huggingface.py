"""A checkpoint as a folder that `transformers` loads: config.json, safetensors, tokenizer,
template.

Every tensor of the checkpoint is written under its name in transformers, without the rows that pad
the vocabulary; a tensor without such a name is an error. Weights over 5 GB are split into several
files as `huggingface_hub` does it, so `from_pretrained` finds them.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from nanochat.export.text_files import ends, write_json, write_text_files
from nanochat.gpt import GPT, GPTConfig
from nanochat.interop.hf_names import hf_config, hf_name, rows_of_vocabulary
from nanochat.tokenizer.tokenizer import Tokenizer

SHARD_BYTES = 5_000_000_000  # from: the default of save_pretrained until transformers 5
REMOTE = ("configuration_nanochat.py", "modeling_nanochat.py")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def reader(weights: Path, config: GPTConfig, dtype: torch.dtype | None) -> Callable[[str], Tensor]:
    """A function that reads a tensor of the checkpoint, as exported, by its
    name in transformers."""

    def read(name: str) -> Tensor:
        with safe_open(weights, framework="pt") as file:
            tensor = file.get_tensor(name)
        if rows_of_vocabulary(name):
            tensor = tensor[: config.vocab_size]
        return tensor.to(dtype or tensor.dtype).contiguous()

    return read


def tensor_names(weights: Path, config: GPTConfig) -> list[str]:
    """The names in a weights file. ValueError unless they are exactly those of a model of
    `config`."""
    with safe_open(weights, framework="pt") as file:
        there = set(file.keys())
    with torch.device("meta"):
        wanted = list(GPT(config).state_dict())
    if wrong := sorted(there.symmetric_difference(wanted)):
        side = "has no place for" if wrong[0] in there else "lacks"
        raise ValueError(f"{weights} does not fit its config.json: the model {side} {wrong[0]}")
    return wanted


def write_weights(
    folder: Path, names: list[str], read: Callable[[str], Tensor], shard_bytes: int = SHARD_BYTES
) -> None:
    """model.safetensors, or several files and their index, with one of them in memory at a time."""
    ours = {hf_name(name): name for name in names}
    assert len(ours) == len(names), "two tensors would have one name"
    plan = split_state_dict_into_shards_factory(
        {name: (old,) for name, old in ours.items()},  # it leaves out strings
        get_storage_size=lambda old: read(*old).nbytes,
        filename_pattern="model{suffix}.safetensors",
        get_storage_id=lambda old: None,
        max_shard_size=shard_bytes,
    )
    assert plan.tensor_to_filename.keys() == ours.keys(), "a tensor was left out"
    for file, inside in plan.filename_to_tensors.items():
        save_file({name: read(ours[name]) for name in inside}, folder / file, {"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)


def write_folder(
    folder: Path,
    checkpoint: Path,
    config: GPTConfig,
    tokenizer: Tokenizer,
    *,
    phase: str | None,
    own: bool,
    dtype: torch.dtype | None = None,
) -> None:
    """All files except card and certificate. `own`: with the modelling file of this project."""
    weights = checkpoint / "model.safetensors"
    names, read = tensor_names(weights, config), reader(weights, config, dtype)
    write_weights(folder, names, read)
    write_text_files(folder, tokenizer, phase, config.sequence_len)
    sizes = {
        **hf_config(config, own=own),
        "dtype": str(read("lm_head.weight").dtype).removeprefix("torch."),
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.specials[ends(phase)],
        # without a pad token: transformers passes no gradient to the embedding
        # of the padding token that
        "pad_token_id": None,
    }
    write_json(folder / "config.json", sizes)
    for name in REMOTE if own else ():
        shutil.copyfile(Path(__file__).parent / "remote" / name, folder / name)
