"""Items of CORE decided together, compared with one at a time: decisions and time.

    OMP_NUM_THREADS=1 python experiments/core/speed.py bundle=DIR [items=24] [tasks=arc_easy,…]
        [rounds=2] [head=8192] [batch_tokens=2048]

One at a time is what the original does: all choices of an item are rows of one forward pass, padded
on the right, with the logits of every position. The network is a d4 with random weights, the
vocabulary of 8,192 is trained on the items; a head of more rows costs what a larger one would. Both
read the items in turn, `rounds` times; the CPU time of each is printed with the ratio.
"""

import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from nanochat.evals.core.bundle import Bundle
from nanochat.evals.core.judge import judge
from nanochat.evals.core.prompts import Asked, ask, examples_of, render
from nanochat.gpt import GPT, from_depth
from nanochat.inference.frozen_gpt import FrozenGPT
from nanochat.tokenizer import train_bpe


@torch.no_grad()
def one_at_a_time(gpt: GPT, asked: Asked) -> int | bool:
    """The choice with the lowest mean loss, or whether every token is the likeliest."""
    rows = [one.context + one.continuation for one in asked.continuations]
    longest = max(map(len, rows))
    idx = torch.tensor([row + [0] * (longest - len(row)) for row in rows])  # (B, T)
    logits = gpt(idx)  # (B, T, V)
    losses = F.cross_entropy(logits.flatten(0, 1), idx.roll(-1, 1).flatten(), reduction="none")
    losses = losses.view(idx.shape)
    spans = [
        slice(len(o.context) - 1, len(r) - 1)
        for o, r in zip(asked.continuations, rows, strict=True)
    ]
    if not asked.choices:
        [one], [span] = asked.continuations, spans
        return logits.argmax(-1)[0, span].tolist() == one.continuation
    means = [row[span].mean().item() for row, span in zip(losses, spans, strict=True)]
    return means.index(min(means))


def together(gpt: GPT, asked: Sequence[Asked], batch_tokens: int) -> list[int | bool]:
    # a head of more rows likes tokens that the tokenizer does not have
    silent: Any = SimpleNamespace(decode=lambda ids: "")
    items = judge(gpt, silent, "it", list(enumerate(asked)), batch_tokens=batch_tokens)
    return [item.answer if item.choices else bool(item.correct) for item in items]


def main(words: dict[str, str]) -> None:
    torch.set_num_threads(int(words.get("threads", "1")))
    bundle, count = Bundle(Path(words["bundle"])), int(words.get("items", "24"))
    names, rounds = words.get("tasks"), int(words.get("rounds", "2"))
    batch_tokens = int(words.get("batch_tokens", "2048"))
    tasks = [task for task in bundle.tasks if not names or task.label in names.split(",")]
    texts = [
        text
        for task in tasks
        for item in itertools.islice(task.items, 400)
        for text in render(task, item, [])[0]
    ]
    tokenizer = train_bpe(texts, 8192, max_chars=None, doc_cap=None)
    head = max(tokenizer.vocab_size, int(words.get("head", "8192")))
    config = from_depth(4, vocab_size=head, sequence_len=512)
    gpt = GPT.build(config)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in gpt.parameters():  # so that logits differ
            p.add_(torch.randn(p.shape, generator=drawn) * (0.05 if p.ndim > 1 else 0.1))
    frozen = FrozenGPT.of(gpt)
    print(f"d4, width {config.n_embd}, V={head}, fp32, {torch.get_num_threads()} threads")
    print(
        f"{'task':24} {'items':>5} {'tokens':>8} {'unequal':>7} "
        f"{'one by one, CPU s':>20} {'together':>14} ratio"
    )
    total = [0.0, 0.0]
    for task in tasks:
        order = task.order(1337)
        asked = [
            ask(task, task.items[order[i]], examples_of(task, order, i), tokenizer)
            for i in range(min(count, len(order)))
        ]
        seconds: list[list[float]] = [[], []]
        for _ in range(rounds):
            start = time.process_time()
            alone = [one_at_a_time(gpt, one) for one in asked]
            half = time.process_time()
            batched = together(frozen, asked, batch_tokens)
            seconds[0].append(half - start)
            seconds[1].append(time.process_time() - half)
        unequal = sum(a != b for a, b in zip(alone, batched, strict=True))
        tokens = sum(
            len(o.context) + len(o.continuation) for one in asked for o in one.continuations
        )
        shown = [" ".join(f"{s:.1f}" for s in own) for own in seconds]
        share = len(order) / len(asked) / rounds
        total = [t + sum(own) * share for t, own in zip(total, seconds, strict=True)]
        ratio = sum(seconds[0]) / sum(seconds[1])
        print(
            f"{task.label:24} {len(asked):5} {tokens:8,} {unequal:7} "
            f"{shown[0]:>20} {shown[1]:>14} {ratio:5.1f}",
            flush=True,
        )
    print(
        f"all items of these tasks, in proportion: {total[0] / 3600:.2f} and "
        f"{total[1] / 3600:.2f} CPU h, ratio {total[0] / total[1]:.2f}"
    )


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
