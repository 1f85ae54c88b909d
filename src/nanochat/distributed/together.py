"""A command in several processes on one machine: it starts itself again with the environment
variables that torchrun sets. torchrun can start it too."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from nanochat.distributed.collectives import close


def is_one_of_several() -> bool:
    """Whether this process was started as one of several."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def run_again(processes: int) -> int:
    """Run this process's command in so many processes and return the exit code of the first that
    failed, or 0. They end with this process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    common = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(processes):
            own = {**common, "RANK": rank, "LOCAL_RANK": rank}
            env = {"OMP_NUM_THREADS": threads, **os.environ, **{k: str(v) for k, v in own.items()}}
            ranks.append(subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=env))
        while None in (codes := [process.poll() for process in ranks]) and not any(codes):
            time.sleep(0.1)
        return next((code for code in codes if code), 0)
    finally:
        for process in ranks:  # the others may wait for the one that failed
            process.kill()
            process.wait()


@contextmanager
def joined(device: str) -> Iterator[tuple[int, int, str]]:
    """(rank, processes, device) of this process. `device` is as a user gives it; of several GPUs
    each rank takes its own."""
    if not is_one_of_several():
        yield 0, 1, device
        return
    gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    local = int(os.environ["LOCAL_RANK"])
    if gpu:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if gpu else "gloo")
    try:
        yield dist.get_rank(), dist.get_world_size(), f"cuda:{local}" if gpu else device
    finally:
        close()
