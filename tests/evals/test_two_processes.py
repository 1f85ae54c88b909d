"""Two real processes (gloo) evaluate: bits per byte is that of all rows, and where one process
fails both go on.

This file is also what the two processes run: `python test_two_processes.py RANK PORT OUT`.
"""

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from nanochat.callbacks.evaluate import Evaluate
from nanochat.evals.bpb import bits_per_byte
from nanochat.gpt import GPT, GPTConfig

V, ROWS, T = 70, 6, 16
LENGTHS = np.arange(V, dtype=np.int32) % 5 + 1


def network() -> GPT:
    gpt = GPT.build(GPTConfig(32, V, 2, 2, 2, 32))
    with torch.no_grad():
        for p in gpt.parameters():
            p.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    return gpt


def batches(rows, fails=False):
    """One row at a time; `fails` breaks the second."""
    ids = torch.randint(V, (ROWS, T + 1), generator=torch.Generator().manual_seed(1))
    for n, row in enumerate(rows):
        if fails and n == 1:
            raise OSError("the validation shard is gone")
        yield {"idx": ids[row : row + 1, :-1], "targets": ids[row : row + 1, 1:]}


def one_process(rank: int, port: int, out: Path) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=20),
    )
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("nanochat").addHandler(handler)
    gpt, recorded, step = network(), {}, 0

    def bpb(module):
        # process 1 has the fewer rows; it fails in its second batch at step 1, process 0 before its
        # first at step 3
        share = range(4) if rank == 0 else range(4, ROWS)
        return bits_per_byte(gpt, batches(share, fails=(rank, step) == (1, 1)), LENGTHS)

    def early(module):
        if (rank, step) == (0, 3):
            raise ValueError("no such task")
        return {"early": float(step)}

    callback = Evaluate(
        {"bpb": (1, bpb), "early": (1, early)},
        SimpleNamespace(record=lambda s, values: recorded.update({s: values})),
    )
    module = SimpleNamespace(
        clock=SimpleNamespace(paused=contextlib.nullcontext),
        whole_gpt=contextlib.nullcontext,
        eval=gpt.eval,
        train=gpt.train,
        total_steps=4,
        device=torch.device("cpu"),
    )
    trainer = SimpleNamespace(
        is_global_zero=rank == 0,
        loggers=[],
        callbacks=[],
        callback_metrics={},
        progress_bar_metrics={},
    )
    latest = []
    for step in (1, 2, 3, 4):
        callback.at_step(trainer, module, step)
        latest.append(callback.latest)
    together = torch.ones(1)
    dist.all_reduce(together)  # the two are still in step with each other
    out.write_text(
        json.dumps(
            {"latest": latest, "lines": lines, "together": together.item(), "recorded": recorded}
        )
    )
    dist.destroy_process_group()


pytestmark = pytest.mark.slow  # two processes


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    outs = [tmp_path_factory.mktemp("ranks") / f"{rank}.json" for rank in (0, 1)]
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(port), str(outs[rank])],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in (0, 1)
    ]
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=120)
            assert rank.returncode == 0, errors[-3000:]
    finally:
        for rank in ranks:
            rank.kill()
    return [json.loads(out.read_text()) for out in outs]


def test_bits_per_byte_is_that_of_all_rows(results):
    alone = bits_per_byte(network(), batches(range(ROWS)), LENGTHS)
    for process in results:  # to the last bit
        wanted = {"val/early": 2.0, **{f"val/{k}": v for k, v in alone.items()}}
        assert process["latest"][1] == wanted


def test_where_one_process_fails_both_go_on(results):
    for process in results:
        assert [sorted(values) for values in process["latest"]] == [
            ["val/early"],  # step 1: process 1 failed in bits per byte, in the midst of its batches
            ["val/bpb", "val/early", "val/loss", "val/tokens"],
            ["val/bpb", "val/loss", "val/tokens"],  # step 3: process 0 failed in the other one
            ["val/bpb", "val/early", "val/loss", "val/tokens"],
        ]
        assert process["together"] == 2
    assert sorted(results[0]["recorded"]) == ["1", "2", "3", "4"]


def test_the_failure_is_logged_on_both_and_its_cause_where_it_happened(results):
    failed = [[line for line in process["lines"] if "failed" in line] for process in results]
    assert [len(lines) for lines in failed] == [2, 2]
    first, third = zip(*failed, strict=True)
    assert all("evaluation bpb failed at step 1" in line for line in first)
    assert all("evaluation early failed at step 3" in line for line in third)
    assert "1 of 2 processes" in first[0] and "the validation shard is gone" in first[1]
    assert "no such task" in third[0] and "1 of 2 processes" in third[1]


if __name__ == "__main__":
    one_process(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
