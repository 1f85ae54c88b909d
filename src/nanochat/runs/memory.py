"""How much memory a run will take, before anything of it is allocated.

A step is traced: the network's own code runs on the meta device, on shapes without numbers, and
every storage is counted while it lives (`runtime/alive.py`). So the prediction knows the network,
the optimizer and what is recomputed without a formula for any of them. What torch.compile keeps is
not seen by this; there bytes per token, layer and width are known instead (`COMPILED`).
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from nanochat.distributed.sharing import Replicated, Unshared
from nanochat.gpt import GPT, GPTConfig
from nanochat.gpt.attention import sdpa
from nanochat.gpt.loss import chunk_rows
from nanochat.gpt.model import Linear
from nanochat.gpt.recompute import recomputed
from nanochat.inference.cache import FIRST_CAPACITY
from nanochat.optim import GroupedOptimizer
from nanochat.runtime.alive import Alive

# from: traces of the compiled trunk (experiments/gpu/README.md): bytes per token, layer and width
# in bf16. guess for `block`: its input, and the value embedding of every other layer
COMPILED = {"none": 39.5, "attention": 24.0, "block": 4.0}
SPARE = 0.06  # guess: share of a card that allocator and libraries take


@dataclass(frozen=True)
class Memory:
    """Bytes of one process, by part, with micro-batches of `rows` rows. The first three are there
    all the time, of the others those of one kind of work."""

    weights: int
    gradients: int
    optimizer: int
    beside_buckets: int  # gradients in the first step, which DDP moves into its buckets at its end
    rows: int
    activations: int  # kept for the backward pass
    around: int  # what else a pass has at its peak: casts, a chunk of logits, gradients under way
    step: int  # while the optimizer steps
    evaluation: int  # of as many rows on a card, of one on a CPU
    whole: int  # a copy of all weights for evaluating and sampling, where a rank holds a part
    frozen: int  # of weights cast and packed for decoding
    cache: int  # keys and values of the texts that an evaluation or a sample writes
    saving: int

    @property
    def peak(self) -> int:
        writing = self.whole + self.frozen + self.cache if self.cache else 0
        a_pass = self.activations + self.around
        in_turn = a_pass, self.step, self.whole + self.evaluation, writing, self.saving
        first = self.beside_buckets + a_pass
        return self.weights + self.gradients + max(first, self.optimizer + max(in_turn))

    def always(self) -> dict[str, int]:
        """Parts that are there all the time, for printing."""
        return {"weights": self.weights, "gradients": self.gradients, "optimizer": self.optimizer}

    def in_turn(self) -> dict[str, int]:
        """Parts of which only those of one kind of work are there besides, for printing."""
        return {
            "activations": self.activations,
            "head chunk and casts": self.around,
            "gradients beside buckets": self.beside_buckets,
            "optimizer step": self.step,
            "evaluation": self.whole + self.evaluation,
            "KV cache": self.cache,
            "weights for decoding": self.frozen if self.cache else 0,
            "saving": self.saving,
        }

    def parts(self) -> dict[str, int]:
        return {**self.always(), **self.in_turn()}


class Prediction:
    """The memory of a process that trains, from shapes alone.

    `sharded`: `no`; `optimizer`: its state is spread over the ranks; `all`: weights and gradients
    too. `written`: (texts at once, tokens) of what evaluations and samples write.
    """

    def __init__(
        self,
        config: GPTConfig,
        build_optimizer: Callable[[GPT], GroupedOptimizer],
        *,
        dtype: torch.dtype,
        checkpointing: str = "none",
        compiled: bool = False,
        on_card: bool = False,
        world_size: int = 1,
        sharded: str = "no",
        written: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.config, self.dtype, self.checkpointing = config, dtype, checkpointing
        self.compiled, self.on_card, self.sharded = compiled, on_card, sharded
        self.world_size, self.written, self.alive = world_size, written, Alive()
        with self.alive, torch.device("meta"):
            self.gpt = gpt = GPT(config)
            self.weights = self.alive.now
            gpt.compute_dtype = dtype
            gpt.grow_rope(config.sequence_len)
            gpt.attend = partial(sdpa, kernel=_flash)
            gpt._run_block = recomputed(checkpointing)
            optimizer = build_optimizer(gpt)
            if sharded != "no":
                as_on_first_rank(optimizer, world_size)
            self.state, self.step = self.of_optimizer(optimizer)

    def of(self, rows: int, accumulated: int = 1) -> Memory:
        """With `accumulated` micro-batches of `rows` rows a step."""
        by_rows, config = self.sharded == "all", self.config
        activations, around = self.a_pass(rows, accumulated)
        across = self.world_size if by_rows else 1
        largest = max(p.nbytes for p in self.gpt.parameters())
        products = sum(m.weight.numel() for m in self.gpt.modules() if isinstance(m, Linear))
        kept = self.dtype if self.on_card else torch.float32
        return Memory(
            weights=self.weights // across,
            gradients=self.weights // across,  # views of DDP's buckets (distributed/strategies.py)
            optimizer=self.state,
            beside_buckets=self.weights if self.sharded == "optimizer" and accumulated > 1 else 0,
            rows=rows,
            activations=activations,
            around=around,
            step=self.step,
            # on a CPU row by row (evals/bpb.py)
            evaluation=self.evaluation(1) * (rows if self.on_card else 1),
            whole=self.weights if by_rows else 0,
            frozen=products * self.dtype.itemsize,
            cache=max((cache_bytes(config, *one, kept) for one in self.written), default=0),
            # gathered one at a time (checkpoint/streamed.py)
            saving=2 * largest if by_rows else 0,
        )

    def a_pass(self, rows: int, accumulated: int) -> tuple[int, int]:
        """Activations of a forward and backward pass, and what else is there at its peak."""
        if not self.compiled:
            kept, peak = self.traced(rows, accumulated)
        else:  # linear in rows, as a chunk of logits is less than a row
            one, two = (self.traced(n, accumulated)[1] for n in (1, 2))
            kept = int(COMPILED[self.checkpointing] * self.dtype.itemsize / 2 * self.tokens(rows))
            peak = kept + max(2 * one - two, 0)
        if self.on_card:  # a chunk of logits, their gradients, and one fp32 tensor between them
            chunk = chunk_rows(self.config.vocab_size, torch.device("cuda"))
            peak += chunk * self.config.padded_vocab_size * (2 * self.dtype.itemsize + 4)
        return min(kept, peak), peak - min(kept, peak)

    def tokens(self, rows: int) -> int:
        """Values of all layers' streams."""
        return rows * self.config.sequence_len * self.config.n_layer * self.config.n_embd

    @cache  # noqa: B019
    def traced(self, rows: int, accumulated: int) -> tuple[int, int]:
        """Bytes that the trunk keeps, and of the whole pass at its peak."""
        by_rows, alive = self.sharded == "all", self.alive
        keep = accumulated > 1 or self.sharded == "optimizer"  # in DDP's buckets
        held = GatheredWeights(self.gpt) if by_rows else AllWeights(self.gpt, keep=keep)
        with alive, torch.device("meta"):
            idx = torch.zeros(rows, self.config.sequence_len, dtype=torch.long)
            held.before()
            with alive.span() as above:
                held.begin()
                start = alive.now
                hidden = self.gpt.hidden(idx)
                kept = alive.now - start
                loss = self.gpt.loss_of(hidden, idx)
                del hidden
                held.forward_done()
                loss.backward()
                held.end()
            held.after()
        return kept, above()

    @cache  # noqa: B019
    def evaluation(self, rows: int) -> int:
        with self.alive, torch.device("meta"), torch.no_grad():
            idx = torch.zeros(rows, self.config.sequence_len, dtype=torch.long)
            with self.alive.span() as above:
                self.gpt.losses(idx, idx)
        return above()

    def of_optimizer(self, optimizer: GroupedOptimizer) -> tuple[int, int]:
        """Bytes of its state, and of what is there besides while it steps."""
        held = AllWeights(self.gpt, keep=True)
        held.before()
        before = self.alive.now
        optimizer.step()  # makes its state
        state = self.alive.now - before
        with self.alive.span() as above:
            optimizer.step()
        held.after()
        shapes: dict[torch.Size, int] = {}
        for _, p, rule, _ in optimizer.named():
            if not rule.BY_ROWS:
                shapes[p.shape] = shapes.get(p.shape, 0) + p.nbytes
        # weights and gradients of two shapes at a time, as they are, joined, under way and arrived
        # (distributed/fsdp.py)
        largest = max(shapes.values(), default=0) if self.sharded == "all" else 0
        return state, above() + 12 * largest // self.world_size


