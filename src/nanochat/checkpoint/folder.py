"""A checkpoint is a folder, complete in itself, that loads without Lightning, Hydra and pickle.

    model.safetensors   weights under nanochat's tensor names
    config.json         architecture, sizes, format version, hash of the tokenizer
    tokenizer.json, token_bytes.npy
    lineage.json        parents, composed config, command, commit, data, versions, metrics
    files.json          bytes and hash of every file, written last, to detect damage before loading
    trainer/            optimizer_files.py: the optimizer's state, a file from each rank;
                        state.pt: its options, loops, RNG. Only for `resume`

It is written under a temporary name, fsynced and renamed, so that a kill at any instant leaves the
previous one intact. In a run of several processes all of them call `save`, and the folder is on a
disk that they share.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanochat import distributed
from nanochat.checkpoint import hashes, optimizer_files
from nanochat.checkpoint.atomic import write_atomic, write_together
from nanochat.checkpoint.optimizer_files import OptimizerFiles
from nanochat.checkpoint.shared_file import HeldRows, write_rows
from nanochat.gpt import GPT, GPTConfig
from nanochat.inference.frozen_gpt import FrozenGPT
from nanochat.runtime.disk import fsync

WEIGHTS = "model.safetensors"
TRAINER = "trainer/"
STATE = f"{TRAINER}state.pt"


def save(
    path: Path,
    weights: Mapping[str, Tensor | HeldRows],
    config: GPTConfig,
    tokenizer: Any,
    lineage: dict[str, Any],
    trainer_state: dict[str, Any] | None = None,
    arrays: dict[str, np.ndarray] | None = None,
) -> None:
    """Write a checkpoint folder. `tokenizer` has `save(folder)` and `hash`; `arrays` are further
    files, name -> content."""

    state = dict(trainer_state or {})
    optimizers = state.pop("optimizer_states", [])
    by_rows = {name: weight for name, weight in weights.items() if isinstance(weight, HeldRows)}

    def of_rank(folder: Path) -> tuple[Any, dict[str, Any]]:
        if by_rows:
            write_rows(folder / WEIGHTS, by_rows)
            fsync(folder / WEIGHTS)
        if not optimizers:
            return None, {}
        (folder / STATE).parent.mkdir(exist_ok=True)
        entry = optimizer_files.write(folder, distributed.rank(), optimizers[0])
        fsync(folder / entry["file"])
        return entry, {entry["file"]: facts_of(folder / entry["file"])}

    def write(folder: Path, parts: list[Any]) -> None:
        if not by_rows:
            plain = {k: v.detach().contiguous() for k, v in weights.items()}  # type: ignore[union-attr]
            save_file(plain, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / "config.json").write_text(
            json.dumps({**config.to_json(), "tokenizer_hash": tokenizer.hash}, indent=2) + "\n",
            encoding="utf-8",
        )
        tokenizer.save(folder)
        for name, array in (arrays or {}).items():
            np.save(folder / name, array, allow_pickle=False)
        (folder / "lineage.json").write_text(
            json.dumps(lineage, indent=2, default=str) + "\n", encoding="utf-8"
        )
        files: dict[str, Any] = {}
        if trainer_state is not None:
            (folder / STATE).parent.mkdir(exist_ok=True)
            if optimizers:
                optimizer_files.write_index(folder, [entry for entry, _ in parts])
                files = {name: facts for _, found in parts for name, facts in found.items()}
                state["optimizer_states"] = [{"param_groups": optimizers[0]["param_groups"]}]
            # a Python file, whose error says that the disk is full
            with (folder / STATE).open("wb") as file:
                torch.save(state, file)
        for p in sorted(folder.rglob("*")):
            if p.is_file() and (name := str(p.relative_to(folder))) not in files:
                files[name] = facts_of(p)
        (folder / "files.json").write_text(json.dumps(files, indent=2) + "\n", encoding="utf-8")

    if optimizers or by_rows:
        write_together(path, of_rank, write)
    else:
        write_atomic(path, lambda folder: write(folder, []))


def facts_of(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, hashes.HASH: hashes.file_hash(file)}


def problem(path: Path, *, state: bool = False) -> str | None:
    """What is wrong with a checkpoint folder (missing, truncated or damaged files), or None.

    The trainer's state is checked only with `state`: nothing but resuming needs it, and it may be
    deleted to save space. Checkpoints from before hashes were stored are checked by size.
    """
    if not path.is_dir():
        return f"{path} is not a folder"
    try:
        files = dict(read_json(path / "files.json"))
    except FileNotFoundError:
        return f"{path} has no files.json, so it is not a complete nanochat checkpoint"
    except (ValueError, TypeError):
        return f"{path}/files.json is not readable JSON"
    if state and STATE not in files:
        return f"{path} has no {STATE}"
    if not state:
        files = {name: facts for name, facts in files.items() if not name.startswith(TRAINER)}
    for name, facts in files.items():
        file = path / name
        size, expected = (
            (facts.get("bytes"), facts.get(hashes.HASH))
            if isinstance(facts, dict)
            else (facts, None)
        )
        if not file.is_file():
            return f"{path} has no {STATE}" if name == STATE else f"{file} is missing"
        if file.stat().st_size != size:
            return (
                f"{file} has {file.stat().st_size:,} bytes instead of {size:,}: it is truncated or "
                "was changed"
            )
        if expected and hashes.wanted() and hashes.file_hash(file) != expected:
            return (
                f"{file} is damaged or was changed: its {hashes.HASH} is not the one in files.json"
            )
    return None


def require(path: Path, *, state: bool = False) -> Path:
    """`path`, if it is an undamaged checkpoint folder; else a ValueError that says what is wrong
    and which checkpoint in the same folder is undamaged."""
    if wrong := problem(path, state=state):
        beside = sorted(path.parent.glob("step_*"), reverse=True) if path.parent.is_dir() else []
        sound = next((p for p in beside if p != path and problem(p, state=state) is None), None)
        raise ValueError(
            wrong
            + ("; copy it again" if path.is_dir() else "")
            + (f", or use the newest undamaged one: {sound}" if sound else "")
        )
    return path


def read_json(path: Path) -> Any:
    """The JSON in a file. ValueError that names the file if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(
            f"{path} is not readable JSON ({error}); it is damaged or was changed: copy it again"
        ) from error


