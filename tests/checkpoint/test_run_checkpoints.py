"""Which checkpoints of a run stay, and names that go on meaning the same one."""

import json
from pathlib import Path

import pytest

from nanochat.checkpoint.atomic import write_json
from nanochat.checkpoint.runs import RunCheckpoints, keep_for, lasting_name, resolve


def checkpoint(root: Path, step: int, bpb: float | None = None) -> Path:
    path = root / f"step_{step:06d}"
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "files.json").write_text(json.dumps({"config.json": 2}))
    if bpb is not None:
        RunCheckpoints(root).record(step, {"val/bpb": bpb})
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "base" / "2026-01-01_00-00-00"
    path.mkdir(parents=True)
    write_json(path / "record.json", {})
    for step, bpb in ((10, 1.5), (20, 1.2), (30, 1.3), (40, None), (50, 1.4)):
        checkpoint(path / "checkpoints", step, bpb)
    return path


@pytest.mark.parametrize(
    ("keep_last", "left"),
    [(1, [20, 50]), (2, [20, 40, 50]), (9, [10, 20, 30, 40, 50]), (None, [10, 20, 30, 40, 50])],
)
def test_the_newest_and_the_best_stay(run: Path, keep_last: int | None, left: list[int]) -> None:
    checkpoints = RunCheckpoints(run / "checkpoints", keep_last)
    checkpoints.prune()
    assert checkpoints.steps() == left


def test_a_checkpoint_that_another_run_began_from_stays(run: Path) -> None:
    """Without it that run could not be resumed: its sizes, tokenizer and inherited
    settings come from there."""
    checkpoints = RunCheckpoints(run / "checkpoints", 1)
    keep_for(checkpoints.path(30), Path("runs/sft/now"))
    checkpoints.prune()
    assert checkpoints.steps() == [20, 30, 50]
    assert resolve("base/2026-01-01_00-00-00@30", run.parents[1]) == checkpoints.path(30), (
        "and is still sound"
    )


def test_what_a_killed_writer_left_is_cleared_away(run: Path) -> None:
    (run / "checkpoints" / ".writing-step_000060-77").mkdir()
    RunCheckpoints(run / "checkpoints").prune()
    assert not list((run / "checkpoints").glob(".writing*"))


def test_a_lasting_name_is_the_step_and_not_the_latest(run: Path) -> None:
    runs = run.parents[1]
    name = lasting_name(resolve("base@latest", runs), runs)
    assert name == "base/2026-01-01_00-00-00@50"
    checkpoint(run / "checkpoints", 60)
    assert (
        resolve(name, runs).name == "step_000050"
        and resolve("base@latest", runs).name == "step_000060"
    )
    elsewhere = checkpoint(runs.parent / "copied", 7)
    assert lasting_name(elsewhere, runs) == str(elsewhere)
