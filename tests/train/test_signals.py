"""Signals before, beside and after training, and what a killed process leaves, with real
processes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat.checkpoint.runs import RunCheckpoints
from tests.train.conftest import STEPS, WHOLE, Train, environment, losses, the_run
from tests.train.stopping import (
    checkpoints_of,
    start,
    to_all,
    until_it_says,
    until_some_steps,
    with_ranks,
)

pytestmark = pytest.mark.slow
RANKS = ["trainer.devices=2", "data.rows_per_device=4"]


def test_under_nohup_a_run_outlives_its_terminal(shared_base: Path, tiny: list[str]) -> None:
    command = [
        sys.executable,
        "-m",
        "nanochat.train",
        *tiny,
        *WHOLE,
        "run_name=nohup",
        "data.num_workers=1",
    ]
    process = subprocess.Popen(
        ["nohup", *command],
        env=environment(shared_base),
        cwd=shared_base,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until_some_steps(shared_base, "nohup")
    to_all(process, signal.SIGHUP)
    assert process.wait(timeout=120) == 0
    assert max(losses(the_run(shared_base, "nohup"))) == STEPS


def test_a_rank_that_is_killed_is_one_line_without_the_others_tracebacks(
    shared_base: Path, tiny: list[str]
) -> None:
    process, ranks = with_ranks(shared_base, tiny, "killed-quietly")
    os.kill(ranks[1], signal.SIGKILL)
    _, said = process.communicate(timeout=90)
    lines = said.decode().splitlines()
    assert (
        process.returncode == 2 and len(lines) == 1 and "rank 1 was killed by SIGKILL" in lines[0]
    ), lines
    assert not list(the_run(shared_base, "killed-quietly").glob(".trace*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_ends_the_ranks_before_they_train_is_the_exit_code(
    number: signal.Signals, shared_base: Path, tiny: list[str]
) -> None:
    name = f"ranks-early-{number.name}"
    process = start(shared_base, tiny, name, *RANKS)
    ranks: list[int] = []
    deadline = time.monotonic() + 60
    while len(ranks) < 2 and time.monotonic() < deadline:
        found = subprocess.run(
            ["pgrep", "-P", str(process.pid), "-f", "nanochat.train"],
            capture_output=True,
            text=True,
        )
        ranks = list(map(int, found.stdout.split()))
    time.sleep(0.2)  # Python itself is up, and imports
    for rank in ranks:
        os.kill(rank, number)
    _, said = process.communicate(timeout=90)
    assert process.returncode == 128 + number, said.decode()
    assert b"Traceback" not in said and said.decode().splitlines()[-1].startswith(
        f"error: {number.name} ended rank"
    ), said


def test_a_stopped_rank_does_not_keep_a_second_ctrl_c_from_ending_the_run(
    shared_base: Path, tiny: list[str]
) -> None:
    process, ranks = with_ranks(shared_base, tiny, "frozen")
    os.kill(ranks[1], signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    time.sleep(1.3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said.decode().splitlines()[-1] == "error: interrupted", (
        said.decode()
    )
    for rank in ranks:
        with pytest.raises(ProcessLookupError):
            os.kill(rank, 0)


@pytest.mark.parametrize("seconds", [0.15, 0.6, 1.5, 3.0])
def test_ctrl_c_twice_within_5_ms_outside_training_is_one_line(
    seconds: float, shared_base: Path, tiny: list[str]
) -> None:
    """While Python, then packages, then the data are read; wherever it is met."""
    process = start(shared_base, tiny, f"double-{seconds}", "dry_run=true")
    time.sleep(seconds)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.004)
    _, said = process.communicate(timeout=60)
    # 0: it was ready before; -SIGINT: Python itself was not up yet
    assert (process.returncode, said) in [
        (130, b"error: interrupted\n"),
        (0, b""),
        (-signal.SIGINT, b""),
    ], said.decode()


def test_ctrl_c_after_the_last_step_leaves_the_result(shared_base: Path, tiny: list[str]) -> None:
    process = start(shared_base, tiny, "late-ctrl-c", "max_steps=2", stdout=subprocess.PIPE)
    until_it_says(process, b"next: ")
    for _ in range(2):
        to_all(process, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert b"Traceback" not in said and process.returncode in (0, 130), said.decode()
    assert RunCheckpoints(checkpoints_of(shared_base, "late-ctrl-c")).steps()[-1] == 2


def test_a_damaged_file_of_the_run_is_named(
    shared_base: Path, tiny: list[str], train: Train
) -> None:
    words = ["run_name=damaged", "max_steps=2", "save_every=1"]
    train(*words)
    folder = the_run(shared_base, "damaged")
    shutil.rmtree(folder / "checkpoints" / "step_000002")  # it is not finished
    for file, text in [
        ("config.yaml", ""),
        ("config.yaml", "a: [1\n"),
        ("record.json", ""),
        ("record.json", '{"plan": '),
    ]:
        whole = (folder / file).read_text()
        (folder / file).write_text(text)
        done = train(*words, "resume=auto", code=2)
        (line,) = done.stderr.splitlines()
        assert (
            line.startswith(f"error: {folder / file} is empty or damaged")
            and "resume=false" in line
        )
        (folder / file).write_text(whole)
    assert "after step 1" in train(*words, "resume=auto").stdout
