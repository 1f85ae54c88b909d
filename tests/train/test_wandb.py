"""Weights & Biases: no login, no server, and a run that is killed, with real processes and the
files that W&B itself writes."""

import struct
from pathlib import Path

import pytest

from nanochat.checkpoint.runs import RunCheckpoints
from tests.train.conftest import STEPS, WHOLE, Train, losses, the_run
from tests.train.stopping import checkpoints_of, start, until_some_steps

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("words", [[], ["dry_run=true"]], ids=["run", "dry"])
def test_without_a_login_it_is_one_line_and_no_run_folder(
    words: list[str], train: Train, shared_base: Path
) -> None:
    done = train("run_name=no-login", "logger=wandb", *words, code=2)
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "error: logger=wandb has no login on this machine: type `wandb login` first"
    )
    assert (
        "logger.wandb.offline=true or logger=csv" in line
        and not (shared_base / "runs" / "no-login").exists()
    )


def test_without_its_server_it_is_one_line_and_no_run_folder(
    train: Train, shared_base: Path
) -> None:
    nobody = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a" * 40}
    done = train("run_name=no-server", "logger=wandb", code=2, **nobody)
    last = done.stderr.splitlines()[-1]
    assert (
        last.startswith("error: logger=wandb: W&B did not confirm the login")
        and "http://127.0.0.1:9" in last
    )
    assert "Traceback" not in done.stderr and not (shared_base / "runs" / "no-server").exists()


def logged(file: Path) -> list[int]:
    """The steps in a file of W&B's own format, in the order in which they were written."""
    from wandb.proto.wandb_internal_pb2 import Record

    # from: LevelDB's log format after a header of 7 bytes
    data, at, part, steps = (file.read_bytes(), 7, b"", [])
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:  # no room for a header in this block
            at += 2**15 - at % 2**15
        length, kind = struct.unpack_from("<HB", data, at + 4)
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            record, part = Record.FromString(part), b""
            items = record.history.item
            steps += [
                int(item.value_json)
                for item in items
                if "trainer/global_step" in (item.key, *item.nested_key)
            ]
    return steps


def test_killed_and_resumed_it_is_one_offline_run_whose_steps_go_on(
    shared_base: Path, tiny: list[str], train: Train
) -> None:
    name, words = "wandb-killed", ["logger=wandb", "logger.wandb.offline=true", "log_every=1"]
    process = start(shared_base, tiny, name, *words, "resume=auto")
    until_some_steps(shared_base, name)
    process.kill()
    process.wait()
    kept = RunCheckpoints(checkpoints_of(shared_base, name)).steps()
    assert kept and kept[-1] < STEPS
    train(f"run_name={name}", *WHOLE, *words, "resume=auto")
    run = the_run(shared_base, name)
    first, second = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    assert first.stem == second.stem  # run-ID: the same one
    assert logged(first) == sorted(logged(first))
    steps = logged(second)  # W&B had written little of the first, or nothing
    assert sorted(set(steps)) == list(range(1, STEPS + 1)) and steps == sorted(steps)
    assert sorted(losses(run)) == list(range(1, STEPS + 1))
