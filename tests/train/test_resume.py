"""Which runs are resumed, and what is said of those that are not."""

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.checkpoint import folder
from nanochat.checkpoint.runs import RunCheckpoints
from tests.train.conftest import WHOLE, Train, environment, losses, the_run
from tests.train.stopping import checkpoints_of

pytestmark = pytest.mark.slow


def test_a_truncated_file_is_one_line_and_the_previous_checkpoint_loads(
    whole: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(whole, tmp_path / "copy")
    checkpoints = RunCheckpoints(copy / "checkpoints")
    for name in ("model.safetensors", folder.STATE, "config.json"):
        steps = checkpoints.steps()
        victim = checkpoints.path(steps[-1]) / name
        data = victim.read_bytes()
        victim.write_bytes(data[: len(data) // 2])
        # the state is read by resuming alone, so weights whose state is damaged still load
        read = folder.read_state if name == folder.STATE else folder.load_gpt
        with pytest.raises(
            ValueError, match=f"{victim.name} has .* truncated.*undamaged one: .*step_"
        ):
            read(checkpoints.path(steps[-1]))
        found, problems = checkpoints.latest_sound()
        assert found == checkpoints.path(steps[-2]) and len(problems) == 1
        assert folder.load_gpt(found).config.n_layer == 2
        victim.write_bytes(data)


def test_a_finished_run_is_not_trained_again(whole: Path, train: Train) -> None:
    before = (whole / "metrics.csv").read_bytes()
    assert "this run is finished" in train("run_name=whole", *WHOLE, "resume=auto").stdout
    assert (whole / "metrics.csv").read_bytes() == before


def test_resuming_with_other_settings_is_refused(whole: Path, train: Train) -> None:
    done = train("run_name=whole", *WHOLE, f"resume={whole}", "seed=43", code=2)
    assert "continues that run as it was, but" in done.stderr and "seed: 42 -> 43" in done.stderr


def test_auto_starts_a_new_run_when_the_settings_differ_and_says_so(
    whole: Path, train: Train, shared_base: Path
) -> None:
    done = train("run_name=whole", "max_steps=2", "resume=auto", "save_every=null")
    assert "it differs in max_steps: 24 -> 2" in done.stdout
    (other,) = [
        p.parent
        for p in (shared_base / "runs" / "whole").glob("*/config.yaml")
        if p.parent != whole
    ]
    shutil.rmtree(other)


def test_a_run_folder_in_use_is_refused(whole: Path, train: Train) -> None:
    with (whole / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert (
            "another process is training in"
            in train("run_name=whole", *WHOLE, "resume=auto", code=2).stderr
        )


def test_a_full_disk_is_one_line_and_nothing_is_lost(
    whole: Path, tiny: list[str], shared_base: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        for name in ("tokenizers", "token_shards"):
            (disk / name).symlink_to(shared_base / name)
        command = [
            sys.executable,
            "-m",
            "nanochat.train",
            *tiny,
            *WHOLE,
            "checkpoints.keep_last=null",
            "run_name=full",
        ]
        done = subprocess.run(
            command, env=environment(disk), capture_output=True, text=True, timeout=120
        )
        (line,) = [x for x in done.stderr.splitlines() if "error:" in x] or [done.stderr[-2000:]]
        assert done.returncode == 2 and "no space left" in line and "resume=auto" in line
        found, _ = RunCheckpoints(checkpoints_of(disk, "full")).latest_sound()
        assert found is not None and folder.load_gpt(found).config.n_layer == 2
        assert not list(checkpoints_of(disk, "full").glob(".writing*"))
        mine = losses(the_run(disk, "full"))
        assert mine == {step: loss for step, loss in losses(whole).items() if step in mine}
    finally:
        subprocess.run(["umount", str(disk)], check=True)
