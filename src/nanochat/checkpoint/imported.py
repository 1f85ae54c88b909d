"""A checkpoint of the original as a checkpoint folder: converted once, then used like any other."""

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from nanochat.checkpoint import folder
from nanochat.gpt import counts
from nanochat.interop import moments, original
from nanochat.interop.original import Original
from nanochat.runtime.paths import base_dir, hub_dir

ORIGINAL_BYTES = "token_bytes_original.npy"
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
    facts = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in _files(found)]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]
    out = base_dir() / "imported" / f"{found.folder.name}-{found.step:06d}-{digest}"
    if folder.problem(out) is not None:
        convert(found, out)
    return out


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
    """The optimizer of an imported checkpoint, from the files beside the one it was made of
    (`moments.read`). ValueError says why there is none."""
    source = (folder.read_lineage(path).get("imported") or {}).get("from")
    if source is None:
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


def original_token_bytes(path: Path) -> np.ndarray | None:
    """The token lengths (V,) that came with an imported checkpoint, None if there are none."""
    file = path / ORIGINAL_BYTES
    return np.load(file, allow_pickle=False) if file.is_file() else None
