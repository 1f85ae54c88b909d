"""What a program measures in turn with another one: a block of work for each line on its standard
input, a line of JSON for each block. Needs nothing but torch, since both sides import it."""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

# unit -> amount, wall seconds, CPU seconds
Measures = dict[str, tuple[float, float, float]]


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_gib() -> float:
    """Of the GPU's allocator, else of this process; the peak begins anew where Linux allows it."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@contextmanager
def timed(found: Measures, what: str, amount: float) -> Iterator[None]:
    """Adds what the block took: `amount` units of `what`."""
    wait()
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    wait()
    found[what] = (amount, time.perf_counter() - wall, time.process_time() - cpu)


def say(found: Measures) -> None:
    print(json.dumps({"measures": found, "peak_gib": peak_gib()}), flush=True)


def next_turn() -> None:
    """Waits for the turn of this program; it ends where there is none left."""
    if not sys.stdin.readline():
        sys.stdout.flush()
        os._exit(0)  # at once: nothing of a measurement is kept


def in_turn(block: Callable[[], Measures]) -> None:
    block()  # compiled, warm
    say({})
    while True:
        next_turn()
        say(block())
