"""Weights into a safetensors file one at a time, gathered from the ranks that hold their rows: none
has more than one of them whole."""

import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat import distributed

# from: the format's description, https://github.com/huggingface/safetensors#format
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


def header(weights: Mapping[str, Tensor]) -> bytes:
    """What comes before the data: its length in 8 bytes, then JSON with dtype, shape and place of
    each tensor."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in weights.items():
        end = at + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def save_gathered(file: Path, weights: Mapping[str, Any]) -> None:
    """Called on every rank with DTensors; the first writes. After an error it goes on gathering, as
    the others do, and raises at the end."""
    failure: OSError | None = None
    opened = file.open("wb") if distributed.rank() == 0 else None
    pieces = (bytes_of(weight.detach().full_tensor()) for weight in weights.values())
    data: Any
    for data in chain([header(weights)], pieces):
        try:
            if opened is not None and failure is None:
                opened.write(data)
        except OSError as error:
            failure = error
    if opened is not None:
        opened.close()
    if failure is not None:
        raise failure


def bytes_of(tensor: Tensor) -> Any:
    return tensor.contiguous().cpu().view(torch.uint8).numpy().data
