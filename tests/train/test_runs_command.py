"""`python -m nanochat.runs`: what it says of real run folders, and what it deletes."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from nanochat.checkpoint.runs import RunCheckpoints, keep_for
from nanochat.runs import listing
from nanochat.runs.run_folder import lock
from tests import processes
from tests.test_additions import save_untrained
from tests.train.conftest import environment


def make(runs: Path, name: str, *, step: int, steps: int, parent: Path | None = None) -> Path:
    path = runs / name
    save_untrained(path / f"checkpoints/step_{step:06d}")
    RunCheckpoints(path / "checkpoints").record(step, {"val/bpb": 1.25})
    stamp = name.split("/")[1].removeprefix("sweep-")
    stamp = f"{stamp[:10]}T{stamp[11:19].replace('-', ':')}+00:00"
    record = {
        "started": stamp,
        "plan": {"steps": steps},
        "parent": parent and {"path": str(parent)},
    }
    (path / "record.json").write_text(json.dumps(record))
    (path / "config.yaml").write_text(
        yaml.safe_dump({"phase": "base", "run_name": name.split("/")[0]})
    )
    if parent is not None:
        keep_for(parent, path)
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    runs = tmp_path / "runs"
    first = make(runs, "one/2026-01-01_00-00-00Z", step=10, steps=10)
    make(
        runs, "two/2026-01-03_00-00-00Z", step=4, steps=20, parent=first / "checkpoints/step_000010"
    )
    make(runs, "one/sweep-2026-01-02_00-00-00/0", step=5, steps=5)
    return runs


def say(base: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return processes.run(["nanochat.runs", *words], env=environment(base), cwd=base)


def test_each_run_with_its_state_and_parent(runs: Path) -> None:
    held = lock(runs / "two/2026-01-03_00-00-00Z")
    found = {run.name: run for run in listing.list_runs(runs)}
    assert {name: run.state for name, run in found.items()} == {
        "two/2026-01-03_00-00-00Z": "training",
        "one/2026-01-01_00-00-00Z": "finished",
        "one/sweep-2026-01-02_00-00-00/0": "finished",
    }
    two = found["two/2026-01-03_00-00-00Z"]
    assert (two.step, two.steps, two.best) == (4, 20, 1.25)
    assert two.parent == "one/2026-01-01_00-00-00Z@10"
    assert found["one/2026-01-01_00-00-00Z"].children == (two.name,)
    assert next(iter(found)) == two.name, "the one that began last comes first"
    held.close()
    assert listing.describe(two.path, runs).state == "stopped"
    (two.path / "checkpoints/step_000004/model.safetensors").write_bytes(b"x")
    assert listing.describe(two.path, runs).state == "damaged: last checkpoint"
    (two.path / "config.yaml").write_text("")
    assert listing.describe(two.path, runs).state == "damaged: config.yaml"


def test_what_others_need_or_train_is_not_deleted(runs: Path) -> None:
    found = listing.list_runs(runs)
    with pytest.raises(ValueError, match=r"is what two/.* began from.*force=true"):
        listing.choose(["one"], found, force=False)
    assert len(listing.choose(["one", "two"], found, force=False)) == 3
    held = lock(runs / "two/2026-01-03_00-00-00Z")
    with pytest.raises(ValueError, match="is being trained"):
        listing.choose(["two"], listing.list_runs(runs), force=True)
    held.close()


@pytest.mark.slow
def test_the_command_lists_deletes_and_archives(runs: Path) -> None:
    base = runs.parent
    assert "one/2026-01-01_00-00-00Z" in (listed := say(base).stdout) and "one@10" in listed
    assert "would delete two/" in say(base, "delete=two").stdout and (runs / "two").is_dir()
    assert "4/20" in listed and "…" not in listed
    assert "confirm=true confirms" in say(base, "confirm=true").stderr
    refused = say(base, "delete=three")
    assert (
        refused.returncode == 2
        and refused.stderr == "error: no run called three; there are: one, two\n"
    )
    assert (
        "archived two/" in say(base, "archive=two", "confirm=true").stdout
        and not (runs / "two").exists()
    )
    (packed,) = (base / "archive").glob("*.tar")
    before = {run["name"] for run in json.loads(say(base, "format=json").stdout)}
    shutil.unpack_archive(packed, runs)
    assert {run.name for run in listing.list_runs(runs)} == before | {"two/2026-01-03_00-00-00Z"}
    assert "deleted two/" in say(base, "delete=[two,one]", "confirm=true").stdout
    assert not listing.list_runs(runs) and not list(runs.iterdir())
