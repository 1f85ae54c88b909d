"""Checkpoints of the original: finding the one that a user names, and reading it
(facts sheet 5.4, 5.10, 11).

    ROOT/base_checkpoints/d20/   model_021400.pt  meta_021400.json  optim_021400_rank0.pt …
    ROOT/tokenizer/              tokenizer.pkl  token_bytes.pt

or, as d32 and d34 are published, all files in one folder. Step, tag and phase are never guessed:
two candidates are an error that lists them.
"""

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat.gpt import GPT, GPTConfig
from nanochat.interop.eras import arch_of
from nanochat.interop.tiktoken_pickle import read_tokenizer
from nanochat.tokenizer.tokenizer import BPETokenizer

PHASES = {
    "base_checkpoints": "base",
    "mid_checkpoints": "mid",
    "chatsft_checkpoints": "sft",
    "chatrl_checkpoints": "rl",
}
MODEL, TOKENIZER = re.compile(r"model_(\d+)\.pt"), "tokenizer.pkl"
# files of a published model, without its optimizer
PARTS = ("model_*.pt", "meta_*.json", "tokenizer*", "token_bytes.pt")
COMPILED = "_orig_mod."  # prefix that torch.compile adds to every name
BATCH_TOKENS = 2**19  # from: facts sheet 5.5, the original's value for a file without one
SIZES = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_embd")


@dataclass(frozen=True)
class Original:
    """One checkpoint of the original. `phase` is that of its folder, None if the folder has no such
    name."""

    folder: Path
    step: int
    phase: str | None
    tokenizer_file: Path

    @property
    def model_file(self) -> Path:
        return self.folder / f"model_{self._digits}.pt"

    @property
    def meta_file(self) -> Path:
        return self.folder / f"meta_{self._digits}.json"

    @property
    def _digits(self) -> str:
        return f"{self.step:06d}"


def find(text: str, *roots: Path, tokenizer: Path | None = None) -> Original | None:
    """The checkpoint of the original that `text` names, or None if it names none.

    `text` is a folder with model files, one of the original's folders above it, one model file, or
    either folder with `:STEP`; as given or below one of `roots`. ValueError if there are several,
    or if part of it is missing.
    """
    for words, step in (text, None), text.rpartition(":")[::2]:
        if step is not None and not str(step).isdecimal():
            continue
        for path in (Path(words).expanduser(), *(root / words for root in roots)):
            if path.is_file() and (match := MODEL.fullmatch(path.name)):
                return _complete(path.parent, int(match[1]), tokenizer)
            if words and path.is_dir() and (leaves := _leaves(path)):
                folder = _only(leaves, text, f":{step}" if step else "")
                return _complete(
                    folder, _step(folder, None if step is None else int(step)), tokenizer
                )
    return None


def _leaves(path: Path) -> list[Path]:
    """The folders with model files at or below `path`."""
    if _steps(path):
        return [path]
    groups = [path] if path.name in PHASES else [path / name for name in PHASES]
    return [
        tag
        for group in groups
        if group.is_dir()
        for tag in sorted(group.iterdir())
        if tag.is_dir() and _steps(tag)
    ]


def _steps(folder: Path) -> list[int]:
    found = (MODEL.fullmatch(path.name) for path in folder.glob("model_*.pt"))
    return sorted(int(match[1]) for match in found if match)


def _only(folders: list[Path], text: str, suffix: str) -> Path:
    if len(folders) > 1:
        listed = ", ".join(f"{folder}{suffix}" for folder in folders)
        raise ValueError(f"{text} holds {len(folders)} nanochat models; choose one of: {listed}")
    return folders[0]


def _step(folder: Path, wanted: int | None) -> int:
    steps = _steps(folder)
    if wanted is None and len(steps) == 1:
        return steps[0]
    if wanted not in steps:
        listed = ", ".join(f"{folder}:{step}" for step in steps)
        why = f"holds {len(steps)} steps" if wanted is None else f"has no step {wanted}"
        raise ValueError(f"{folder} {why}; choose one of: {listed}")
    return wanted


