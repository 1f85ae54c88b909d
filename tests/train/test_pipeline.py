"""Several commands under one name: stopped, repeated, tried dry."""

import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat import evaluate
from nanochat.checkpoint.runs import RunCheckpoints
from nanochat.commands.configs import choices
from nanochat.pipeline import words_of
from tests import processes
from tests.configs.test_every_yaml import composed
from tests.train.conftest import environment

pytestmark = pytest.mark.slow
COMMAND, STEPS = "nanochat.pipeline", 30


@pytest.fixture
def words(tmp_path: Path, tiny: list[str]) -> list[str]:
    """The words of a pipeline of two phases and a sample, in a folder of configs."""
    of_parent = ("model", "tokenizer")
    again = [word for word in tiny if not word.startswith(of_parent)]
    lines = {
        "base": f"train {shlex.join(tiny)} run_name=one",
        "more": f"train {shlex.join(again)} run_name=two init_from=one@latest max_steps={STEPS}",
        "look": "sample ckpt=two@latest start=the max_tokens=3",
    }
    folder = tmp_path / "conf/pipeline"
    folder.mkdir(parents=True)
    yaml = "stages:\n" + "".join(f"  {name}: {line!r}\n" for name, line in lines.items())
    (folder / "tiny.yaml").write_text(yaml)
    return ["--config-dir", str(tmp_path / "conf"), "pipeline=tiny"]


def test_a_stopped_pipeline_goes_on_where_it_was(words: list[str], tmp_path: Path) -> None:
    given = [*words, "--", "base:max_steps=4", "save_every=5"]
    process = subprocess.Popen(
        [sys.executable, "-m", COMMAND, *given],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
    )
    second = RunCheckpoints(tmp_path)
    deadline = time.monotonic() + 300
    while len(second.steps()) < 1 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
        for found in (tmp_path / "runs/two").glob("*/checkpoints"):
            second = RunCheckpoints(found)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert said.endswith("error: SIGTERM ended the pipeline; the same command continues\n"), said
    assert "Traceback" not in said and "[3/3]" not in said
    done = second.steps()[-1]
    assert done < STEPS

    again = processes.run([COMMAND, *given], env=environment(tmp_path), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "this run is finished" in again.stdout and f"after step {done}" in again.stdout
    assert second.steps()[-1] == STEPS
    assert again.stdout.splitlines()[-1].startswith("the")


@pytest.mark.parametrize("name", choices("pipeline"))
def test_every_pipeline_names_commands_and_configs_that_are_there(name: str) -> None:
    stages = composed(f"pipeline={name}", name="pipeline")["pipeline"]["stages"]
    for stage in stages.values():
        command, *words = words_of(stage if isinstance(stage, str) else stage["run"], [])
        if command == "evaluate":
            words = evaluate.named(words)
        elif command == "report":
            words = [word for word in words if not word.startswith("ask=")]  # may be repeated
        composed(*words, name=command)


def test_a_dry_run_says_what_is_planned_later(tmp_path: Path) -> None:
    given = ["pipeline=speedrun", "dry_run=true", "--", "base:model=d20"]
    done = processes.run([COMMAND, *given], env=environment(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "20 layers" in done.stdout and "planned when speedrun@latest is there" in done.stdout
    assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("bas:model=d4", "bas:model=d4 is for no stage; choose from base, base_scores, sft"),
        ("model=d99x", "model=d99x is not known"),
    ],
)
def test_a_wrong_word_is_one_line(word: str, said: str, tmp_path: Path) -> None:
    given = ["pipeline=speedrun", "dry_run=true", "--", word]
    done = processes.run([COMMAND, *given], env=environment(tmp_path), cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert said in done.stderr + done.stdout


def test_the_d34_recipe_is_mid_and_then_sft_with_rows_that_fit() -> None:
    """The original trained d34 with 4 rows in 69.8 GB (facts sheet 6.5)."""
    first = composed("experiment=d34_chat")
    second = composed("experiment=d34_sft")
    assert [one["phase"] for one in (first, second)] == ["mid", "sft"]
    assert first["init_from"] == "karpathy/nanochat-d34"
    assert second["init_from"] == f"{first['run_name']}@latest"
    assert {one["data"]["rows_per_device"] for one in (first, second)} == {4}
    assert second["trainer"]["devices"] == 1
