"""What does the Trainer cost? The same steps through a bare loop and through lightning.Trainer, in
turn.

The cost does not depend on the model, so it is measured where it shows: steps of a few
milliseconds. Beside it stands what a step of a d4 takes.

python experiments/cpu_speed/bench.py [rounds]
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
        self.at.append(time.perf_counter())


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
        at.append(time.perf_counter())
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
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    quiet_lightning()
    costs = []
    for number in range(rounds):
        order = [("bare loop", bare), ("Trainer", with_trainer)]
        took = {
            name: milliseconds(run(1, 1, 200))
            for name, run in (order if number % 2 else reversed(order))
        }
        costs.append(took["Trainer"] - took["bare loop"])
        print(
            (
                f"round {number + 1}  bare loop {took['bare loop']:.2f} ms a step, Trainer "
                f"{took['Trainer']:.2f} ms"
            ),
            flush=True,
        )
    step, cost = milliseconds(bare(4, 16, 8)), statistics.median(costs)
    print(
        f"the Trainer costs {cost:.2f} ms a step (median of {rounds}); a step of d4, {16 * T:,} "
        f"tokens, takes {step:,.0f} ms: {cost / step:.2%}"
    )


if __name__ == "__main__":
    main()
