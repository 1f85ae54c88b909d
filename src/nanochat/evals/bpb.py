"""Bits per byte: loss in bits over the bytes of the text, comparable across vocabularies (facts
sheet 6.1)."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanochat.distributed import agreed, summed
from nanochat.evals.evaluation import Context, Evaluation, Result
from nanochat.gpt import GPT
from nanochat.runtime.settings import Count


class BitsPerByte(Evaluation):
    """Of the first `tokens` of the run's validation text; None: all of it."""

    lower_is_better = ("bpb", "loss")
    reads_text = True

    def __init__(self, tokens: Count | None = None) -> None:
        self.tokens = tokens

    def __call__(self, context: Context) -> Result:
        return {
            **bits_per_byte(
                context.gpt, context.data.val_batches(self.tokens), context.tokenizer.token_bytes
            )
        }


@torch.no_grad()
def local_sums(gpt: GPT, batches: Iterable[dict[str, Any]], token_bytes: np.ndarray) -> Tensor:
    """Nats, bytes and tokens that count in this process's batches, (3,) float64; no other process
    is involved.

    Sums stay on the device, so that no batch waits for the one before. Metal has no float64: there
    a batch is summed in fp32.
    """
    device = gpt.device
    home, wide = (
        (torch.device("cpu"), torch.float32) if device.type == "mps" else (device, torch.float64)
    )
    lengths = torch.as_tensor(token_bytes, device=device).long()
    sums = torch.zeros(3, dtype=torch.float64, device=home)
    for batch in batches:
        targets = batch["targets"].to(device)
        # (B, T) bytes of each target
        counted = torch.where(targets >= 0, lengths[targets.clamp_min(0)], 0)
        losses = gpt.losses(batch["idx"].to(device), targets)
        keep = counted > 0
        part = torch.stack(
            [(losses * keep).to(wide).sum(), counted.sum().to(wide), keep.sum().to(wide)]
        )
        sums += part.to(home).double()
    return sums


def bits_per_byte(
    gpt: GPT, batches: Iterable[dict[str, Any]], token_bytes: np.ndarray
) -> dict[str, float]:
    """`bpb` and mean `loss` in nats over batches of idx and targets (B, T), summed over processes
    before dividing.

    A target counts if it is not -1 and its token has bytes (special tokens have none). Raises
    ValueError if none counts. What raises on one process, the batches included, raises on all.
    """
    return numbers_of(agreed(lambda: local_sums(gpt, batches, token_bytes), gpt.device))


def numbers_of(sums: Tensor) -> dict[str, float]:
    """`bpb`, mean `loss` and `tokens` from the `local_sums` of this rank, summed over the ranks."""
    sums = summed(sums)
    nats, total_bytes, tokens = sums.tolist()
    if total_bytes == 0:
        raise ValueError(
            "no validation token has any bytes, so bits per byte is not defined; is the validation "
            "split empty?"
        )
    return {"bpb": nats / math.log(2) / total_bytes, "loss": nats / tokens, "tokens": tokens}
