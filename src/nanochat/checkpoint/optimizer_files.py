"""The state of an optimizer in a checkpoint: a file from each rank with the rows it updates, and an
index of all.

    trainer/optim-00003.safetensors   what rank 3 holds, as NAME/KEY: transformer.wte.weight/exp_avg
    trainer/optim.json                name -> the rows [start, stop) that each file has of it, and
                                      values that are no tensors

A rank of any number of ranks reads the rows that it updates and no others.
"""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

INDEX = "trainer/optim.json"


def file_name(rank: int) -> str:
    return f"trainer/optim-{rank:05d}.safetensors"


def write(folder: Path, rank: int, optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """Write the state that this rank holds; its entry of the index. `optimizer` is the `state_dict`
    of a GroupedOptimizer.

    `rows` in it, name -> [start, stop), are what it holds."""
    tensors: dict[str, Tensor] = {}
    states: dict[str, Any] = {}
    for group in optimizer["param_groups"]:
        for name, number in zip(group["names"], group["params"], strict=True):
            state = optimizer["state"].get(number)
            if state:
                found = {key: value for key, value in state.items() if torch.is_tensor(value)}
                tensors |= {f"{name}/{k}": t.detach().contiguous() for k, t in found.items()}
                values = {key: value for key, value in state.items() if key not in found}
                rows = list(optimizer["rows"][name])
                states[name] = {"rows": rows, "tensors": list(found), "values": values}
    file = file_name(rank)
    save_file(tensors, folder / file)
    return {"file": file, "states": states}


def write_index(folder: Path, entries: list[dict[str, Any]]) -> None:
    (folder / INDEX).write_text(json.dumps(entries) + "\n", encoding="utf-8")


class OptimizerFiles:
    """Called with the name of a parameter and rows [start, stop), or None for all: their state,
    None if there is none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def index(self) -> dict[str, list[tuple[str, dict[str, Any]]]]:
        """Name -> (file, entry) of every file that has rows of it, in their order."""
        found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        for entry in json.loads((self.folder / INDEX).read_text(encoding="utf-8")):
            for name, state in entry["states"].items():
                found.setdefault(name, []).append((entry["file"], state))
        for pieces in found.values():
            pieces.sort(key=lambda piece: piece[1]["rows"])
        return found

    def __call__(self, name: Any, start: int = 0, stop: int | None = None) -> dict[str, Any] | None:
        """ValueError if some of the rows are in no file, or a file cannot be read."""
        pieces = self.index.get(str(name))
        if not pieces:
            return None
        stop = pieces[-1][1]["rows"][1] if stop is None else stop
        read, at = [], start
        for file, state in pieces:
            low, high = state["rows"]
            if low <= at < min(stop, high):
                end = min(stop, high)
                part = None if (at, end) == (low, high) else slice(at - low, end - low)
                read.append(self._tensors(file, name, state["tensors"], part))
                at = end
        if at < stop:
            raise ValueError(f"{self.folder / INDEX} has no rows {at} to {stop} of {name}")
        joined = {k: torch.cat([r[k] for r in read]) if t.ndim else t for k, t in read[0].items()}
        return {**pieces[0][1]["values"], **joined}

    def _tensors(
        self, file: str, name: Any, keys: list[str], part: slice | None
    ) -> dict[str, Tensor]:
        """The tensors of a state, or a part of their rows; those without dimensions belong to every
        row."""
        try:
            with safe_open(self.folder / file, framework="pt") as opened:

                def read(key: str) -> Tensor:
                    cut = part is not None and opened.get_slice(key).get_shape()
                    return opened.get_slice(key)[part] if cut else opened.get_tensor(key)

                return {key: read(f"{name}/{key}") for key in keys}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.folder / file} cannot be read: {error}") from error


def whole(path: Path, param_groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The state of all ranks as one `state_dict` of torch."""
    read, state = OptimizerFiles(path), {}
    for group in param_groups:
        for name, number in zip(group["names"], group["params"], strict=True):
            if (found := read(name)) is not None:
                state[number] = found
    return {"state": state, "param_groups": param_groups}
