"""A folder that was exported for transformers, read back as a checkpoint folder: also after
training elsewhere, and one of transformers' own type `nanochat` that another program wrote."""

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from nanochat.checkpoint import folder
from nanochat.checkpoint.certificate import CERTIFICATE
from nanochat.gpt import GPT, GPTConfig
from nanochat.interop.hf_names import config_of, hf_name, is_export
from nanochat.runtime.paths import base_dir
from nanochat.tokenizer.files import tokenizer_from_json
from nanochat.tokenizer.library import LibraryTokenizer
from nanochat.tokenizer.tokenizer import SPECIAL_TOKENS, TOKENIZER_FILE, Tokenizer


def is_exported(path: Path) -> bool:
    file = path / "config.json"
    if not file.is_file() or (path / "files.json").is_file():
        return False
    data = folder.read_json(file)
    return isinstance(data, dict) and is_export(data)


def cached(path: Path) -> Path:
    """The checkpoint folder made of it below `NANOCHAT_BASE_DIR/imported`, at first use. ValueError
    if a part is missing."""
    files = sorted([*path.glob("*.safetensors"), path / "config.json", path / TOKENIZER_FILE])
    if missing := [file for file in files if not file.is_file()]:
        raise ValueError(f"{missing[0]} is missing; copy the export again")
    facts = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]
    out = base_dir() / "imported" / f"{path.absolute().name}-{digest}"
    if folder.problem(out) is not None:
        config = config_of(folder.read_json(path / "config.json"))
        content = json.loads((path / TOKENIZER_FILE).read_text(encoding="utf-8"))
        tokenizer = _tokenizer(content, config.vocab_size)
        folder.save(out, read_weights(path, config), config, tokenizer, _lineage(path))
    return out


def read_weights(path: Path, config: GPTConfig) -> dict[str, Tensor]:
    """Our names -> tensors, with zeros in the rows that pad the vocabulary. ValueError if one is
    missing or left over."""
    with torch.device("meta"):
        wanted = {name: p.shape for name, p in GPT(config).state_dict().items()}
    found = {}
    with ExitStack() as stack:
        there = {}
        for file in path.glob("*.safetensors"):
            opened = stack.enter_context(safe_open(file, framework="pt"))
            there.update(dict.fromkeys(opened.keys(), opened))
        names = {hf_name(name): name for name in wanted}
        if wrong := sorted(names.keys() ^ there.keys()):
            side = "lacks" if wrong[0] in names else "has no place for"
            raise ValueError(f"{path} does not fit its config.json: the model {side} {wrong[0]}")
        for theirs, ours in names.items():
            tensor, shape = there[theirs].get_tensor(theirs), wanted[ours]
            rows = shape[0] - len(tensor)
            if rows:
                tensor = torch.cat((tensor, tensor.new_zeros(rows, *tensor.shape[1:])))
            found[ours] = tensor
    return found


def _tokenizer(content: dict[str, Any], vocab_size: int) -> Tokenizer:
    """Ours of an exported tokenizer.json, whose first step takes out the template's cuts
    (export/text_files.py); of another program the same if it is, else that program's as it is."""
    steps = (content.get("pre_tokenizer") or {}).get("pretokenizers") or [{}]
    if steps[0].get("behavior") == "Removed":
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps[1:]}
    text = json.dumps(content)
    try:
        return tokenizer_from_json(text)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        ids = {entry["content"]: entry["id"] for entry in content.get("added_tokens", [])}
        if missing := [name for name in SPECIAL_TOKENS if name not in ids]:
            raise ValueError(f"its {TOKENIZER_FILE} has no {missing[0]}") from None
        return LibraryTokenizer(text, {name: ids[name] for name in SPECIAL_TOKENS}, vocab_size)


def _lineage(path: Path) -> dict[str, Any]:
    file = path / CERTIFICATE
    source = folder.read_json(file).get("source", {}) if file.is_file() else {}
    run = {"phase": source.get("phase"), "run_name": path.absolute().name}
    return {
        "step": source.get("step", 0),
        "config": run,
        "imported": {"from": str(path.absolute()), "meta": source},
    }
