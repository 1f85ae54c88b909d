"""Real processes (gloo), forked from one that has imported PyTorch, that call a function
together."""

import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.processes import SERVER


def together(world_size: int, call: Callable[..., Any], out: Path, *args: Any) -> list[Any]:
    """What `call(*args)` returns on each of `world_size` ranks, through files in `out`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        SERVER.Process(target=_one, args=(call, args, rank, world_size, port, out))
        for rank in range(world_size)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(180)
    failed = [path.read_text() for path in sorted(out.glob("failed-*"))]
    for rank in ranks:
        rank.kill()
    assert not failed, "\n".join(failed)
    return [torch.load(out / f"rank-{rank}.pt", weights_only=True) for rank in range(world_size)]


def _one(call: Callable, args: tuple, rank: int, world_size: int, port: int, out: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size))
    url = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=url, rank=rank, world_size=world_size)
    try:
        torch.save(call(*args), out / f"rank-{rank}.pt")
        dist.barrier()
    except BaseException:
        (out / f"failed-{rank}").write_text(traceback.format_exc())
    dist.destroy_process_group()
