"""`experiment=gpt2_finetune` from a GPT-2 in the hub's layout: killed and resumed it ends as one
that was left alone, bit for bit."""

import filecmp
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gpt2_files import write_gpt2
from tests import processes
from tests.train.conftest import environment, losses, make_corpus, the_run

from nanochat.checkpoint.runs import RunCheckpoints

pytestmark = pytest.mark.slow
STEPS = 14


def test_fine_tuning_that_was_killed_ends_the_same(tmp_path: Path) -> None:
    source, text = write_gpt2(tmp_path / "gpt2"), tmp_path / "input.txt"
    made = (make_corpus(tmp_path / "made", documents=60) / "text.jsonl").read_text()
    text.write_text("\n".join(json.loads(line)["text"] for line in made.splitlines()))
    words = [
        *("experiment=gpt2_finetune", f"init_from=hf:{source}", f"data.path={text}"),
        *("trainer=cpu", "batch_tokens=2048", "data.rows_per_device=4", f"max_steps={STEPS}"),
        *("save_every=2", "eval_tokens=2048", "sample.max_tokens=8", "compute.precision=fp32"),
        *("compute.compile=false", "data.num_workers=0", "data.prepare_workers=0"),
    ]
    env = environment(tmp_path / "base")

    def train(name: str) -> "subprocess.CompletedProcess[str]":
        given = ["nanochat.train", *words, f"run_name={name}", "resume=auto"]
        done = processes.run(given, env=env)
        assert done.returncode == 0, done.stderr
        return done

    train("whole")
    command = [sys.executable, "-m", "nanochat.train", *words, "run_name=killed", "resume=auto"]
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    deadline, steps = time.monotonic() + 300, []
    while not steps and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
        places = list((tmp_path / "base" / "runs" / "killed").glob("*/checkpoints"))
        steps = RunCheckpoints(places[0]).steps() if places else []
    process.kill()
    process.wait()
    assert steps and steps[-1] < STEPS, "it was killed in the middle"
    assert "resum" in train("killed").stdout
    mine, whole = (the_run(tmp_path / "base", name) for name in ("killed", "whole"))
    assert losses(mine) == losses(whole) and len(losses(whole)) == STEPS
    weights = f"checkpoints/step_{STEPS:06d}/model.safetensors"
    assert filecmp.cmp(mine / weights, whole / weights, shallow=False)
    assert float(losses(whole)[STEPS]) < float(losses(whole)[1])