def read_config(path: Path) -> GPTConfig:
    file = require(path) / "config.json"
    try:
        return GPTConfig.from_json(read_json(file))
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{file} does not describe a model ({error}); it is damaged or was changed: copy it "
            "again"
        ) from error
    except ValueError as error:
        raise ValueError(str(error) if str(file) in str(error) else f"{file}: {error}") from error


def read_lineage(path: Path) -> dict[str, Any]:
    return read_json(path / "lineage.json")


def phase(path: Path) -> str | None:
    """The phase that made a checkpoint, None if it is not recorded."""
    file = path / "lineage.json"
    return (read_lineage(path).get("config") or {}).get("phase") if file.is_file() else None


def read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(require(path) / "model.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{path}/model.safetensors cannot be read: {error}") from error


def read_state(path: Path, *, by_rows: bool = False) -> dict[str, Any]:
    """The trainer's state, for resume. ValueError if it is missing or not readable.

    `by_rows`: `state` of the optimizer is a function that reads it by name and rows, unless the
    checkpoint is of an earlier version, which has it in one file.
    """
    file = path / STATE
    if path.is_dir() and not file.is_file():
        raise ValueError(
            f"{path} has no {STATE}, so training cannot resume from it; start a new run with "
            f"init_from={path}"
        )
    require(path, state=True)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error
    for n, optimizer in enumerate(found.get("optimizer_states", [])):
        if "state" not in optimizer:
            groups = optimizer["param_groups"]
            found["optimizer_states"][n] = (
                {"state": OptimizerFiles(path), "param_groups": groups}
                if by_rows
                else optimizer_files.whole(path, groups)
            )
    return found


def load_tokenizer(path: Path) -> Any:
    """The checkpoint's tokenizer. ValueError if its hash differs from that of the training
    tokenizer."""
    from nanochat.tokenizer import load_tokenizer as load

    tokenizer = load(path)
    expected = read_json(path / "config.json").get("tokenizer_hash")
    if tokenizer.hash != expected:
        raise ValueError(
            f"the tokenizer in {path} has hash {tokenizer.hash}, the model was trained with "
            f"{expected}; put the right one back"
        )
    return tokenizer


def load_gpt(
    path: Path, *, device: torch.device | str = "cpu", compute_dtype: torch.dtype = torch.float32
) -> GPT:
    """The model of a checkpoint folder with its weights. ValueError if a tensor is missing or left
    over."""
    gpt = GPT.build(read_config(path), seed=None, device=device, compute_dtype=compute_dtype)
    gpt.load_state_dict(read_weights(path), strict=True)
    return gpt


def load_to_run(
    path: Path, *, device: torch.device | str = "cpu", compute_dtype: torch.dtype = torch.float32
) -> FrozenGPT:
    """The model of a checkpoint folder for decoding and scoring alone.

    Each tensor is cast as soon as it is read, so loading takes no more memory than running.
    """
    config = read_config(path)
    with torch.device("meta"):
        expected = set(GPT(config).state_dict())
    file = path / WEIGHTS
    try:
        with safe_open(file, framework="pt") as mapped:
            names = set(mapped.keys())
        if wrong := sorted(names ^ expected):
            raise ValueError(f"{file} does not fit its config.json: see {', '.join(wrong[:3])}")

        def read(name: str) -> Tensor:
            # closed each time: mapped memory counts for the process until the last reference to the
            # tensor is gone
            with safe_open(file, framework="pt") as mapped:
                return mapped.get_tensor(name).to(device)

        return FrozenGPT.read(config, read, compute_dtype=compute_dtype)
    except SafetensorError as error:
        raise ValueError(f"{path}/model.safetensors cannot be read: {error}") from error
