"""A run that is killed or moved ends as one that was never interrupted, bit for bit."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from nanochat.checkpoint.runs import RunCheckpoints
from nanochat.runs.run_folder import lock
from tests.train.conftest import STEPS, WHOLE, Train, losses, the_run
from tests.train.stopping import assert_same, checkpoints_of, start, stopped_by, with_ranks

pytestmark = pytest.mark.slow


def test_killed_at_random_moments_it_ends_the_same(
    whole: Path, shared_base: Path, tiny: list[str], train: Train
) -> None:
    rng = random.Random(1)
    kills = 0
    for _ in range(4):
        process = start(shared_base, tiny, "killed", "resume=auto")
        before = len(RunCheckpoints(checkpoints_of(shared_base, "killed")).steps())
        deadline = time.monotonic() + 300
        # until it has written something new, then a moment more
        while process.poll() is None and time.monotonic() < deadline:
            if len(RunCheckpoints(checkpoints_of(shared_base, "killed")).steps()) != before or list(
                checkpoints_of(shared_base, "killed").glob(".writing*")
            ):
                break
            time.sleep(0.01)
        time.sleep(rng.random() * 0.6)
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
    assert kills >= 2
    train("run_name=killed", *WHOLE, "resume=auto")
    assert_same(the_run(shared_base, "killed"), whole)


def test_killed_while_it_writes_a_checkpoint_the_previous_one_is_used(
    whole: Path, shared_base: Path, tiny: list[str], train: Train
) -> None:
    process = start(shared_base, tiny, "torn")
    place, deadline = shared_base / "nothing", time.monotonic() + 300
    while time.monotonic() < deadline:
        place = checkpoints_of(shared_base, "torn")
        if RunCheckpoints(place).steps() and list(place.glob(".writing-step_*")):
            break
    process.kill()
    process.wait()
    assert RunCheckpoints(place).latest_sound()[0] is not None
    train("run_name=torn", *WHOLE, "resume=auto")
    assert_same(the_run(shared_base, "torn"), whole)
    assert not list(place.glob(".writing*")), "what the killed writer left is cleared away"


def test_killed_in_its_last_evaluation_it_is_evaluated_when_resumed(
    whole: Path, shared_base: Path, train: Train
) -> None:
    copy = shutil.copytree(whole, whole.parent.parent / "late" / whole.name)
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("run_name: whole", "run_name: late"))
    last = RunCheckpoints(copy / "checkpoints").path(STEPS)
    before = json.loads((last / "metrics.json").read_text())
    (last / "metrics.json").unlink()
    done = train("run_name=late", *WHOLE, "resume=auto")
    assert json.loads((last / "metrics.json").read_text()) == before, done.stdout


def test_ranks_whose_parent_is_killed_save_and_hold_the_folder_until_then(
    shared_base: Path, tiny: list[str]
) -> None:
    process, ranks = with_ranks(shared_base, tiny, "orphans")
    assert len(ranks) == 2
    process.kill()
    process.wait()
    folder, deadline = the_run(shared_base, "orphans"), time.monotonic() + 300
    while True:
        try:
            held = lock(folder)
            break
        except ValueError:
            assert time.monotonic() < deadline, "the ranks train on without their parent"
            time.sleep(0.005)
    held.close()
    (step,) = RunCheckpoints(folder / "checkpoints").steps()
    assert sorted(losses(folder)) == list(range(1, step + 1)) and step < 2000


def test_a_rank_that_is_killed_ends_the_others_and_is_named(
    shared_base: Path, tiny: list[str]
) -> None:
    process, ranks = with_ranks(shared_base, tiny, "one-killed")
    os.kill(ranks[1], signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    last = said.decode().strip().splitlines()[-1]
    assert (
        process.returncode == 2 and "rank 1 was killed by SIGKILL" in last and "resume=auto" in last
    ), last
    lock(the_run(shared_base, "one-killed")).close()


def test_stopped_in_bf16_it_ends_the_same(shared_base: Path, tiny: list[str], train: Train) -> None:
    words = ["compute.precision=bf16"]
    train("run_name=whole-bf16", *WHOLE, *words)
    stopped_by(signal.SIGTERM, shared_base, [*tiny, *words], "stopped-bf16")
    train("run_name=stopped-bf16", *WHOLE, *words, "resume=auto")
    assert_same(the_run(shared_base, "stopped-bf16"), the_run(shared_base, "whole-bf16"))


@pytest.mark.parametrize(
    "words", [["data.rows_per_device=8"], ["trainer.devices=2", "data.rows_per_device=2"]]
)
def test_resumed_on_other_hardware_it_trains_the_same_batches(
    words: list[str], whole: Path, shared_base: Path, tiny: list[str], train: Train
) -> None:
    name = f"moved-{len(words)}"
    (stopped,) = stopped_by(signal.SIGTERM, shared_base, tiny, name)
    train(f"run_name={name}", *WHOLE, *words, "resume=auto")
    mine, other = losses(the_run(shared_base, name)), losses(whole)
    assert sorted(mine) == sorted(other)
    assert all(mine[step] == other[step] for step in range(1, stopped + 1))
    # the same batches in other shares: sums in another order, through up to 20 updates
    assert all(abs(float(mine[step]) - float(other[step])) < 2e-4 for step in mine)
