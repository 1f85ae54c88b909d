"""`pipeline=speedrun` at the sizes of a laptop: every stage, with data of this machine and without
a network. Killed in its first stage and repeated, it goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat.checkpoint.runs import RunCheckpoints
from tests.train.conftest import TINY, environment, losses, make_talks, the_run

pytestmark = pytest.mark.slow
STEPS = 60
HERE = ("model=", "model.", "tokenizer.", "+phase", "batch_tokens", "trainer=", "data.rows")
BASE = ["model=d2", "model.head_dim=32", "model.aspect_ratio=32", "model.sequence_len=128"]
BASE += [
    "data=local",
    "tokenizer.vocab_size=320",
    "batch_tokens=1024",
    f"max_steps={STEPS}",
    "data.rows_per_device=8",
]
SFT = ["data=jsonl", "max_steps=4", "eval_at_start=false", "init_optimizer=false"]
ONE_TASK = [
    f"~evals.chat.of.{name}" for name in "arc_easy arc_challenge mmlu gsm8k humaneval".split()
]
ONE_TASK += ["evals.chat.of.spelling_bee.path=library", "evals.chat.max_tokens=8", "limit=2"]


def make_bundle(folder: Path) -> Path:
    """A CORE bundle of one task with four items."""
    items = [
        {"query": f"{i} and 1 is", "choices": ["odd", "even"], "gold": i % 2} for i in range(4)
    ]
    (folder / "eval_data").mkdir(parents=True)
    (folder / "eval_data/sums.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    task = {"label": "sums", "dataset_uri": "sums.jsonl", "num_fewshot": [1]}
    tasks = {"icl_tasks": [{**task, "icl_task_type": "multiple_choice"}]}
    (folder / "core.yaml").write_text(json.dumps(tasks))  # JSON is YAML
    (folder / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nsums,50\n")
    return folder


@pytest.fixture
def command(tmp_path: Path, corpus: Path) -> list[str]:
    common = [word for word in TINY if not word.startswith(HERE)]
    words = {
        "base": [*BASE, f"data.path={corpus}"],
        "base_scores": [f"evals.core.bundle={make_bundle(tmp_path / 'bundle')}", "eval_tokens=512"],
        "sft": [*SFT, f"data.path={make_talks(tmp_path / 'talks.jsonl')}"],
        "chat_scores": ONE_TASK,
        "report": ["ask='What is 1 + 1?'"],
    }
    named = [f"{stage}:{word}" for stage, some in words.items() for word in some]
    start = [sys.executable, "-m", "nanochat.pipeline", "pipeline=speedrun", "--"]
    return [*start, "trainer=cpu", *common, "save_every=4", *named]


def test_killed_and_repeated_it_ends_with_a_report(command: list[str], tmp_path: Path) -> None:
    env = environment(tmp_path, HF_HUB_OFFLINE="1", https_proxy="http://127.0.0.1:9")
    with (tmp_path / "first.log").open("w") as said:
        first = subprocess.Popen(
            command, env=env, cwd=tmp_path, stdout=said, stderr=said, start_new_session=True
        )
        saved = RunCheckpoints(tmp_path)
        deadline = time.monotonic() + 600
        while not saved.steps() and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
            for found in (tmp_path / "runs/speedrun").glob("*/checkpoints"):
                saved = RunCheckpoints(found)
        assert first.poll() is None, (tmp_path / "first.log").read_text()[-3000:]
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    done = saved.steps()[-1]
    assert done < STEPS

    again = subprocess.run(
        command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=900
    )
    assert again.returncode == 0, again.stdout[-2000:] + again.stderr[-2000:]
    assert f"after step {done}" in again.stdout and "[5/5] report" in again.stdout
    base, sft = the_run(tmp_path, "speedrun"), the_run(tmp_path, "speedrun-sft")
    assert sorted(losses(base)) == [*range(1, STEPS + 1)] and sorted(losses(sft)) == [1, 2, 3, 4]
    assert list(base.glob("checkpoints/*/evals")) and list(sft.glob("checkpoints/*/evals"))
    page = (sft / "report.md").read_text()
    assert "spelling_bee" in page and "What is 1 + 1?" in page and "core/sums" in page
