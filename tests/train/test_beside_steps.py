"""What is kept out of the steps of training: the writing of checkpoints, garbage collection."""

import errno
import filecmp
import gc
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from nanochat.callbacks.save import Save
from nanochat.checkpoint import folder as checkpoint_folder
from nanochat.checkpoint.runs import RunCheckpoints
from nanochat.modules.next_token import NextTokenModule
from tests.train.conftest import losses
from tests.train.running import trained

pytestmark = pytest.mark.slow  # runs of seconds
BEHIND = "checkpoints.asynchronous=true"


@pytest.fixture
def base(shared_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(shared_base))
    return shared_base


def test_checkpoints_written_while_training_goes_on_are_the_same(
    base: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first write lasts until three more steps are made, whose changes must not be in it."""
    words = ["save_every=1", "eval_every=4", "checkpoints.keep_last=null"]
    plain = trained(base, corpus, "run_name=plain", *words).path
    write, calls = checkpoint_folder.save, []
    more_steps = threading.Event()

    def slow(path: Path, *args: Any) -> None:
        calls.append(threading.current_thread().name)
        if len(calls) == 1:
            assert more_steps.wait(60)
        write(path, *args)

    loss, seen = NextTokenModule.micro_loss, []

    def counted(module: NextTokenModule, batch: dict[str, Any]) -> Any:
        seen.append(module.number)
        if module.number == 4:
            more_steps.set()
        return loss(module, batch)

    monkeypatch.setattr(checkpoint_folder, "save", slow)
    monkeypatch.setattr(NextTokenModule, "micro_loss", counted)
    words[0] = "save_every=3"  # the first at step 3; its write ends after step 4 has begun
    mine = trained(base, corpus, "run_name=behind", *words, BEHIND).path
    assert len(calls) == 2 and all(name.startswith("checkpoint") for name in calls)
    assert losses(mine) == losses(plain)
    for step in (3, 6):
        one, two = (RunCheckpoints(run / "checkpoints").path(step) for run in (plain, mine))
        for name in ("model.safetensors", "trainer/optim-00000.safetensors"):
            assert filecmp.cmp(one / name, two / name, shallow=False), (step, name)
        assert checkpoint_folder.problem(two, state=True) is None
    assert RunCheckpoints(mine / "checkpoints").metrics(6)["val/bpb"] > 0


def test_a_write_that_fails_ends_the_run_with_its_line(
    base: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the next save alone: after the step that runs when it has failed."""
    write, loss = checkpoint_folder.save_file, NextTokenModule.micro_loss

    def full(tensors: Any, file: Path, **more: Any) -> None:
        if "step_000006" in str(file):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(tensors, file, **more)

    def late(module: NextTokenModule, batch: dict[str, Any]) -> Any:
        if module.number == 8:
            (save,) = (c for c in module.trainer.callbacks if isinstance(c, Save))
            while not save.checkpoints.failed:
                time.sleep(0.01)
        return loss(module, batch)

    monkeypatch.setattr(checkpoint_folder, "save_file", full)
    monkeypatch.setattr(NextTokenModule, "micro_loss", late)
    words = ["run_name=full", "max_steps=12", "save_every=3", "eval_every=null"]
    with pytest.raises(OSError, match=r"no space left .* while writing step_000006.*resume=auto"):
        trained(base, corpus, *words, BEHIND)
    (run,) = (base / "runs" / "full").iterdir()
    assert RunCheckpoints(run / "checkpoints").steps() == [3]
    assert max(losses(run)) in (7, 8), "the next save comes at 9"
    assert not list((run / "checkpoints").glob(".writing*"))


def test_the_garbage_collector_runs_between_steps_alone(
    base: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, step, found = NextTokenModule.micro_loss, [0], {}

    def marked(module: NextTokenModule, batch: dict[str, Any]) -> Any:
        step[0] = module.number
        value = loss(module, batch)
        step[0] = 0
        return value

    def count(phase: str, info: dict[str, Any]) -> None:
        found[step[0]] = found.get(step[0], 0) + (phase == "start")

    monkeypatch.setattr(NextTokenModule, "micro_loss", marked)
    before = gc.get_threshold()
    gc.set_threshold(20)  # dozens in a step
    gc.callbacks.append(count)
    try:
        trained(base, corpus, "run_name=garbage", "eval_every=3")
    finally:
        gc.callbacks.remove(count)
        gc.set_threshold(*before)
    assert found.pop(0) > 0 and found.keys() == {1}, "in the loss of the first step, and elsewhere"
    assert gc.isenabled() and gc.get_freeze_count() == 0