def _complete(folder: Path, step: int, tokenizer: Path | None) -> Original:
    found = Original(
        folder, step, PHASES.get(folder.parent.name), _tokenizer_file(folder, tokenizer)
    )
    if not found.meta_file.is_file():
        raise ValueError(
            f"{found.model_file} needs {found.meta_file.name} in the same folder, which holds the "
            "sizes; copy both"
        )
    return found


def _tokenizer_file(folder: Path, given: Path | None) -> Path:
    above = [folder.parent.parent] if folder.parent.name in PHASES else []
    places = (
        [given]
        if given
        else [folder, folder / "tokenizer", *(root / "tokenizer" for root in above)]
    )
    found = [place / TOKENIZER for place in places if (place / TOKENIZER).is_file()]
    if not found:
        raise ValueError(
            f"no {TOKENIZER} in {', '.join(map(str, places))}; copy the one the model was trained "
            "with there, or convert with "
            "python -m nanochat.import src=… out=DIR tokenizer_dir=FOLDER"
        )
    if len({path.read_bytes() for path in found}) > 1:
        raise ValueError(
            f"two different tokenizers: {' and '.join(map(str, found))}; keep the one the model "
            "was trained with, or convert with "
            "python -m nanochat.import src=… out=DIR tokenizer_dir=FOLDER"
        )
    return found[0]


def published(name: str, mirror: Path | None, cache: Path, parts: tuple[str, ...] = PARTS) -> Path:
    """The files of a model on the hub, `ORG/NAME`: from a local mirror, or downloaded once into
    `cache` (resumable; only `parts` of it)."""
    if mirror is not None:
        if not (mirror / name).is_dir():
            raise ValueError(
                f"there is no folder {name} here, and {name} is not in the mirror {mirror}; put it "
                "there, or unset NANOCHAT_HUB_DIR to download it"
            )
        return mirror / name
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(parts), cache_dir=cache))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"there is no folder {name} here, and none on the hub ({reason}); go online, or "
            "download it elsewhere and give its folder"
        ) from error


def read_meta(original: Original) -> dict[str, Any]:
    """The content of the meta file; `Infinity`, which is not JSON, is accepted, as in
    the original."""
    try:
        meta = json.loads(original.meta_file.read_text(encoding="utf-8"))
        if not isinstance(meta["model_config"], dict):
            raise KeyError("model_config")
        return meta
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{original.meta_file} cannot be read: {error or 'it has no model_config'}"
        ) from error


def phase_of(original: Original, meta: dict[str, Any]) -> str | None:
    """The phase that made it, by the content of its meta file if that decides it (facts sheet 5.4);
    else by its folder.

    Only pretraining writes the length of its rows. d34 is published as a base model and often
    stored under chatsft_checkpoints.
    """
    if "device_batch_size" in meta and "max_seq_len" in meta:
        return "base"
    if "val_loss" in meta or "mmlu_acc" in meta:
        return "sft"
    return original.phase


def why_unread(error: Exception) -> str:
    """Why torch did not load a file, in a few words. Torch's advice to load it without
    the guard is left out."""
    words = str(error).strip()
    if "weights_only" in words:
        return "it holds more than weights, which could run code; nothing in it was run"
    if "mmap can only be used" in words:
        return "it is not a file of torch.save, or one from before 2020"
    return words.partition(". ")[0].splitlines()[0] if words else type(error).__name__


