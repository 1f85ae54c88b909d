"""Collectives between two real processes (gloo), and in one process alone.

This file is also what the two processes run: `python test_collectives.py RANK PORT`.
"""

import json
import os
import socket
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist

from nanochat import distributed

CPU = torch.device("cpu")


def results(rank: int) -> dict[str, Any]:
    def fails() -> int:
        if rank == 1:
            raise OSError("the disk is full")
        return 3

    found: dict[str, Any] = {
        "sum": distributed.summed(torch.tensor([rank + 1.0, 10.0])).tolist(),
        "maximum": distributed.maximum(torch.tensor([float(rank), -float(rank)])).tolist(),
        "gathered": distributed.gathered({"rank": rank}),
        "agreed": distributed.agreed(lambda: rank, CPU),
    }
    try:
        distributed.agreed(fails, CPU)
    except Exception as error:
        found["failure"] = f"{type(error).__name__}: {error}"
    return found


def test_alone_each_gives_back_what_it_was_given() -> None:
    assert results(0) == {"sum": [1, 10], "maximum": [0, 0], "gathered": [{"rank": 0}], "agreed": 0}
    assert results(1)["failure"] == "OSError: the disk is full"
    distributed.close()  # there is no group: nothing happens


@pytest.mark.slow  # two processes
def test_two_ranks_compute_together_and_fail_together() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(port)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in (0, 1)
    ]
    try:
        first, second = (json.loads(rank.communicate(timeout=120)[0]) for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()
    same = {"sum": [3, 20], "maximum": [1, 0], "gathered": [{"rank": 0}, {"rank": 1}]}
    elsewhere = "RuntimeError: it failed on 1 of 2 processes, not on this one"
    assert first == {**same, "agreed": 0, "failure": elsewhere}
    assert second == {**same, "agreed": 1, "failure": "OSError: the disk is full"}


if __name__ == "__main__":
    rank, port = map(int, sys.argv[1:])
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    print(json.dumps(results(rank)))
    distributed.close()
    assert not distributed.active()
