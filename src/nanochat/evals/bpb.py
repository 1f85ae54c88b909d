"""Bits per byte: loss in bits over the bytes of the text, comparable across vocabularies (facts sheet 6.1)."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from nanochat.gpt import GPT


@torch.no_grad()
def bits_per_byte(gpt: GPT, batches: Iterable[dict[str, Any]], token_bytes: np.ndarray) -> dict[str, float]:
    """`bpb` and mean `loss` in nats over batches of idx and targets (B, T), summed over processes before dividing.

    A target counts if it is not -1 and its token has bytes (special tokens have none). Raises ValueError if none counts.
    """
    device = gpt.lm_head.weight.device
    lengths = torch.as_tensor(token_bytes, device=device).long()
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # nats, bytes, tokens
    for batch in batches:
        targets = batch["targets"].to(device)
        counted = torch.where(targets >= 0, lengths[targets.clamp_min(0)], 0)  # (B, T) bytes of each target
        losses = gpt.losses(batch["idx"].to(device), targets)
        keep = counted > 0
        sums += torch.stack([(losses * keep).double().sum(), counted.sum().double(), keep.sum().double()])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(sums)
    nats, total_bytes, tokens = sums.tolist()
    if total_bytes == 0:
        raise ValueError(
            "no validation token has any bytes, so bits per byte is not defined; is the validation split empty?"
        )
    return {"bpb": nats / math.log(2) / total_bytes, "loss": nats / tokens, "tokens": tokens}
