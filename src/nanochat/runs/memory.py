"""How much memory a run will need, before anything is allocated. A step is traced: the real code
runs on the meta device, on shapes without values, and every storage is counted while it is alive.
The prediction therefore covers network, optimizer and recomputation without a formula for any of
them. A pass is linear in its rows, so two traces give all others. What torch.compile keeps is not
visible to the trace; there the bytes per token, layer and width are measured (`COMPILED`).
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nanochat.gpt import GPT, GPTConfig
from nanochat.gpt.attention import sdpa
from nanochat.gpt.loss import chunk_rows
from nanochat.gpt.recompute import recomputed
from nanochat.optim import GroupedOptimizer

# from: traces of the compiled trunk (experiments/gpu/README.md): bytes per token, layer and width
# in bf16. guess for `block`: its input, and the value embedding of every other layer
COMPILED = {"none": 39.5, "attention": 24.0, "block": 4.0}
SPARE = 0.06  # guess: fraction of a GPU's memory for allocator and libraries


@dataclass(frozen=True)
class Memory:
    """Bytes of one process, by part. The last three are temporary."""

    weights: int
    gradients: int
    optimizer: int
    fixed: int  # of a pass, independent of its rows: casts of weights, a chunk of logits
    per_row: int  # of a pass, per row: activations
    rows: int
    step: int  # above all gradients, during the optimizer's step
    evaluation: int

    @property
    def activations(self) -> int:
        return self.fixed + self.rows * self.per_row

    @property
    def peak(self) -> int:
        kept = self.weights + self.optimizer
        training = self.gradients + max(self.activations, self.step)
        return kept + max(training, self.evaluation)

    def of_rows(self, rows: int) -> "Memory":
        return replace(self, rows=rows)

    def parts(self) -> dict[str, int]:
        """The parts present at the peak, for printing."""
        return {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "activations": self.rows * self.per_row,
            "casts and head chunk": self.fixed,
            "optimizer step": self.step,
            "evaluation": self.evaluation,
        }


class Alive(TorchDispatchMode):
    """Bytes of the storages that are alive, `now` and at the `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor):
                self.add(value)
        return out

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()

        def gone(_: weakref.ref) -> None:
            self._known.pop(key, None)
            self.now -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)

    @contextmanager
    def span(self) -> Iterator[Callable[[], int]]:
        """Within it, `peak` is counted from what was alive at the beginning."""
        start = self.peak = self.now
        yield lambda: self.peak - start


def predict(
    config: GPTConfig,
    build_optimizer: Callable[[GPT], GroupedOptimizer],
    *,
    rows: int,
    dtype: torch.dtype,
    checkpointing: str = "none",
    compiled: bool = False,
    world_size: int = 1,
    sharded: str = "no",
    head_on_card: bool = False,
    evaluation_rows: int | None = None,
) -> Memory:
    """The memory of a process that trains micro-batches of `rows` rows.

    `sharded`: `no`; `optimizer`: the optimizer's state is sharded over the ranks; `all`: weights
    and gradients too. `evaluation_rows`: rows of an evaluation's batch, by default `rows`.
    """
    T, alive = config.sequence_len, Alive()
    with alive, torch.device("meta"):
        gpt = GPT(config)
        weights = alive.now
        gpt.compute_dtype = dtype
        gpt.grow_rope(T)
        gpt.attend = partial(sdpa, kernel=_flash)
        gpt._run_block = recomputed(checkpointing)
        for p in gpt.parameters():
            p.grad = torch.empty_like(p)
        gradients = alive.now - weights
        one, two = (_pass(gpt, n, alive) for n in (1, 2))
        optimizer = build_optimizer(gpt)
        optimizer.step()  # creates its state
        state = alive.now - weights - gradients
        with alive.span() as above:
            optimizer.step()
        step = above()
    fixed, per_row = 2 * one - two, two - one
    if compiled:
        width = COMPILED[checkpointing] * dtype.itemsize / 2
        per_row = int(width * T * config.n_layer * config.n_embd)
    C, V = config.n_embd, config.padded_vocab_size
    if head_on_card:  # a chunk of logits, their gradients, and one fp32 tensor between them
        fixed += chunk_rows(config.vocab_size, torch.device("cuda")) * V * (2 * dtype.itemsize + 4)
    # hidden states, MLP and one chunk of logits; nothing is saved for a backward pass
    evaluated = (evaluation_rows or rows) * T * C * dtype.itemsize * 12 + 2 * V * C
    across = {"no": 1, "optimizer": 1, "all": world_size}[sharded]
    of_state = 1 if sharded == "no" else world_size
    return Memory(
        weights=weights // across,
        gradients=gradients // across,  # views of DDP's buckets (distributed/strategies.py)
        optimizer=state // of_state,
        fixed=max(fixed, 0),
        per_row=per_row,
        rows=rows,
        step=step // of_state,
        evaluation=evaluated,
    )


def _flash(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **how: bool) -> Tensor:
    """The kernel of `F.scaled_dot_product_attention` on a CPU; on the meta device it would
    materialise every score."""
    if how.pop("enable_gqa", False):
        k, v = (x.repeat_interleave(q.size(1) // x.size(1), 1) for x in (k, v))
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return attend(q, k, v, attn_mask=attn_mask, **how)[0]


def _pass(gpt: GPT, rows: int, alive: Alive) -> int:
    """Peak bytes of a forward and backward pass above weights and gradients."""
    idx = torch.zeros(rows, gpt.config.sequence_len, dtype=torch.long)
    with alive.span() as above:
        gpt.loss_sum(idx, idx).backward()
    return above()


def largest_rows(memory: Memory, limit: int, rank_rows: int, most: int) -> int:
    """The largest micro-batch, in rows, that divides a rank's rows and fits into `limit`
    bytes; 0 if none fits."""
    fitting = (
        rows
        for rows in range(min(rank_rows, most), 0, -1)
        if rank_rows % rows == 0 and memory.of_rows(rows).peak <= limit
    )
    return next(fitting, 0)
