"""What does the Trainer cost? The same steps through a bare loop and through lightning.Trainer, in
turn.

    python experiments/cpu_speed/bench.py [ROUNDS] [DEPTH] [ROWS] [STEPS]

CPU time of a step of ROWS x 256 tokens, blocks of STEPS in turn in one process. The cost does not
depend on the model, so it shows best where a step takes a few milliseconds: 20 rounds of depth 1,
one row, 200 steps, the default.
"""

import itertools
import statistics
import sys
import time
from functools import partial

import lightning as L
import torch
from torch.utils.data import DataLoader, IterableDataset

from nanochat import optim
from nanochat.commands.configs import compose_choice
from nanochat.gpt import GPT, from_depth
from nanochat.modules.next_token import NextTokenModule
from nanochat.runs.fit import quiet_lightning

T, VOCAB = 256, 8192


class Random(IterableDataset):
    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        while True:
            tokens = torch.randint(0, VOCAB, (self.rows, T + 1), generator=generator)
            yield {
                "idx": tokens[:, :-1],
                "targets": tokens[:, 1:],
                "num_targets": torch.tensor(self.rows * T),
            }


class Times(L.Callback):
    def __init__(self) -> None:
        self.at: list[float] = []

    def on_train_batch_end(self, *_) -> None:
        self.at.append(time.process_time())


def build(depth: int, steps: int) -> NextTokenModule:
    config = compose_choice("optim", "muon")
    sizes = {"aspect_ratio": 32, "head_dim": 32} if depth == 1 else {}
    gpt = GPT.build(
        from_depth(depth, vocab_size=512 if depth == 1 else VOCAB, sequence_len=T, **sizes)
    )
    gpt.prepare(compute_dtype=torch.float32)
    return NextTokenModule(
        gpt,
        partial(optim.build, groups=config["groups"], weight_decay=0.1),
        optim.Schedule(**config["schedule"]),
        steps,
    )


def bare(depth: int, rows: int, steps: int) -> list[float]:
    module = build(depth, steps)
    optimizer, at = module.optim(module.gpt), []
    for step, batch in zip(range(steps), DataLoader(Random(rows), batch_size=None), strict=False):
        optimizer.schedule_step(module.schedule, step, steps)
        idx = batch["idx"] % module.gpt.config.vocab_size
        targets = batch["targets"] % module.gpt.config.vocab_size
        (module.gpt.loss_sum(idx, targets) / batch["num_targets"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        at.append(time.process_time())
    return at


class Folded(NextTokenModule):
    def micro_loss(self, batch):
        vocab = self.gpt.config.vocab_size
        return self.gpt.loss_sum(batch["idx"] % vocab, batch["targets"] % vocab)


def with_trainer(depth: int, rows: int, steps: int) -> list[float]:
    times, module = Times(), build(depth, steps)
    module.__class__ = Folded
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[times],
    )
    trainer.fit(module, DataLoader(Random(rows), batch_size=None))
    return times.at


def milliseconds(at: list[float]) -> float:
    return 1000 * statistics.median(b - a for a, b in itertools.pairwise(at))


def main() -> None:
    given = [int(word) for word in sys.argv[1:]]
    rounds, depth, rows, steps = [*given, *(6, 1, 1, 200)[len(given) :]]
    quiet_lightning()
    found: dict[str, list[float]] = {"bare loop": [], "Trainer": []}
    order = [("bare loop", bare), ("Trainer", with_trainer)]
    bare(depth, rows, 3)  # warm
    for number in range(rounds):
        for name, run in order if number % 2 else reversed(order):
            found[name].append(milliseconds(run(depth, rows, steps)))
        took = "  ".join(f"{name} {values[-1]:.2f} ms" for name, values in found.items())
        print(f"round {number + 1}: {took}", flush=True)
    pairs = list(zip(*found.values(), strict=True))
    cost, ratio = (statistics.median(f(a, b) for a, b in pairs) for f in (difference, quotient))
    print(
        f"d{depth}, {rows * T:,} tokens a step: the Trainer costs {cost:.2f} ms of CPU a step, "
        f"{100 * (ratio - 1):+.2f} % (medians of {rounds} pairs, "
        f"{100 * (min(quotient(a, b) for a, b in pairs) - 1):+.1f} to "
        f"{100 * (max(quotient(a, b) for a, b in pairs) - 1):+.1f} %)"
    )


def difference(loop: float, trainer: float) -> float:
    return trainer - loop


def quotient(loop: float, trainer: float) -> float:
    return trainer / loop


if __name__ == "__main__":
    main()
