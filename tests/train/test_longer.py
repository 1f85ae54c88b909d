"""A run made longer ends as one that was planned so long from the start, or is told what to type
instead; one that cannot go on asks."""

import filecmp
import json
import shutil
from pathlib import Path

import pytest

from nanochat.checkpoint import folder
from nanochat.checkpoint.runs import RunCheckpoints
from nanochat.runs.run_folder import read_config
from tests import processes
from tests.train.conftest import Train, environment, losses, the_run

pytestmark = pytest.mark.slow
FLAT = [
    "optim.schedule.warmdown_frac=0",
    "optim.schedule.weight_decay=constant",
    "optim.schedule.warmup_steps=1",
    "save_every=4",
]


@pytest.fixture(scope="module")
def short(train: Train, shared_base: Path) -> Path:
    done = train("run_name=short", *FLAT, "max_steps=12", "eval_every=12")
    assert "this run is finished" not in done.stdout
    return the_run(shared_base, "short")


def test_made_longer_it_ends_as_one_that_was_so_long_from_the_start(
    short: Path, train: Train, shared_base: Path, tmp_path: Path
) -> None:
    before = shutil.copytree(short, tmp_path / "before")
    hint = train("run_name=short", *FLAT, "max_steps=12", "eval_every=12", "resume=auto").stdout
    assert f"resume={short} max_steps=N makes it longer, for N above 12" in hint
    train("run_name=longer", *FLAT, "max_steps=20", "eval_every=12")
    whole = the_run(shared_base, "longer")
    done = train("run_name=short", *FLAT, f"resume={short}", "max_steps=20", "eval_every=12")
    assert "after step 12" in done.stdout
    assert losses(short) == losses(whole) and len(losses(short)) == 20
    weights = "checkpoints/step_000020/model.safetensors"
    assert filecmp.cmp(short / weights, whole / weights, shallow=False)
    record = json.loads((short / "record.json").read_text())
    assert record["plan"]["steps"] == 20 and record["resumptions"][-1]["plan_before"]["steps"] == 12
    assert read_config(short)["max_steps"] == 20
    # from now on it is a run of 20 steps
    assert (
        "finished"
        in train("run_name=short", *FLAT, "max_steps=20", "eval_every=12", "resume=auto").stdout
    )
    shutil.rmtree(short)
    shutil.move(before, short)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["max_steps=8"], "12 steps and cannot have another length: 8 steps are fewer"),
        (
            ["max_steps=20", "batch_tokens=2048"],
            "planned with batch_tokens=1024, this command gives 2048; add batch_tokens=1024",
        ),
    ],
)
def test_what_would_be_another_run_is_refused(
    short: Path, train: Train, words: list[str], said: str
) -> None:
    before = (short / "record.json").read_bytes()
    assert (
        said
        in train("run_name=short", *FLAT, "eval_every=12", f"resume={short}", *words, code=2).stderr
    )
    assert (short / "record.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (
            ["optim.schedule.warmdown_frac=0.5", "optim.schedule.weight_decay=constant"],
            "learning rate of step 7",
        ),
        (["optim.schedule.warmdown_frac=0"], "Muon weight decay of step 1"),
    ],
)
def test_a_schedule_that_follows_the_length_is_named(
    train: Train, shared_base: Path, words: list[str], what: str
) -> None:
    name = f"run_name=down-{len(words)}"
    words = [*words, "optim.schedule.warmup_steps=0", "save_every=null", "eval_every=null"]
    train(name, *words, "max_steps=12")
    run = the_run(shared_base, name.removeprefix("run_name="))
    assert "begins a new run from it" in train(name, *words, "max_steps=12", "resume=auto").stdout
    stderr = train(name, *words, "max_steps=24", f"resume={run}", code=2).stderr
    assert (
        f"the {what} follows from the length" in stderr
        and f"init_from={run.parent.name}/{run.name}@12" in stderr
    )


def test_with_no_checkpoint_to_resume_it_asks(
    short: Path, train: Train, tmp_path: Path, shared_base: Path
) -> None:
    copy = shutil.copytree(short, shared_base / "runs" / "asked" / short.name)
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("run_name: short", "run_name: asked"))
    checkpoints = RunCheckpoints(copy / "checkpoints")
    for step in checkpoints.steps():
        state = checkpoints.path(step) / folder.STATE
        state.write_bytes(state.read_bytes()[:100])
    words = ["run_name=asked", *FLAT, "max_steps=16", "eval_every=12"]
    config.write_text(config.read_text().replace("max_steps: 12", "max_steps: 16"))
    record = json.loads((copy / "record.json").read_text())
    record["plan"].update(steps=16, horizon_tokens=16 * 1024, horizon_source="max_steps=16")
    (copy / "record.json").write_text(json.dumps(record))
    stderr = train(*words, "resume=auto", code=2).stderr
    assert "state.pt has 100 bytes" in stderr and "drop resume=" in stderr
    begin = f"init_from=asked/{copy.name}@12"
    assert begin in stderr and len(stderr.strip().splitlines()) == 1
    # what it says works
    mine = [
        "data=local",
        f"data.path={read_config(copy)['data']['path']}",
        "data.num_workers=0",
        "data.prepare_workers=0",
    ]
    command = [
        "nanochat.train",
        "+phase=base",
        "trainer=cpu",
        "compute.precision=fp32",
        "compute.compile=false",
        *mine,
        "batch_tokens=1024",
    ]
    done = processes.run(
        [*command, begin, "max_steps=2", "run_name=begun"], env=environment(shared_base)
    )
    assert done.returncode == 0, done.stderr
