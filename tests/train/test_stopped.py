"""A signal in training saves and ends the run, whatever processes of it get it."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat.checkpoint.runs import RunCheckpoints
from tests.train.conftest import STEPS, WHOLE, Train, environment, losses, the_run
from tests.train.stopping import assert_same, once, stopped_by, to_all, twice, until_some_steps

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_and_ctrl_c_save_and_exit_cleanly(
    number: signal.Signals, whole: Path, shared_base: Path, tiny: list[str], train: Train
) -> None:
    name = f"stopped-{number.name}"
    steps = stopped_by(number, shared_base, tiny, name)
    assert len(steps) == 1 and 4 <= steps[0] < STEPS
    train(f"run_name={name}", *WHOLE, "resume=auto")
    assert_same(the_run(shared_base, name), whole)


@pytest.mark.parametrize(
    ("number", "send", "words"),
    [
        (signal.SIGINT, to_all, ["data.num_workers=2"]),
        (signal.SIGTERM, to_all, ["data.num_workers=2"]),
        (signal.SIGINT, twice, []),
        (signal.SIGHUP, to_all, ["data.num_workers=2"]),
        (
            signal.SIGHUP,
            to_all,
            ["trainer.devices=2", "data.rows_per_device=4", "data.num_workers=1"],
        ),
        (signal.SIGINT, once, ["trainer.devices=2", "data.rows_per_device=4"]),
        (
            signal.SIGINT,
            to_all,
            ["trainer.devices=2", "data.rows_per_device=4", "data.num_workers=1"],
        ),
        (
            signal.SIGTERM,
            to_all,
            ["trainer.devices=2", "data.rows_per_device=4", "data.num_workers=1"],
        ),
    ],
    ids=[
        "ctrl-c",
        "scancel",
        "timeout",
        "hang-up",
        "hang-up-ranks",
        "parent",
        "ctrl-c-ranks",
        "scancel-ranks",
    ],
)
def test_a_signal_to_all_its_processes_is_one_signal(
    number: signal.Signals,
    send: Callable[..., None],
    words: list[str],
    whole: Path,
    shared_base: Path,
    tiny: list[str],
    train: Train,
    request: pytest.FixtureRequest,
) -> None:
    name = f"all-{request.node.callspec.id}"
    steps = stopped_by(number, shared_base, tiny, name, *words, send=send)
    assert len(steps) == 1 and 4 <= steps[0] < STEPS
    mine, other = losses(the_run(shared_base, name)), losses(whole)
    assert sorted(mine) == list(range(1, steps[0] + 1))
    assert all(abs(float(mine[step]) - float(other[step])) < 2e-4 for step in mine)


@pytest.mark.parametrize(
    "words", [[], ["trainer.devices=2", "data.rows_per_device=4"]], ids=["one", "ranks"]
)
def test_a_closed_terminal_saves(words: list[str], shared_base: Path, tiny: list[str]) -> None:
    import pty
    import select

    name = f"terminal-{len(words)}"
    command = [
        sys.executable,
        "-m",
        "nanochat.train",
        *tiny,
        "max_steps=2000",
        "save_every=null",
        f"run_name={name}",
        *words,
    ]
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(shared_base)
        os.execve(
            command[0],
            command,
            {**environment(shared_base), "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    until_some_steps(
        shared_base,
        name,
        meanwhile=lambda: select.select([terminal], [], [], 0.01)[0] and os.read(terminal, 65536),
    )
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    folder = the_run(shared_base, name)
    (step,) = RunCheckpoints(folder / "checkpoints").steps()
    assert os.waitstatus_to_exitcode(status) == 0 and sorted(losses(folder)) == list(
        range(1, step + 1)
    )
