"""Bits per byte: loss in bits over the bytes of the text, comparable across vocabularies (facts
sheet 6.1)."""

import math
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from nanochat.distributed import agreed
from nanochat.evals.evaluation import Context, Evaluation, Result
from nanochat.gpt import GPT
from nanochat.runtime.settings import Count
from nanochat.tokenizer.tokenizer import Tokenizer

UNIT = 2**30  # parts of a nat that are counted: 8e9 nats fit an int64
ROW_STEP = 64  # guess: rows are cut to multiples of so many tokens, so that few shapes occur


class BitsPerByte(Evaluation):
    """Bits per byte of the first `tokens` of a split of the run's text; None: of all of it, and
    for `train` of one epoch.

    `token_bytes`: `raw` counts the bytes of a token, `decoded` those of its text, as nanochat
    did until 2026-07-03 (facts sheet 3.3): the result is then `bpb_decoded`. Results on `train`
    have the prefix `train_`.
    """

    version = 2
    reads_text = True

    def __init__(
        self,
        tokens: Count | None = None,
        split: Literal["val", "train"] = "val",
        token_bytes: Literal["raw", "decoded"] = "raw",
    ) -> None:
        self.tokens, self.split, self.decoded = tokens, split, token_bytes == "decoded"
        self.lower_is_better = tuple(map(self._name, ("bpb", "loss")))

    def _name(self, number: str) -> str:
        ending = "_decoded" if self.decoded and number == "bpb" else ""
        return f"{'train_' if self.split == 'train' else ''}{number}{ending}"

    def __call__(self, context: Context) -> Result:
        tokenizer = context.tokenizer
        lengths = decoded_bytes(tokenizer) if self.decoded else tokenizer.token_bytes
        batches = context.data.split_batches(self.split, self.tokens)
        found = bits_per_byte(context.gpt, batches, lengths)
        return {self._name(number): value for number, value in found.items()}


class BitsPerByteMetric(Metric):
    """`bpb`, mean `loss` in nats and `tokens` of given losses, by exact sums.

    A loss is counted in units of 2**-30 nats. Every fp32 loss of at least 2**-7 nats is a multiple
    of the unit; smaller ones are rounded to it. The sums are therefore exact, independent of order,
    batches and processes. A target counts if it is not -1 and its token has bytes, `token_bytes`
    (V,): special tokens have none.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    nats: Tensor  # in units
    bytes: Tensor
    tokens: Tensor
    undefined: Tensor  # losses that are not finite

    def __init__(self, token_bytes: np.ndarray) -> None:
        super().__init__()
        self.lengths = torch.as_tensor(token_bytes).long()
        for name in ("nats", "bytes", "tokens", "undefined"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, losses: Tensor, targets: Tensor) -> None:
        """losses (B, T) in nats, fp32, of targets (B, T)."""
        self.lengths = self.lengths.to(targets.device)
        size = torch.where(targets >= 0, self.lengths[targets.clamp_min(0)], 0)  # (B, T)
        finite = losses.isfinite()
        counted = size > 0
        units = torch.where(counted & finite, (losses.float() * UNIT).round(), 0).long()
        self.nats += units.sum()
        self.bytes += size.sum()
        self.tokens += counted.sum()
        self.undefined += counted.sum() - (counted & finite).sum()

    def compute(self) -> dict[str, float]:
        """Of the losses of all processes. ValueError if no target counts."""
        units, size, tokens, undefined = (
            int(x) for x in (self.nats, self.bytes, self.tokens, self.undefined)
        )
        if size == 0:
            raise ValueError(
                "no token has any bytes, so bits per byte is not defined; is the split empty?"
            )
        nats = math.nan if undefined else units / UNIT
        return {"bpb": nats / math.log(2) / size, "loss": nats / tokens, "tokens": float(tokens)}


def decoded_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """(V,) bytes of each token's text, as nanochat counted them until 2026-07-03 (facts sheet 3.3):
    a token that is not valid UTF-8 by itself has three for each replacement character."""
    pieces = (tokenizer.piece(token) for token in range(tokenizer.vocab_size))
    sizes = [len(piece.decode("utf-8", errors="replace").encode()) for piece in pieces]
    return np.where(tokenizer.token_bytes > 0, sizes, 0).astype(np.int32)


@torch.no_grad()
def count(metric: BitsPerByteMetric, gpt: GPT, batch: dict[str, Any]) -> None:
    """Add a batch of this process, idx and targets (B, T); no other process is involved.

    The last bits of a loss depend on the shape of the forward pass. On a CPU rows are therefore
    read one by one, without trailing padding, so that the metric does not depend on how rows are
    batched and distributed.
    """
    idx, targets = (batch[name].to(gpt.device) for name in ("idx", "targets"))
    if gpt.device.type != "cpu":
        metric.update(_losses(gpt, idx, targets), targets)
        return
    for row, wanted in zip(idx, targets, strict=True):  # (T,)
        counts = (wanted >= 0).nonzero()  # an empty row is read too: ranks stay in step
        n = int(counts[-1]) + 1 if len(counts) else 1
        room = max(n, min(-(-n // ROW_STEP) * ROW_STEP, gpt.config.sequence_len))
        row = F.pad(row[:n], (0, room - n))[None]  # (1, room)
        wanted = F.pad(wanted[:n], (0, room - n), value=-1)[None]
        metric.update(gpt.losses(row, wanted), wanted)


def _losses(gpt: GPT, idx: Tensor, targets: Tensor) -> Tensor:
    """`gpt.losses`, (B, T) each; of half of the rows at a time where memory runs out."""
    try:
        return gpt.losses(idx, targets)
    except torch.OutOfMemoryError:
        if len(idx) == 1:
            raise
    halves = zip(idx.tensor_split(2), targets.tensor_split(2), strict=True)
    return torch.cat([_losses(gpt, *half) for half in halves])


def bits_per_byte(
    gpt: GPT, batches: Iterable[dict[str, Any]], token_bytes: np.ndarray
) -> dict[str, float]:
    """`bpb`, mean `loss` in nats and `tokens` of the batches, idx and targets (B, T), of all
    processes.

    ValueError if nothing counts. What raises on one process, the batches included, raises on all.
    """

    def mine() -> BitsPerByteMetric:
        metric = BitsPerByteMetric(token_bytes).to(gpt.device)
        for batch in batches:
            count(metric, gpt, batch)
        return metric

    return agreed(mine, gpt.device).compute()
