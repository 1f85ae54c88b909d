"""Runs in processes of their own, and how they are stopped: by a signal to one process or to all,
once or twice, after some steps."""

import filecmp
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from nanochat.checkpoint.runs import RunCheckpoints
from tests.train.conftest import STEPS, WHOLE, environment, losses

# a third of a second each
SLOW_STEPS = ["batch_tokens=65536", "data.num_workers=2", "save_every=null"]


def start(
    base: Path,
    tiny: list[str],
    name: str,
    *words: str,
    stdout: int = subprocess.DEVNULL,
    stderr: int = subprocess.PIPE,
) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "nanochat.train", *tiny, *WHOLE, f"run_name={name}", *words]
    return subprocess.Popen(
        command,
        env=environment(base),
        stdout=stdout,
        stderr=stderr,
        cwd=base,
        start_new_session=True,
    )


def checkpoints_of(base: Path, name: str) -> Path:
    runs = list((base / "runs" / name).glob("*/checkpoints"))
    return runs[0] if runs else base / "nothing"


def assert_same(mine: Path, whole: Path) -> None:
    assert losses(mine) == losses(whole)
    end = f"checkpoints/step_{STEPS:06d}"
    assert filecmp.cmp(
        mine / end / "model.safetensors", whole / end / "model.safetensors", shallow=False
    )
    assert json.loads((mine / end / "metrics.json").read_text()) == json.loads(
        (whole / end / "metrics.json").read_text()
    )


def until_some_steps(
    base: Path,
    name: str,
    trial: str = "",
    meanwhile: Callable[[], object] = lambda: time.sleep(0.01),
) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        metrics = list((base / "runs" / name).glob(f"*/{trial}metrics.csv"))
        if metrics and len(metrics[0].read_text().splitlines()) > 4:
            break
        meanwhile()


def once(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    process.send_signal(number)


def to_all(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    """What a terminal does with Ctrl-C, and Slurm with SIGTERM: ranks and workers get it too."""
    os.killpg(process.pid, number)


def twice(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    """What `timeout` does, and a launcher that passes on what a terminal has sent to all."""
    once(process, number)
    time.sleep(0.005)
    to_all(process, number)


def stopped_by(
    number: signal.Signals,
    base: Path,
    tiny: list[str],
    name: str,
    *words: str,
    send: Callable[..., None] = once,
) -> list[int]:
    """A run that gets a signal after some steps; it must end well. Returns the steps of its
    checkpoints."""
    process = start(base, tiny, name, "save_every=null", *words)
    until_some_steps(base, name)
    send(process, number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()
    return RunCheckpoints(checkpoints_of(base, name)).steps()


def with_ranks(
    base: Path, tiny: list[str], name: str
) -> "tuple[subprocess.Popen[bytes], list[int]]":
    """A long run of two ranks after a few steps, and its ranks in order."""
    words = [
        "trainer.devices=2",
        "data.rows_per_device=4",
        "data.num_workers=1",
        "save_every=null",
        "max_steps=2000",
    ]
    process = start(base, tiny, name, *words)
    until_some_steps(base, name)
    found = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "nanochat.train"], capture_output=True, text=True
    )
    return process, sorted(map(int, found.stdout.split()))


def until_it_says(process: "subprocess.Popen[bytes]", word: bytes) -> None:
    assert process.stdout is not None
    while (line := process.stdout.readline()) and word not in line:
        pass
    assert line
