"""Adding up the gradients of a step under DDP on 2 and 4 processes: on every rank, or each row on
the rank that updates it. Bytes sent and CPU seconds.

    unshare -rn python experiments/distributed/gradients.py FOLDER DEPTH

In a network of its own (unshare) the bytes over the loopback device are those of the backward pass.
It writes FOLDER/gradients.csv.
"""

import csv
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments.distributed.step import loopback_up, sent
from tests.distributed.ranks import together

from nanochat.distributed.sharing import parts_of, to_owners
from nanochat.gpt import GPT, from_depth

ROUNDS = 5
KINDS = ("all", "owners")


class Given(torch.nn.Module):
    """A loss whose gradients are `grads`."""

    def __init__(self, gpt: GPT) -> None:
        super().__init__()
        self.gpt = gpt

    def forward(self, grads: list[Tensor]) -> Tensor:
        return torch.stack(
            [(p * g).sum() for p, g in zip(self.gpt.parameters(), grads, strict=True)]
        ).sum()


def made(kind: str, depth: int) -> DistributedDataParallel:
    gpt = GPT.build(from_depth(depth, vocab_size=8192, sequence_len=512))
    model = DistributedDataParallel(Given(gpt), gradient_as_bucket_view=True)
    if kind == "owners":
        params = list(gpt.parameters())
        by_rows = [role != "matrix" for role in gpt.parameter_roles().values()]
        shapes = [tuple(p.shape) for p in params]
        parts = dict(zip(params, parts_of(shapes, by_rows, dist.get_world_size()), strict=True))
        model.register_comm_hook(parts, to_owners)
    return model


def passes(depth: int) -> dict[str, Any]:
    models = {kind: made(kind, depth) for kind in KINDS}
    params = list(models["all"].parameters())
    grads = [torch.randn(p.shape) for p in params]
    found: dict[str, Any] = {"parameters": sum(p.nbytes for p in params)}
    for turn in range(ROUNDS + 2):  # DDP changes its buckets after the first
        for kind, model in models.items():
            model.zero_grad()
            loss = model(grads)
            dist.barrier()
            before, start = sent(), time.process_time()
            loss.backward()
            seconds = time.process_time() - start
            dist.barrier()
            if turn > 1:
                found.setdefault(f"{kind} seconds", []).append(seconds)
                found.setdefault(f"{kind} bytes", []).append(sent() - before)
    return found


def main(base: Path, depth: int) -> None:
    loopback_up()
    with (base / "gradients.csv").open("a") as file:
        out = csv.writer(file)
        out.writerow(["depth", "processes", "kind", "CPU s, slowest rank", "MB sent", "parameters"])
        for world_size in (2, 4):
            folder = base / f"gradients-{world_size}"
            folder.mkdir(parents=True, exist_ok=True)
            ranks = together(world_size, passes, folder, depth)
            for kind in KINDS:
                seconds = max(statistics.median(rank[f"{kind} seconds"]) for rank in ranks)
                in_all = statistics.median(ranks[0][f"{kind} bytes"])
                numbers = [seconds, in_all / 1e6, ranks[0]["parameters"] / 1e6]
                out.writerow([depth, world_size, kind, *(f"{x:.3g}" for x in numbers)])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
