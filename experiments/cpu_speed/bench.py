"""Does the Trainer cost anything? The same steps through a bare loop and through lightning.Trainer, in turn.

python experiments/cpu_speed/bench.py [depth] [rounds]
"""

import itertools
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import lightning as L
import torch
import yaml
from torch.utils.data import DataLoader, IterableDataset

from nanochat import optim
from nanochat.gpt import GPT, from_depth
from nanochat.modules.pretrain import PretrainModule
from nanochat.runs.job import quiet_lightning
from nanochat.runtime.paths import conf_dir

T, ROWS, STEPS, VOCAB = 256, 16, 8, 8192


class Random(IterableDataset):
    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        while True:
            tokens = torch.randint(0, VOCAB, (ROWS, T + 1), generator=generator)
            yield {"idx": tokens[:, :-1], "targets": tokens[:, 1:], "num_targets": torch.tensor(ROWS * T)}


class Times(L.Callback):
    def __init__(self) -> None:
        self.at: list[float] = []

    def on_train_batch_end(self, *_) -> None:
        self.at.append(time.perf_counter())


def build(depth: int) -> PretrainModule:
    config = yaml.safe_load((conf_dir() / "optim/muon.yaml").read_text())
    gpt = GPT.build(from_depth(depth, vocab_size=VOCAB, sequence_len=T))
    gpt.prepare(compute_dtype=torch.float32)
    return PretrainModule(
        gpt,
        partial(optim.build, groups=config["groups"], weight_decay=0.1),
        optim.Schedule(**config["schedule"]),
        STEPS,
    )


def bare(depth: int) -> list[float]:
    module = build(depth)
    optimizer, at = module.optim(module.gpt), []
    for step, batch in zip(range(STEPS), DataLoader(Random(), batch_size=None), strict=False):
        optimizer.schedule_step(module.schedule, step, STEPS)
        (module.gpt.loss_sum(batch["idx"], batch["targets"]) / batch["num_targets"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        at.append(time.perf_counter())
    return at


def with_trainer(depth: int) -> list[float]:
    times = Times()
    trainer = L.Trainer(accelerator="cpu", max_steps=STEPS, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                        enable_model_summary=False, callbacks=[times])  # fmt: skip
    trainer.fit(build(depth), DataLoader(Random(), batch_size=None))
    return times.at


def main() -> None:
    depth, rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 4, int(sys.argv[2]) if len(sys.argv) > 2 else 4
    quiet_lightning()
    ratios = []
    for round_number in range(rounds):
        rates = {}
        order = [("bare loop", bare), ("Trainer", with_trainer)]
        for name, run in order if round_number % 2 else reversed(order):  # the second of a pair finds a warmer machine
            at = run(depth)
            rates[name] = ROWS * T / statistics.median(b - a for a, b in itertools.pairwise(at))
            print(f"round {round_number + 1}  {name:10} {rates[name]:8,.0f} tokens/s", flush=True)
        ratios.append(rates["Trainer"] / rates["bare loop"])
    print(
        f"Trainer / bare loop, median of {rounds}: {statistics.median(ratios):.3f}   ({Path(__file__).name}, d{depth})"
    )


if __name__ == "__main__":
    main()
