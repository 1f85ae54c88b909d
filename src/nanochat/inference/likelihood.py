"""Likelihoods of given continuations of given texts, which every evaluation with known answers
needs. Continuations of one text share it: the text is read once, and each continuation attends to
it and to itself, like samples of one prompt in the engine (Juravsky et al. 2024, "Hydragen",
arXiv:2402.05099). All tokens of a batch are one row of the forward pass without padding; texts are
padded for attention alone, and logits are computed only for judged tokens.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.gpt import GPT
from nanochat.gpt.attention import Attend, sdpa
from nanochat.gpt.loss import chunk_rows
from nanochat.inference.frozen_gpt import FrozenGPT

# measured: experiments/core/README.md; d4 on one core: 16,384 take 1.2 to 1.5 times as long, since
# what a layer makes of them does not stay in the cache
BATCH_TOKENS_CPU = 2048
BATCH_TOKENS = 16384  # guess


class Continuation(NamedTuple):
    """Token ids: `context` is what the model has read, `continuation` what is judged."""

    context: list[int]
    continuation: list[int]


class Likelihood(NamedTuple):
    nats: tuple[float, ...]  # negative log-likelihood of each token of the continuation
    greedy: bool  # every token is the likeliest one at its position
    likeliest: tuple[int, ...] = ()  # the likeliest token at each position


class Tree(NamedTuple):
    """A text and its continuations, as token ids."""

    trunk: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        """Tokens of the text and its longest continuation: the length to which the tree is
        padded."""
        return len(self.trunk) + sum(len(branch) - 1 for branch in self.branches)


# not inference_mode: the RoPE tables may grow here, and training then uses them
@torch.no_grad()
def likelihoods(
    gpt: GPT, asked: Sequence[Continuation], *, batch_tokens: int | None = None
) -> list[Likelihood]:
    """The likelihood of each of `asked`, in order; a forward pass reads at most about
    `batch_tokens` (None: as many as suit the device).

    Texts may be longer than `sequence_len`: nothing is cropped (facts sheet 6.2). A pair that is
    asked twice is computed once, so equal texts get equal numbers. ValueError for an empty
    context or continuation.
    """
    if any(not one.context or not one.continuation for one in asked):
        raise ValueError("a continuation and the text before it have at least one token each")
    frozen = FrozenGPT.of(gpt)
    keys = [(tuple(one.context), tuple(one.continuation)) for one in asked]
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], Likelihood] = {}
    most = batch_tokens or (BATCH_TOKENS_CPU if gpt.device.type == "cpu" else BATCH_TOKENS)
    for trees in batches_of(sorted(trees_of(keys), key=len), most):
        ways = [(tree.trunk, branch) for tree in trees for branch in tree.branches]
        found.update(zip(ways, _likelihoods(frozen, trees), strict=True))
    return [found[key] for key in keys]


def trees_of(keys: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[Tree]:
    """A tree for each context, with its distinct continuations."""
    branches: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
    for context, continuation in keys:
        branches.setdefault(context, {})[continuation] = None
    return [Tree(context, tuple(own)) for context, own in branches.items()]


def batches_of(trees: Sequence[Tree], batch_tokens: int) -> Iterator[list[Tree]]:
    """Batches of the trees, which are in order of length, of at most `batch_tokens` with each tree
    padded to the last one; at least one tree each."""
    batch: list[Tree] = []
    for tree in trees:
        if batch and (len(batch) + 1) * len(tree) > batch_tokens:
            yield batch
            batch = []
        batch.append(tree)
    if batch:
        yield batch


def _likelihoods(gpt: FrozenGPT, trees: Sequence[Tree]) -> list[Likelihood]:
    """The likelihood of every branch of every tree, in order, by one forward pass.

    Nothing is judged but after the last token of a trunk, the root of its branches, and after
    tokens of branches: hidden states are made of these alone, the inner tokens.
    """
    before: list[int] = []
    tokens: list[int] = []
    at: list[int] = []
    ends: list[int] = []  # places of the inner tokens
    judged_at: list[int] = []  # numbers of inner tokens
    targets: list[int] = []
    layout: list[tuple[int, list[int]]] = []  # of each tree: tokens before the root, of branches
    for trunk, branches in trees:
        tokens += trunk
        before += (0, *trunk[:-1])
        at += range(len(trunk))
        root = len(ends)
        ends.append(len(tokens) - 1)
        for branch in branches:
            # the last token of a branch is only judged, never read
            size = len(branch) - 1
            judged_at += [root, *range(len(ends), len(ends) + size)]
            ends += range(len(tokens), len(tokens) + size)
            targets += branch
            tokens += branch[:-1]
            before += (trunk[-1], *branch[:-1])[:size]
            at += range(len(trunk), len(trunk) + size)
        layout.append((len(trunk) - 1, [len(branch) - 1 for branch in branches]))
    device = gpt.device
    gpt.grow_rope(max(at) + 1)
    idx = torch.tensor([before, tokens], device=device).T  # (M, 2)
    positions = torch.tensor(at, device=device)[:, None]  # (M, 1)
    attends = attend_trees(layout, positions[:, 0], gpt.config.windows)
    first = (positions[:, 0] == 0).nonzero()[:, 0]
    wanted = torch.tensor(ends, device=device)  # (m,)
    hidden = gpt.hidden_cached(idx, positions, attends, 1, first, wanted)[:, 0]  # (m, C)
    nats, best = _judged(gpt, hidden, judged_at, targets)
    found, start = [], 0
    for tree in trees:
        for branch in tree.branches:
            part = slice(start, start := start + len(branch))
            likeliest = tuple(best[part])
            found.append(Likelihood(tuple(nats[part]), likeliest == branch, likeliest))
    return found


def _judged(
    gpt: GPT, hidden: Tensor, places: list[int], targets: list[int]
) -> tuple[list[float], list[int]]:
    """Nats of each target and the likeliest token instead, after hidden[place]; hidden (m, C)."""
    device, size = hidden.device, chunk_rows(gpt.config.vocab_size, hidden.device)
    where, wanted = (torch.tensor(x, device=device) for x in (places, targets))  # (n,)
    nats, best = [], []
    for part, target in zip(where.split(size), wanted.split(size), strict=True):
        logits = gpt.logits(hidden[part])  # (rows, V)
        nats.append(F.cross_entropy(logits, target, reduction="none"))
        best.append(logits.argmax(-1))
    return torch.cat(nats).tolist(), torch.cat(best).tolist()


def attend_trees(
    layout: Sequence[tuple[int, Sequence[int]]], at: Tensor, windows: Sequence[int | None]
) -> list[Attend]:
    """For the tokens of trees, one after the other, as a batch of single tokens: q (M, 1, H, D) ->
    the same; or q of the inner tokens alone, (m, 1, H, D).

    `layout` has the tokens of each tree before its root and of its branches, at (M) are their
    positions. Tokens before roots are padded to (N, P), the inner ones of a tree to (N, S): its
    root, then those of its branches.
    """
    device, N = at.device, len(layout)
    P, S = max(1, *(n for n, _ in layout)), 1 + max(sum(own) for _, own in layout)
    shortest = min((w for w in windows if w), default=P)
    if (
        2 * shortest < P
    ):  # a multiple of the window, which `sdpa` then computes in blocks: less work
        P = -(-P // shortest) * shortest
    # places of the tokens before roots in the batch and in (N, P), of the others and in (N, S)
    places: tuple[list[int], ...] = ([], [], [], [])
    from_trunk, trunk, from_inner, inner = places
    branch_of = torch.full((N, S), -1)
    start = 0
    for row, (n, own) in enumerate(layout):
        size = 1 + sum(own)
        from_trunk += range(start, start + n)
        trunk += range(row * P, row * P + n)
        from_inner += range(start + n, start + n + size)
        inner += range(row * S, row * S + size)
        of = torch.arange(len(own) + 1)
        branch_of[row, :size] = of.repeat_interleave(torch.tensor([1, *own]))
        start += n + size
    at_trunk, to_trunk, at_inner, to_inner = (
        torch.tensor(x, device=device, dtype=torch.long) for x in places
    )
    lengths, branch_of = torch.tensor([n for n, _ in layout], device=device), branch_of.to(device)
    masks = {
        window: _branch_mask(lengths, branch_of, at[at_inner], to_inner, P, window)
        for window in set(windows)
    }

    # (m, heads, D) -> (N, width, heads, D)
    def padded(x: Tensor, to: Tensor, width: int) -> Tensor:
        room = x.new_zeros(N * width, *x.shape[1:])
        room[to] = x
        return room.view(N, width, *x.shape[1:])

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        q, k, v = q[:, 0], k[:, 0], v[:, 0]
        whole = len(q) == len(k)
        kt, vt = (padded(x[at_trunk], to_trunk, P) for x in (k, v))
        ks, vs = (padded(x[at_inner], to_inner, S) for x in (k, v))
        qs = padded(q[at_inner] if whole else q, to_inner, S)
        own = F.scaled_dot_product_attention(
            qs.transpose(1, 2),
            torch.cat((kt, ks), 1).transpose(1, 2),  # (N, G, P + S, D)
            torch.cat((vt, vs), 1).transpose(1, 2),
            attn_mask=masks[window].to(q.dtype),
            enable_gqa=q.size(1) != k.size(1),
        )  # (N, H, S, D)
        judged = own.transpose(1, 2).flatten(0, 1)[to_inner]  # (m, H, D)
        if not whole:
            return judged[:, None]
        y = torch.empty_like(q)  # (M, H, D)
        qt = padded(q[at_trunk], to_trunk, P)
        y[at_trunk] = sdpa(qt, kt, vt, window).flatten(0, 1)[to_trunk]
        y[at_inner] = judged
        return y[:, None]

    return [attend] * len(windows)


def _branch_mask(
    lengths: Tensor, branch_of: Tensor, at: Tensor, places: Tensor, P: int, window: int | None
) -> Tensor:
    """What to add to the scores of inner tokens, (N, 1, S, P + S): each sees what is before the
    root of its tree, the root, and of its own branch what is not after it, as far as its window
    reaches.

    lengths (N) of the texts before roots; branch_of (N, S) is 0 for the root, the branch of the
    others, -1 for padding; at are the positions of the tokens at `places` of (N * S).
    """
    N, S = branch_of.shape
    own = torch.zeros(N * S, dtype=torch.long, device=at.device)
    own[places] = at
    own = own.view(N, S)  # positions of the queries
    trunk = torch.arange(P, device=at.device).expand(N, P)
    seen = torch.cat(
        (
            (trunk < lengths[:, None])[:, None].expand(N, S, P),
            (branch_of[:, None] == 0) | (branch_of[:, :, None] == branch_of[:, None]),
        ),
        2,
    )
    distance = own[:, :, None] - torch.cat((trunk, own), 1)[:, None]  # (N, S, P + S)
    seen = seen & (distance >= 0)
    if window is not None:
        seen &= distance <= window
    mask = torch.zeros(seen.shape, device=at.device)
    return mask.masked_fill_(~seen, -math.inf)[:, None]