def read_weights(original: Original) -> dict[str, Tensor]:
    """Name -> tensor, in the file's dtypes, memory-mapped. Nothing in the file is executed."""
    try:
        found = torch.load(original.model_file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many exception types for unknown files
        raise ValueError(
            f"{original.model_file} cannot be read as weights: {why_unread(error)}"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ValueError(f"{original.model_file} does not hold the weights of a model")
    return {name.removeprefix(COMPILED): tensor for name, tensor in found.items()}


def config_of(
    original: Original,
    meta: dict[str, Any],
    weights: dict[str, Tensor],
    arch: dict[str, Any] | None,
) -> GPTConfig:
    """Sizes from the meta file; architecture from the tensors, or from the switches `arch`
    (`eras.arch_of`)."""
    sizes = meta["model_config"]
    if missing := [name for name in SIZES if type(sizes.get(name)) is not int]:
        raise ValueError(
            f"{original.meta_file} does not give {missing[0]} as a number in model_config"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    try:
        switches = arch_of(shapes, sizes.get("window_pattern"), arch)
    except ValueError as error:
        raise ValueError(f"{original.model_file}: {error}") from error
    kv_heads = sizes.get("n_kv_head", sizes["n_head"])
    return GPTConfig(**{name: sizes[name] for name in SIZES}, n_kv_head=kv_heads, arch=switches)


def fitted(original: Original, weights: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """The weights under the names and shapes of a network of `config`. ValueError if one is missing
    or left over.

    Files from before December 2025 have no padding rows in tables of the vocabulary (facts sheet
    1.1): they are filled with zeros.
    """
    with torch.device("meta"):
        wanted = {name: tuple(p.shape) for name, p in GPT(config).state_dict().items()}
    if wrong := sorted(wanted.keys() ^ weights.keys()):
        side = "lacks" if wrong[0] in wanted else "has no place for"
        raise ValueError(
            f"{original.model_file} does not fit {original.meta_file.name}: the model {side} "
            f"{', '.join(wrong[:3])}"
        )
    result = {}
    for name, shape in wanted.items():
        tensor = weights[name]
        if not tensor.is_floating_point():
            raise ValueError(
                f"{original.model_file}: {name} holds {tensor.dtype}, which is not a "
                "floating-point type"
            )
        if tuple(tensor.shape) == (config.vocab_size, *shape[1:]) != shape:
            tensor = torch.cat((tensor, tensor.new_zeros(shape[0] - config.vocab_size, *shape[1:])))
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{original.model_file}: {name} has the shape {tuple(tensor.shape)}, the sizes in "
                f"{original.meta_file.name} require {shape}"
            )
        result[name] = tensor
    return result


def tokenizer_of(original: Original, config: GPTConfig) -> BPETokenizer:
    tokenizer = read_tokenizer(original.tokenizer_file)
    if tokenizer.vocab_size != config.vocab_size:
        raise ValueError(
            f"{original.tokenizer_file} has {tokenizer.vocab_size:,} tokens, "
            f"the model {config.vocab_size:,}; replace it by the one the model was trained with"
        )
    return tokenizer


def token_bytes_of(original: Original, config: GPTConfig) -> Tensor | None:
    """The token lengths stored with the checkpoint, the denominator of its published bits per byte
    (facts sheet 3.3); None if missing."""
    file = original.tokenizer_file.with_name("token_bytes.pt")
    if not file.is_file():
        return None
    with contextlib.suppress(Exception):
        lengths = torch.load(file, map_location="cpu", weights_only=True)
        if isinstance(lengths, Tensor) and tuple(lengths.shape) == (config.vocab_size,):
            return lengths.to(torch.int32)
    raise ValueError(
        f"{file} does not hold {config.vocab_size:,} numbers; copy the one that came with the "
        "model, or delete it"
    )


def settings_of(meta: dict[str, Any], phase: str | None, arch: str) -> dict[str, Any]:
    """Settings of its run under this project's names; 524,288 tokens per step if it does not say
    (facts sheet 5.5)."""
    user = meta.get("user_config")
    given = {**(user if isinstance(user, dict) else {}), **meta}
    tokens, rows = given.get("total_batch_size"), given.get("device_batch_size")
    return {
        "phase": phase,
        "batch_tokens": tokens if type(tokens) is int and tokens > 0 else BATCH_TOKENS,
        "plan": {"scale": "classic" if arch == "classic" else "modern"},
        **({"data": {"rows_per_device": rows}} if type(rows) is int else {}),
    }
