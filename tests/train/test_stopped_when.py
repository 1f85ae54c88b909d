"""Signals before the first step, in one that is long, again and again, and in a sweep."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from nanochat.checkpoint.runs import RunCheckpoints
from tests.train.conftest import STEPS, WHOLE, Train, losses, the_run
from tests.train.stopping import (
    SLOW_STEPS,
    checkpoints_of,
    start,
    to_all,
    until_it_says,
    until_some_steps,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.1])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_step_is_not_lost(
    number: signal.Signals, seconds: float, shared_base: Path, tiny: list[str]
) -> None:
    name = f"early-{number.name}-{seconds}"
    process = start(shared_base, tiny, name, *SLOW_STEPS, stdout=subprocess.PIPE)
    until_it_says(process, b"run folder")
    time.sleep(seconds)
    to_all(process, number)
    _, said = process.communicate(timeout=300)
    saved = RunCheckpoints(checkpoints_of(shared_base, name)).steps()
    ended = process.returncode, len(saved)
    assert ended in [(0, 1), (130 if number == signal.SIGINT else -number, 0)], said.decode()
    assert b"Traceback" not in said


@pytest.mark.parametrize("words", [[], ["trainer.devices=2"]], ids=["one", "ranks"])
def test_sigterm_again_and_again_is_one(
    words: list[str], shared_base: Path, tiny: list[str]
) -> None:
    name = f"again-{len(words)}"
    process = start(shared_base, tiny, name, *SLOW_STEPS, *words, stdout=subprocess.PIPE)
    until_it_says(process, b"step      1/")
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:  # to its very end
        to_all(process, signal.SIGTERM)
        time.sleep(0.005)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0 and b"Traceback" not in said, said.decode()
    assert len(RunCheckpoints(checkpoints_of(shared_base, name)).steps()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_pipe_that_ends_by_the_same_signal_keeps_nothing_from_being_saved(
    number: signal.Signals, shared_base: Path, tiny: list[str]
) -> None:
    """`… 2>&1 | tee log`: tee is gone before the step is done."""
    name = f"tee-{number.name}"
    process = start(
        shared_base,
        tiny,
        name,
        *SLOW_STEPS,
        "log_every=1",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    until_it_says(process, b"step      1/")
    to_all(process, number)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=300) == 0
    (step,) = RunCheckpoints(checkpoints_of(shared_base, name)).steps()
    assert sorted(losses(the_run(shared_base, name))) == list(range(1, step + 1))


@pytest.mark.parametrize("words", [[], ["trainer.devices=2"]], ids=["one", "ranks"])
def test_a_second_ctrl_c_stops_at_once(
    words: list[str], shared_base: Path, tiny: list[str]
) -> None:
    name = f"at-once-{len(words)}"
    process = start(
        shared_base, tiny, name, *SLOW_STEPS, *words, "batch_tokens=4194304", stdout=subprocess.PIPE
    )
    until_it_says(process, b"run folder")
    time.sleep(2.5)  # in the first step, which takes twenty seconds
    to_all(process, signal.SIGINT)
    time.sleep(2.5)
    to_all(process, signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130 and said.decode().strip().endswith("error: interrupted"), (
        said.decode()
    )
    assert (
        b"Traceback" not in said and not RunCheckpoints(checkpoints_of(shared_base, name)).steps()
    )


def test_ctrl_c_in_the_last_evaluation_of_a_trial_ends_the_sweep(
    shared_base: Path, tiny: list[str]
) -> None:
    words = [
        "-m",
        "seed=1,2",
        "max_steps=4",
        "save_every=null",
        "sample.prompts=[a,b,c,d,e,f,g,h]",
        "sample.max_tokens=60",
    ]
    process = start(shared_base, tiny, "swept-late", *words)
    sweep, deadline = shared_base / "runs" / "swept-late", time.monotonic() + 300
    while not list(sweep.glob("*/0/checkpoints/step_000004")) and time.monotonic() < deadline:
        time.sleep(0.002)
    to_all(process, signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130 and b"Traceback" not in said, said.decode()
    assert not list(sweep.glob("*/1/checkpoints/step_*"))


def test_ctrl_c_ends_a_sweep_which_goes_on_where_it_was(
    shared_base: Path, tiny: list[str], train: Train
) -> None:
    home, words = shared_base / "runs" / "swept", ["-m", "seed=1,2"]
    process = start(shared_base, tiny, "swept", *words)
    until_some_steps(shared_base, "swept", trial="0/")
    to_all(process, signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert home.is_dir(), said.decode()
    (sweep,) = home.iterdir()
    goes_on = ["resume=auto", f"hydra.sweep.dir='{sweep}'"]
    assert process.returncode == 130 and " and ".join(goes_on) in said.decode(), said.decode()
    assert [p.name for p in sweep.glob("?")] == ["0"] and RunCheckpoints(
        sweep / "0" / "checkpoints"
    ).steps()[-1] < STEPS
    done = train(*words, *WHOLE, "run_name=swept", *goes_on)
    assert "after step" in done.stdout
    assert sorted(p.parent.parent.name for p in sweep.glob(f"?/checkpoints/step_{STEPS:06d}")) == [
        "0",
        "1",
    ]
    train("-m", "run_name=swept", "seed=3,4", "max_steps=2", goes_on[1])
    assert sorted(losses(sweep / "0")) == list(range(1, STEPS + 1)), (
        "another sweep there takes no run's folder"
    )
    assert [len(losses(sweep / name)) for name in ("0-2", "1-2")] == [2, 2]
