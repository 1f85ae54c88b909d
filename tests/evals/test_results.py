"""Results are kept with what they depend on: asked again they cost nothing,
interrupted they go on."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.evals.test_core import bundle as bundle
from tests.test_additions import save_untrained

from nanochat.checkpoint import folder
from nanochat.checkpoint.runs import RunCheckpoints
from nanochat.evals.core.core import Core
from nanochat.evals.evaluation import Context, Evaluation, Result
from nanochat.evals.items import Item
from nanochat.evals.results import Keeper, checkpoint_hash, differences, read_results
from nanochat.evals.subject import Subject

SETTINGS = {"_target_": "counting", "every": None, "first": 4}


class Counting(Evaluation):
    """Four questions; stops after `before`."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.before = 3

    def __call__(self, context: Context) -> Result:
        context.expect(4)
        for index in range(4):
            if ("counting", index) in context.recorded:
                continue
            if index == self.before:
                raise KeyboardInterrupt
            self.asked.append(index)
            context.record(Item("counting", index, "", (), "", "", 1.0, {"nats": (float(index),)}))
        return {"counted": 4.0, "lines": ["a"]}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "run/checkpoints/step_000001"
    save_untrained(path)
    return path


def subject(checkpoint: Path, **how: object) -> Subject:
    def no_text(*given: object) -> None:
        pytest.fail("no text is read")

    return Subject(str(checkpoint), no_text, "cpu", "fp32", **how)  # type: ignore[arg-type]


def test_what_was_interrupted_goes_on_and_what_is_done_is_read(checkpoint: Path) -> None:
    counting = Counting()
    with pytest.raises(KeyboardInterrupt):
        subject(checkpoint).evaluated("counting", counting, SETTINGS)
    [part] = (checkpoint / "evals").iterdir()
    part.write_text(part.read_text()[:-30])  # killed while it wrote the third
    assert read_results(checkpoint) == []
    counting.before = 4
    found = subject(checkpoint).evaluated("counting", counting, SETTINGS)
    assert counting.asked == [0, 1, 2, 2, 3]
    again = subject(checkpoint)
    stored = again.evaluated("counting", counting, SETTINGS)
    assert stored.results == found.results == {"counted": 4.0, "lines": ["a"]}
    assert counting.asked == [0, 1, 2, 2, 3] and "opened" not in vars(again)
    [kept] = read_results(checkpoint)
    assert [item.index for item in kept.items] == [0, 1, 2, 3] and kept == stored
    assert kept.path.with_suffix(".csv").read_text().splitlines() == ["number,value", "counted,4.0"]
    assert len(list((checkpoint / "evals").iterdir())) == 3


def test_another_setting_version_or_dtype_is_another_passport(checkpoint: Path) -> None:
    counting, one = Counting(), subject(checkpoint)
    first = one.passport(counting, SETTINGS)
    assert first == one.passport(counting, {**SETTINGS, "every": 5})
    assert differences([first, {**first, "checkpoint": "other"}]) == []
    assert differences([first, one.passport(counting, {**SETTINGS, "first": 3})]) == ["settings"]
    assert differences([first, replace(one, precision="bf16").passport(counting, SETTINGS)]) == [
        "dtype"
    ]
    counting.version = 2
    assert differences([first, one.passport(counting, SETTINGS)]) == ["version"]


def test_kept_results_are_no_part_of_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    before = checkpoint_hash(checkpoint)
    keeper = Keeper(checkpoint, "bpb", {"a": 1})
    assert keeper.keep({"bpb": 1.5}, 0.1) is None
    assert folder.problem(checkpoint) is None and checkpoint_hash(checkpoint) == before
    checkpoints = RunCheckpoints(checkpoint.parent, keep_last=1)
    save_untrained(checkpoints.path(2))
    checkpoints.prune()
    assert checkpoints.steps() == [2] and not checkpoint.exists()
    missing = Keeper(tmp_path / "gone", "bpb", {}).keep({}, 0)
    assert missing is not None and "cannot be written, so results are not kept" in missing


def assert_kept_is_that_of_this_process(checkpoint: Path, bundle: Path) -> None:
    """Numbers and decisions of CORE that a command kept, against an evaluation made here."""
    [kept] = read_results(checkpoint)
    one, items = subject(checkpoint), []
    context = Context(one.opened.gpt, one.opened.tokenizer, dict, record=items.append)
    assert kept.results == Core(str(bundle))(context)
    mine = {(item.task, item.index): item.correct for item in items}
    assert {(item.task, item.index): item.correct for item in kept.items} == mine


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_where_it_was(checkpoint: Path, tmp_path: Path) -> None:
    """A SIGKILL to the command while it asks 2,000 questions; the same command again asks the
    others only, and the numbers are those of an evaluation in this process."""
    bundle = many_questions(tmp_path / "many", 2000)
    words = [f"ckpt={checkpoint}", "evals=core", f"evals.core.bundle={bundle}", "device=cpu"]
    command = [sys.executable, "-m", "nanochat.evaluate", *words, "precision=fp32"]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (parts := [p for p in checkpoint.glob("evals/*.part0") if p.stat().st_size]):
        assert killed.poll() is None, "it ended before anything was recorded"
        time.sleep(0.002)
    killed.kill()
    killed.wait()
    before = parts[0].read_text().count("\n")
    assert 0 < before < 2000 and read_results(checkpoint) == []
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_kept_is_that_of_this_process(checkpoint, bundle)
    assert not list(checkpoint.glob("evals/*.part*"))


def many_questions(path: Path, count: int) -> Path:
    """A bundle of one task."""
    (path / "eval_data").mkdir(parents=True)
    rows = [{"query": f"{i} is", "choices": ["odd", "even"], "gold": i % 2} for i in range(count)]
    (path / "eval_data/it.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"label": "it", "dataset_uri": "it.jsonl", "num_fewshot": [1]}
    task["icl_task_type"] = "multiple_choice"
    (path / "core.yaml").write_text(json.dumps({"icl_tasks": [task]}))
    (path / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nit,50\n")
    return path


@pytest.mark.slow
def test_two_processes_give_the_items_of_one(checkpoint: Path, bundle: Path) -> None:
    """By the command, as a user types it."""
    words = [f"ckpt={checkpoint}", "evals=core", f"evals.core.bundle={bundle}", "processes=2"]
    command = [sys.executable, "-m", "nanochat.evaluate", *words, "precision=fp32", "device=cpu"]
    done = subprocess.run(command, env={**os.environ}, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("core/boolq: ") == 1, (
        done.stdout + done.stderr
    )
    assert_kept_is_that_of_this_process(checkpoint, bundle)
