"""The table for people who come from nanochat: every line of it works here."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests.configs.test_every_yaml import composed

from nanochat import evaluate
from nanochat.commands.app import as_typed
from nanochat.commands.schema import settings_of
from nanochat.interop import habits
from nanochat.runtime.settings import check

ROOT = Path(__file__).parents[2]
TRIED = {
    "evals=": "gsm8k",
    "window_pattern": "SSL",
    "host=": "0.0.0.0",
    "precision={}": "fp32",
    "num_shards": "8",
    "prompt=": "Why is the sky blue?",
    "warmdown_frac": "0.5",
    "init_lr_frac": "0.5",
    "final_lr_frac": "0.1",
    "run_name": "mine",
    "weight_decay": "0.1",
    "ckpt={}": "sft",
    "init_from={}": "sft",
    "batches": "1,8",
}


def lines() -> list[str]:
    found = []
    for script, entry in habits.table().items():
        found.append(habits.translate(script, [])[0])
        for name, template in entry["flags"].items():
            if template is None:
                assert entry["why"][name], f"{script} {name}: no counterpart and no reason"
                continue
            values = list(template) if isinstance(template, dict) else [value_for(template)]
            found += [
                habits.translate(script, [f"{habits.dashed(name)}={value}"])[0] for value in values
            ]
    return sorted(set(found))


def value_for(template: str) -> str:
    return (
        "cpu"
        if template == "device={}"
        else next((v for part, v in TRIED.items() if part in template), "4")
    )


@pytest.mark.slow
@pytest.mark.parametrize("line", lines())
def test_every_line_of_the_right_column_composes(line: str) -> None:
    _, _, module, *words = shlex.split(line)
    command = module.removeprefix("nanochat.")
    words = [as_typed(word) for word in words]
    values = composed(*(evaluate.named(words) if command == "evaluate" else words), name=command)
    check(values, settings_of(command, values))


def test_what_is_typed_is_what_is_set() -> None:
    line, notes = habits.translate(
        "scripts.base_train",
        shlex.split(
            "-- --depth=12 --run d12 --device_batch_size 16 --fp8 --core-metric-every=-1 "
            "--fp8-recipe=rowwise"
        ),
    )
    assert line == (
        "python -m nanochat.train +phase=base model.depth=12 logger=wandb run_name=d12 "
        "data.rows_per_device=16 compute.fp8=true"
    )
    assert notes == [
        "--fp8-recipe: compute.fp8=true has one scale for each matrix (tensorwise), and there is "
        "no other"
    ]
    config = composed(*line.split()[3:])
    assert (config["model"]["depth"], config["data"]["rows_per_device"], config["run_name"]) == (
        12,
        16,
        "d12",
    )
    line, _ = habits.translate("scripts.chat_eval", shlex.split("-i rl -a ARC-Easy|GSM8K -x 50"))
    assert line == (
        "python -m nanochat.evaluate ckpt=rl-d20@latest evals=arc_easy,gsm8k evals.tasks.limit=50"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["scripts.base_train", "--", "--depth=4"],
            "here: python -m nanochat.train +phase=base model.depth=4",
        ),
        (["scripts.nothing"], "scripts.nothing is not a script of nanochat"),
        (
            ["nanochat.train", "--depth=4", "--run=x"],
            "here: python -m nanochat.train +phase=base model.depth=4 logger=wandb run_name=x",
        ),
        (
            ["nanochat.train", "+phase=sft", "--", "--mmlu-epochs=2"],
            "+phase=sft init_from=base-d20@latest data.train_tasks.mmlu.repeat=2",
        ),
    ],
)
def test_the_habit_is_answered_in_one_line(words: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1, (
        done.stderr
    )


def test_the_page_is_current() -> None:
    assert (ROOT / "docs" / "from-nanochat.md").read_text(
        encoding="utf-8"
    ) == habits.habits_markdown()
