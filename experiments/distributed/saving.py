"""What a checkpoint costs the steps around it: written before the next step, or beside it.

    python experiments/distributed/saving.py FOLDER [DEPTH] [ROUNDS]

In turn, one process: ten steps of 2,048 tokens with one checkpoint after the second, as
`checkpoints.asynchronous` false and true write it. Seconds that training stands still for it, of
all ten steps, and of the process's CPUs until it is written. Appends to FOLDER/saving.csv.
"""

import csv
import shutil
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch

from nanochat import optim
from nanochat.checkpoint import folder
from nanochat.checkpoint.writer import Writer, copied
from nanochat.commands.configs import compose_choice
from nanochat.gpt import GPT, from_depth
from nanochat.tokenizer.tokenizer import BPETokenizer

STEPS, ROWS, LENGTH = 10, 4, 512


class Training:
    def __init__(self, base: Path, depth: int) -> None:
        self.path = base / "checkpoint"
        self.gpt = GPT.build(from_depth(depth, vocab_size=8192, sequence_len=LENGTH))
        self.optimizer = optim.build(self.gpt, compose_choice("optim", "muon")["groups"])
        self.idx = torch.randint(8192, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
        self.tokenizer, self.writer = BPETokenizer([]), Writer()
        self.step()

    def step(self) -> None:
        self.gpt.loss_sum(self.idx, self.idx).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, beside: bool) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        weights, state = self.gpt.state_dict(), {"optimizer_states": [self.optimizer.state_dict()]}
        if beside:
            weights, state = copied((weights, state))
        config, tokenizer = self.gpt.config, self.tokenizer
        write = partial(folder.save, self.path, weights, config, tokenizer, {}, state)
        self.writer.begin(write) if beside else write()

    def measured(self, beside: bool) -> list[float]:
        """Seconds: standing still, all steps, CPU."""
        start, cpu, still = time.perf_counter(), time.process_time(), 0.0
        for n in range(STEPS):
            self.step()
            if n == 1:
                before = time.perf_counter()
                self.save(beside)
                still = time.perf_counter() - before
        steps = time.perf_counter() - start
        self.writer.finish()
        return [still, steps, time.process_time() - cpu]


def main(base: Path, depth: int, rounds: int) -> None:
    base.mkdir(parents=True, exist_ok=True)
    training = Training(base, depth)
    found = [[training.measured(beside) for beside in (False, True)] for _ in range(rounds)]
    size = sum(p.stat().st_size for p in training.path.rglob("*") if p.is_file())
    with (base / "saving.csv").open("a") as file:
        out = csv.writer(file)
        names = ["stands still, s", "ten steps, s", "CPU, s"]
        out.writerow(["depth", "MB", "round", "asynchronous", *names])
        for n, both in enumerate(found):
            for beside, values in zip((False, True), both, strict=True):
                out.writerow([depth, round(size / 1e6), n, beside, *(f"{v:.3g}" for v in values)])
    for i, name in enumerate(names):
        ratio = statistics.median(both[1][i] / both[0][i] for both in found)
        print(f"{name}: asynchronous / not, median of {rounds} rounds: {ratio:.2f}")


if __name__ == "__main__":
    depth, rounds = (int(x) for x in (sys.argv[2:] or ["4", "5"]))
    main(Path(sys.argv[1]), depth, rounds)
