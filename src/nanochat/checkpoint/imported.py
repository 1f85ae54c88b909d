"""Checkpoints of the original, and GPT-2 models of the hub, as checkpoint folders: converted once,
then used like any other."""

import hashlib
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from nanochat.checkpoint import folder
from nanochat.gpt import counts
from nanochat.interop import huggingface, moments, original
from nanochat.interop.original import Original
from nanochat.runtime.paths import base_dir, hub_dir

ORIGINAL_BYTES = "token_bytes_original.npy"
# from: nanoGPT's recipe to fine-tune GPT-2 (config/finetune_shakespeare.py)
FINE_TUNING = {"rule": "adamw", "lr": 3e-5, "betas": [0.9, 0.95], "eps": 1e-8}
PUBLISHED = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:\d+)?")


def find(text: str, tokenizer: Path | None = None) -> Original | None:
    """The original's checkpoint that `text` names: files (`interop.original.find`), or a model on
    the hub, ORG/NAME or ORG/NAME:STEP."""
    found = original.find(text, base_dir(), tokenizer=tokenizer)
    if found is None and PUBLISHED.fullmatch(text) and not Path(text).exists():
        name, _, step = text.partition(":")
        place = original.published(name, hub_dir(), base_dir() / "hub")
        found = original.find(f"{place}:{step}" if step else str(place), tokenizer=tokenizer)
        if found is None:
            raise ValueError(f"{name} holds no nanochat model: it has no model_STEP.pt")
    return found


def cached(found: Original) -> Path:
    """The checkpoint as a folder below `NANOCHAT_BASE_DIR/imported`, converted at first use."""
    out = _place(f"{found.folder.name}-{found.step:06d}", _files(found))
    if folder.problem(out) is not None:
        convert(found, out)
    return out


def _place(name: str, files: list[Path]) -> Path:
    """The folder for the conversion of these files."""
    facts = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]
    return base_dir() / "imported" / f"{name}-{digest}"


def hub_place(text: str) -> Path:
    """The folder that `hf:ID-or-folder` names."""
    return huggingface.place_of(text, hub_dir(), base_dir() / "hub")


def gpt2_cached(text: str) -> Path:
    """The GPT-2 that `hf:ID-or-folder` names as a checkpoint folder. ValueError for another
    model."""
    place = hub_place(text)
    out = _place(hub_name(text), [f for f in sorted(place.iterdir()) if f.is_file()])
    if folder.problem(out) is not None:
        convert_gpt2(text, place, out)
    return out


def hub_name(text: str) -> str:
    return Path(text.removeprefix(huggingface.PREFIX)).name


def convert_gpt2(text: str, place: Path, out: Path, chat_tokens: bool = False) -> None:
    """Write the GPT-2 in `place` as a checkpoint folder, with the special tokens of conversations
    if they are wanted. The weights keep their values and dtypes. ValueError for another model."""
    settings = huggingface.read_settings(place)
    if (kind := settings["model_type"]) != "gpt2":
        raise ValueError(
            f"{text} is a {kind}, which runs through transformers: chat, cli, sample and evaluate "
            f"take it (ckpt={text}); "
            "it cannot be trained or converted here, only models of type gpt2 can"
        )
    config = huggingface.gpt2_config(place, settings)
    rows, tokenizer = config.vocab_size, huggingface.read_tokenizer(place, settings)
    if chat_tokens:
        tokenizer = tokenizer.with_chat_tokens()
        config = replace(config, vocab_size=tokenizer.vocab_size)
    weights = huggingface.gpt2_weights(place, config, rows)
    # rates to go on with, which every phase takes from the checkpoint it starts from
    roles = {"embedding": 0.1, "matrix": 0.1, "vector": 0.0}
    groups = {
        role: {**FINE_TUNING, "weight_decay": decay, "scale_batch": False}
        for role, decay in roles.items()
    }
    lineage: dict[str, Any] = {
        "step": 0,
        "config": {"run_name": hub_name(text), "phase": "base", "optim": {"groups": groups}},
        "inherit": ["optim.groups"],
        "imported": {"from": str(place.absolute()), "meta": settings},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    folder.save(out, weights, config, tokenizer, lineage)


def convert(found: Original, out: Path, arch: dict[str, Any] | None = None) -> None:
    """Write the checkpoint as a checkpoint folder. The weights keep their values and dtypes.

    `arch` are the switches of its era, for tensors that do not determine it. ValueError for files
    that do not match, OSError for too little disk.
    """
    meta, weights = original.read_meta(found), original.read_weights(found)
    config = original.config_of(found, meta, weights, arch)
    weights = original.fitted(found, weights, config)
    tokenizer, phase = original.tokenizer_of(found, config), original.phase_of(found, meta)
    own_bytes = original.token_bytes_of(found, config)
    need = sum(w.nbytes for w in weights.values())
    out.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(out.parent).free) < need:
        raise OSError(
            f"{out.parent} has {free / 1e9:.1f} GB free and the converted model takes "
            f"{need / 1e9:.1f}; free some, or set NANOCHAT_BASE_DIR"
        )
    lineage: dict[str, Any] = {
        "step": found.step,
        "config": {
            "run_name": f"nanochat-{found.folder.name}",
            **original.settings_of(meta, phase, config.arch.name),
        },
        "imported": {"from": str(found.model_file.absolute()), "meta": meta},
    }
    extra = {} if own_bytes is None else {ORIGINAL_BYTES: own_bytes.numpy()}
    folder.save(out, weights, config, tokenizer, lineage, arrays=extra)
    if found.phase not in (None, phase):
        print(
            (
                f"note: {found.folder} holds a {phase} model, despite the name of its folder, and "
                "is used as such"
            ),
            file=sys.stderr,
        )
    print(
        f"converted {found.model_file}: arch {config.arch.name}, "
        f"{counts.parameters(config)['total']:,} parameters, step {found.step:,}, "
        f"phase {phase or 'unknown'} -> {out}",
        file=sys.stderr,
    )


def optimizer_state(path: Path, device: str = "cpu") -> dict[str, Any]:
    """The optimizer state of an imported checkpoint, from the files next to its source
    (`moments.read`). ValueError says why there is none."""
    source = (folder.read_lineage(path).get("imported") or {}).get("from")
    if source is None or Path(source).is_dir():
        raise ValueError(f"{path} has no state of an optimizer")
    file = Path(source)
    return moments.read(
        file.parent, int(file.stem.rpartition("_")[2]), folder.read_config(path), device
    )


def _files(found: Original) -> list[Path]:
    lengths = found.tokenizer_file.with_name("token_bytes.pt")
    return [
        found.model_file,
        found.meta_file,
        found.tokenizer_file,
        *([lengths] if lengths.is_file() else []),
    ]
