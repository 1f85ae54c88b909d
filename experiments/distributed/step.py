"""The optimizer's step on 2 and 4 processes: each doing all of it, as before, or its share. CPU
seconds, bytes of state, bytes sent.

    unshare -rn python experiments/distributed/step.py FOLDER DEPTH

In a network of its own (unshare) the bytes over the loopback device are those of the step.
It writes FOLDER/step.csv.
"""

import csv
import fcntl
import socket
import statistics
import struct
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.distributed.ranks import together

from nanochat import optim
from nanochat.commands.configs import compose_choice
from nanochat.distributed.sharing import Unshared
from nanochat.gpt import GPT, from_depth

ROUNDS = 3


def loopback_up() -> None:
    """As `ip link set lo up`."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP


def sent() -> int:
    """Bytes that have gone over the loopback device."""
    line = next(x for x in Path("/proc/net/dev").read_text().splitlines() if "lo:" in x)
    return int(line.split(":")[1].split()[0])


def steps(depth: int) -> dict[str, Any]:
    """Of this rank: CPU seconds and bytes of the two kinds of step in turn, and bytes of state."""
    gpt = GPT.build(from_depth(depth, vocab_size=8192, sequence_len=512))
    groups = compose_choice("optim", "muon")["groups"]
    g = torch.Generator().manual_seed(0)
    for p in gpt.parameters():
        p.grad = torch.randn(p.shape, generator=g)
    made = {"all": optim.build(gpt, groups), "share": optim.build(gpt, groups)}
    made["all"].sharing = Unshared()
    params = [p for group in made["all"].param_groups for p in group["params"]]
    made["all"].sharing.begin(params, [])
    found: dict[str, Any] = {}
    for turn in range(ROUNDS + 1):  # the first makes the state
        for kind, optimizer in made.items():
            dist.barrier()
            before, start = sent(), time.process_time()
            optimizer.step()
            seconds = time.process_time() - start
            dist.barrier()
            if turn:
                found.setdefault(f"{kind} seconds", []).append(seconds)
                found.setdefault(f"{kind} bytes", []).append(sent() - before)
    for kind, optimizer in made.items():
        tensors = (v for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v))
        found[f"{kind} state"] = sum(t.nbytes for t in tensors)
    found["parameters"] = sum(p.nbytes for p in params)
    return found


def main(base: Path, depth: int) -> None:
    loopback_up()
    with (base / "step.csv").open("a") as file:
        out = csv.writer(file)
        seconds = ("CPU s, slowest rank", "CPU s, mean")
        out.writerow(["depth", "processes", "kind", *seconds, "state MB", "MB sent", "predicted"])
        for world_size in (2, 4):
            folder = base / f"step-{world_size}"
            folder.mkdir(exist_ok=True)
            ranks = together(world_size, steps, folder, depth)
            for kind in ("all", "share"):
                seconds = [statistics.median(rank[f"{kind} seconds"]) for rank in ranks]
                state = max(rank[f"{kind} state"] for rank in ranks)
                sent_in_all = statistics.median(ranks[0][f"{kind} bytes"])
                expected = (world_size - 1) * ranks[0]["parameters"] if kind == "share" else 0
                numbers = [max(seconds), sum(seconds) / world_size, state / 1e6, sent_in_all / 1e6]
                out.writerow(
                    [
                        depth,
                        world_size,
                        kind,
                        *(f"{x:.3g}" for x in numbers),
                        f"{expected / 1e6:.3g}",
                    ]
                )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