class OneOfRanks(Replicated):
    """What the first of several ranks updates. Nothing is sent."""

    def __init__(self, world_size: int) -> None:
        Unshared.__init__(self)
        self.rank, self.world_size, self.parts = 0, world_size, {}

    def updates(self, batches: Sequence[tuple[Any, list[Tensor]]]) -> Iterator[Any]:
        yield from ((key, self.mine(params)) for key, params in batches)


def as_on_first_rank(optimizer: GroupedOptimizer, world_size: int) -> None:
    """Make it the optimizer of one of several ranks."""
    optimizer.sharing = OneOfRanks(world_size)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.sharing.begin(params, [rule.BY_ROWS for _, _, rule, _ in optimizer.named()])


def state_bytes(optimizer: GroupedOptimizer, world_size: int) -> int:
    """What its state will take, on one of so many ranks. It is on the meta device."""
    if world_size > 1:
        as_on_first_rank(optimizer, world_size)
    found = 0
    for _, p, rule, group in optimizer.named():
        if (rows := optimizer.sharing.local(p)) is not None:
            state = rule.new_state(rows, {**group, "compute_dtype": torch.float32})
            found += sum(v.nbytes for v in state.values() if torch.is_tensor(v))
    return found


class AllWeights:
    """A process that has all weights, and gradients of the step before. `keep`: those of a pass are
    added to them; else, as Lightning does it, they are dropped between forward and backward
    pass."""

    def __init__(self, gpt: GPT, *, keep: bool) -> None:
        self.params, self.keep = list(gpt.parameters()), keep

    def before(self) -> None:
        for p in self.params:
            p.grad = torch.empty_like(p)

    def begin(self) -> None:
        pass

    def forward_done(self) -> None:
        for p in () if self.keep else self.params:
            p.grad = None

    def end(self) -> None:
        pass

    def after(self) -> None:
        for p in self.params:
            p.grad = None


