"""Weights that ranks hold by rows, as one safetensors file: each rank writes the rows that it has
where they belong. Nothing is gathered."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

# from: the format's description, https://github.com/huggingface/safetensors#format
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


class HeldRows(NamedTuple):
    """What this rank has of a weight of `shape`: rows from `start` on."""

    rows: Tensor
    start: int
    shape: tuple[int, ...]


def rows_of_rank(weight: Tensor) -> Tensor | HeldRows:
    """A weight itself, or where FSDP2 has shared it out the rows on this rank."""
    if not hasattr(weight, "to_local"):
        return weight.detach()
    from nanochat.distributed.fsdp import held

    start, _ = held(len(weight), dist.get_rank(), dist.get_world_size())
    return HeldRows(weight.to_local().detach(), start, tuple(weight.shape))


def header(weights: Mapping[str, HeldRows]) -> tuple[bytes, dict[str, int]]:
    """What comes before the data: its length in 8 bytes, then JSON with dtype, shape and place of
    each tensor. And where in the file each begins."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (rows, _, shape) in weights.items():
        end = at + torch.Size(shape).numel() * rows.element_size()
        entries[name] = {
            "dtype": NAMES[rows.dtype],
            "shape": list(shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    first = {n: 8 + len(text) + e["data_offsets"][0] for n, e in entries.items() if "shape" in e}
    return len(text).to_bytes(8, "little") + text, first


def write_rows(file: Path, weights: Mapping[str, HeldRows]) -> None:
    """Called on every rank, in any order: each makes the file if it is not there yet."""
    begin, places = header(weights)
    file.open("ab").close()
    with file.open("r+b") as opened:
        opened.write(begin)  # the same bytes from every rank
        for name, (rows, start, shape) in weights.items():
            opened.seek(places[name] + start * torch.Size(shape[1:]).numel() * rows.element_size())
            opened.write(rows.contiguous().cpu().view(torch.uint8).numpy().data)
