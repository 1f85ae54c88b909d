"""A checkpoint as the original's own files, in the folders where its code looks for them (facts
sheet 5.4, 3.3).

    OUT/base_checkpoints/d20/   model_021400.pt  meta_021400.json
    OUT/tokenizer/              tokenizer.pkl  token_bytes.pt

With NANOCHAT_BASE_DIR=OUT its scripts find both. The files do not record their architecture: only
the code of their era computes the same, and the README in OUT names it.
"""

import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from nanochat.export.huggingface import tensor_names
from nanochat.gpt import Arch, GPTConfig
from nanochat.gpt.config import build_arch
from nanochat.interop.eras import ERAS, preset
from nanochat.interop.hf_names import nanochat_arch
from nanochat.interop.original import PHASES
from nanochat.tokenizer.tokenizer import SPECIAL_TOKENS, BPETokenizer, Tokenizer
from nanochat.tokenizer.words import SPLIT_PATTERN

# from: facts sheet 0
CODE = {
    "classic": "13 October 2025 to 11 January 2026 (10231df)",
    "e1": "11 to 16 January 2026",
    "e2": "16 January to 2 March 2026",
    "e3": "25 to 28 January 2026",
    "e4": "2 to 9 March 2026",
    "e5": "9 to 14 March 2026",
    "modern": "14 March 2026 and later (92d63d4)",
}
# switches that the original's forward pass has as constants, or as tensors
FIXED = """rope_base rope_dtype qk_scale softcap short_window_divisor short_window_multiple
long_window_limited lambdas value_embeds smear backout bigram""".split()
IF_ON = {"value_embeds": ("value_gate_channels", "value_gate_max"), "smear": ("smear_channels",)}
FOLDERS = {phase: folder for folder, phase in PHASES.items()}


class OriginalFiles(NamedTuple):
    phase: str
    tag: str
    step: int
    era: str


def era_of(arch: Arch) -> str:
    """The era whose code computes the same as `arch`. ValueError that names what no era has."""
    found = [era for era in ERAS if not differences(arch, era)]
    if not found:
        nearest = min(ERAS, key=lambda era: len(differences(arch, era)))
        raise ValueError(
            f"no code of nanochat computes this model: of {nearest}, the nearest, it differs in "
            f"{', '.join(differences(arch, nearest))}; use format=hf"
        )
    return found[0]


def differences(arch: Arch, era: str) -> list[str]:
    theirs = build_arch(preset(era))
    keys = [
        *FIXED,
        *(key for switch, more in IF_ON.items() if getattr(arch, switch) for key in more),
    ]
    if era == "classic":
        keys.append("window_pattern")  # the meta file has no key for it
    if "S" not in arch.window_pattern:
        keys = [key for key in keys if not key.startswith("short_window")]
    return [
        f"arch.{key}={getattr(arch, key)}"
        for key in keys
        if getattr(arch, key) != getattr(theirs, key)
    ]


def write_original(
    folder: Path,
    checkpoint: Path,
    config: GPTConfig,
    tokenizer: Tokenizer,
    lineage: dict[str, Any],
    metrics: dict[str, Any],
    phase: str | None,
) -> OriginalFiles:
    """Write the files below `folder`. ValueError for a model or tokenizer that the
    original cannot have."""
    arch = nanochat_arch(config)
    era = era_of(arch)
    if not isinstance(tokenizer, BPETokenizer):
        raise ValueError(
            f"nanochat has no files for a tokenizer of kind {tokenizer.kind}; use format=hf"
        )
    if phase == "mid" and era not in ("classic", "e1", "e2", "e3"):
        phase = "sft"  # the phase was deleted on 31 January 2026
    phase, step, tag = phase or "base", int(lineage.get("step") or 0), f"d{config.n_layer}"
    place, words = folder / FOLDERS[phase] / tag, folder / "tokenizer"
    place.mkdir(parents=True)
    words.mkdir()
    names = tensor_names(checkpoint / "model.safetensors", config)
    weights = load_file(checkpoint / "model.safetensors")
    torch.save({name: weights[name] for name in names}, place / f"model_{step:06d}.pt")
    sizes = {
        name: value
        for name, value in asdict(config).items()
        if name in ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
    }
    if era != "classic":
        sizes["window_pattern"] = arch.window_pattern
    run = lineage.get("config") or {}
    meta: dict[str, Any] = {
        "step": step,
        "val_bpb": metrics.get("val/bpb"),
        "model_config": sizes,
        "user_config": {"run": run.get("run_name"), "depth": config.n_layer},
    }
    if phase == "base":
        rows = (run.get("data") or {}).get("rows_per_device")
        meta |= {"device_batch_size": rows, "max_seq_len": config.sequence_len}
    (place / f"meta_{step:06d}.json").write_text(
        json.dumps(meta, indent=2) + "\n", encoding="utf-8"
    )
    (words / "tokenizer.pkl").write_bytes(encoding_pickle(tokenizer))
    torch.save(torch.from_numpy(tokenizer.token_bytes), words / "token_bytes.pt")
    (folder / "README.md").write_text(
        f"A {phase} model in nanochat's files, era {era}: its code of {CODE[era]} computes the "
        "same with it, "
        "other code does not.\n\n    NANOCHAT_BASE_DIR=THIS_FOLDER python -m scripts.chat_cli -i "
        f"{phase}\n",
        encoding="utf-8",
    )
    return OriginalFiles(phase, tag, step, era)


def encoding_pickle(tokenizer: BPETokenizer) -> bytes:
    """The pickle that tiktoken writes for the same encoding, made without tiktoken."""
    state = {
        "name": "rustbpe",
        "pat_str": SPLIT_PATTERN,
        "mergeable_ranks": {token: rank for rank, token in enumerate(tokenizer.tokens)},
        "special_tokens": {name: tokenizer.specials[name] for name in SPECIAL_TOKENS},
    }
    body = pickle.dumps(state, protocol=4)
    made = b"".join(
        (
            body[:2],  # PROTO 4
            _short_text("tiktoken.core"),
            _short_text("Encoding"),
            pickle.STACK_GLOBAL,
            pickle.EMPTY_TUPLE,
            pickle.NEWOBJ,  # an empty Encoding …
            body[2 : -len(pickle.STOP)],
            # … with this state; it replaces STOP, so that the frame keeps its length
            pickle.BUILD,
            pickle.STOP,
        )
    )
    return made


def _short_text(text: str) -> bytes:
    return pickle.SHORT_BINUNICODE + bytes([len(text)]) + text.encode()