class GatheredWeights(AllWeights):
    """What FSDP2 has whole in a pass (distributed/fsdp.py): of two blocks the weights, the one that
    is computed and the next, and of one the gradients. A table, whose ids have no gradient, is
    gathered for the backward pass and stays until its end with its gradient; so does what is in no
    other unit, from the beginning."""

    def __init__(self, gpt: GPT) -> None:
        super().__init__(gpt, keep=True)
        self.blocks = [list(block.parameters()) for block in gpt.transformer.h]
        self.tables = [m.weight for m in gpt.modules() if isinstance(m, nn.Embedding)]
        of_units = {*self.tables, *(p for block in self.blocks for p in block)}
        self.others = [p for p in self.params if p not in of_units]
        self.whole: list[Tensor] = []

    def before(self) -> None:
        pass

    def begin(self) -> None:
        for params in (self.others, *self.blocks[:2]):
            self.whole += [torch.empty_like(p) for p in params]
        in_blocks = [p for block in self.blocks for p in block]
        self.hooks = [p.register_post_accumulate_grad_hook(self.reduced) for p in in_blocks]
        self.hooks += [p.register_post_accumulate_grad_hook(self.gathered) for p in self.tables]

    def reduced(self, p: Tensor) -> None:
        p.grad = None

    def gathered(self, p: Tensor) -> None:
        self.whole.append(torch.empty_like(p))

    def end(self) -> None:
        """The largest gradient is sent from a buffer."""
        self.gathered(max((*self.tables, *self.others), key=torch.numel))

    def after(self) -> None:
        super().after()
        self.whole.clear()
        for hook in self.hooks:
            hook.remove()


def cache_bytes(config: GPTConfig, texts: int, tokens: int, dtype: torch.dtype) -> int:
    """Keys and values of so many texts (inference/cache.py)."""
    room = FIRST_CAPACITY
    while room < tokens:
        room *= 2
    slots = (config.sequence_len if w is None else w + 1 for w in config.windows)
    width = config.n_kv_head * config.head_dim * dtype.itemsize
    return 2 * texts * width * sum(min(room, config.sequence_len, n) for n in slots)


def _flash(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **how: bool) -> Tensor:
    """What `F.scaled_dot_product_attention` calls on a CPU; on the meta device it would write out
    every score."""
    if how.pop("enable_gqa", False):
        k, v = (x.repeat_interleave(q.size(1) // x.size(1), 1) for x in (k, v))
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return attend(q, k, v, attn_mask=attn_mask, **how)[0]


def largest_rows(memory_of: Callable[[int], Memory], limit: int, rank_rows: int, most: int) -> int:
    """The most rows of a micro-batch that divide a rank's and fit into `limit` bytes; 0: none
    does."""
    choices = [rows for rows in range(1, min(rank_rows, most) + 1) if rank_rows % rows == 0]
    return max((0, *choices[: bisect_right(choices, limit, key=lambda n: memory_of(n).peak)]))
