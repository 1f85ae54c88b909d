"""Phase rl as a user runs it: a small network learns to write a letter, is killed and resumed, runs
on two processes, and tells what it does."""

import csv
import filecmp
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nanochat.checkpoint import folder
from nanochat.checkpoint.runs import RunCheckpoints
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer.tokenizer import BPETokenizer
from tests import processes
from tests.train.conftest import environment, the_run

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
# what makes a run of seconds: 4 questions of a word, 8 answers of up to 12 bytes, rewarded for the
# letter e
QUICK = [
    "+phase=rl",
    "task=simple_spelling",
    "task.path=library",
    "task.size=40",
    "trainer=cpu",
    "compute.precision=fp32",
    "rollout.questions=4",
    "rollout.samples=8",
    "rollout.max_tokens=12",
    "rollout.top_k=20",
    "rollout.tools=false",
    "rewards.answer._target_=rollouts.letters_e",
    "+rewards.answer._partial_=true",
    "~rewards.answer.grader",
    "evals.pass_at_k.limit=8",
    "evals.pass_at_k.samples=2",
    "progress=lines",
    "preflight.questions=4",
    "force=true",
    "sample.prompts=[]",
    "save_every=3",
    "eval_every=6",
    "max_steps=7",
    "checkpoints.keep_last=4",
    "optim.schedule.init_lr_frac=0.3",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rl")


@pytest.fixture(scope="module")
def ckpt(base: Path) -> Path:
    tokenizer = BPETokenizer([])
    gpt = GPT.build(GPTConfig(64, tokenizer.vocab_size, 2, 2, 2, 64))
    with torch.no_grad():
        for p in gpt.parameters():
            p.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    folder.save(
        base / "start",
        gpt.state_dict(),
        gpt.config,
        tokenizer,
        lineage={"config": {"phase": "sft"}},
    )
    return base / "start"


def words_of(ckpt: Path, name: str, *words: str) -> list[str]:
    return ["nanochat.train", *QUICK, f"init_from={ckpt}", f"run_name={name}", *words]


def where(base: Path) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "tests/rl"), str(ROOT / "tests/inference")])
    return environment(base, PYTHONPATH=path)


@pytest.fixture(scope="module")
def rl(base: Path, ckpt: Path):
    def call(name: str, *words: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
        done = processes.run(words_of(ckpt, name, *words), env=where(base))
        assert done.returncode == code, (
            f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
        return done

    return call


# two updates per rollout: a save at step 3 is between them
TWICE = ["algo=dapo", "algo.minibatches=2", "algo.kl=0.01", "algo.refill=1"]


@pytest.fixture(scope="module")
def whole(rl, base: Path) -> Path:
    rl("whole", *TWICE)
    return the_run(base, "whole")


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["train/loss"]]


def rollouts(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "rollouts.jsonl").read_text().split("\n") if line]


def last(run: Path) -> Path:
    checkpoints = RunCheckpoints(run / "checkpoints")
    return checkpoints.path(checkpoints.steps()[-1])


def test_it_learns_and_tells_what_it_does(rl, base: Path) -> None:
    done = rl("learns", "max_steps=25", "eval_every=25", "save_every=25", "preflight.questions=6")
    run = the_run(base, "learns")
    rows = metrics(run)
    rewards = [float(row["rl/reward"]) for row in rows]
    assert sum(rewards[-5:]) > 3 * sum(rewards[:5])
    assert float(rows[-1]["rl/entropy"]) < float(rows[0]["rl/entropy"])
    assert max(float(row["rl/logprob_gap_max"]) for row in rows) < 1e-5
    for key in (
        "rl/pass@1",
        "rl/pass@8",
        "rl/dead_groups",
        "rl/truncated",
        "rl/gradient_norm",
        "rl/clipped",
        "seconds/rollout",
        "seconds/reward",
        "seconds/update",
        "memory/rollout_gib",
        "memory/reward_gib",
        "memory/update_gib",
        "rl/reward_answer",
        "rl/length",
    ):
        assert all(row[key] for row in rows), key
    told = rollouts(run)
    assert len(told) == 25 * 4 * 8 and {row["step"] for row in told} == set(range(1, 26))
    for row in told[:64]:
        assert row["reward"] == row["rewards"]["answer"] and row["prompt"].startswith(
            "<|bos|><|user_start|>Spell the word: "
        )
        assert (
            row["finish_reason"] in ("stop", "length")
            and row["logprobs"]["min"] <= row["logprobs"]["mean"] <= 0
        )
    groups = [told[i : i + 8] for i in range(0, len(told), 8)]
    assert all(abs(sum(row["advantage"] for row in group)) < 1e-9 for group in groups)
    assert "| step | question |" in (run / "samples/step_000001.md").read_text()
    assert (
        "go or no-go" in done.stdout and "agreement" in done.stdout and "reward 0." in done.stdout
    )
    assert json.loads((run / "preflight.json").read_text())["numbers"]["logprob_gap"] < 1e-5
    held_out = json.loads((last(run) / "metrics.json").read_text())
    assert {"val/pass@1", "val/pass@2", "val/greedy_accuracy", "val/error"} <= held_out.keys()


def test_wandb_gets_the_table_of_samples_that_the_run_folder_has(rl, base: Path) -> None:
    rl(
        "tracked",
        "logger=wandb",
        "logger.wandb.offline=true",
        "max_steps=1",
        "save_every=1",
        "eval_every=1",
    )
    run = the_run(base, "tracked")
    (file,) = (run / "wandb").glob("offline-run-*/files/media/table/samples_*.table.json")
    table = json.loads(file.read_text())
    told = [[row[column] for column in table["columns"]] for row in rollouts(run)]
    assert table["columns"][:4] == ["step", "question", "prompt", "completion"]
    assert table["data"] and all(row in told for row in table["data"])
    assert len(table["data"]) == len((run / "samples/step_000001.md").read_text().splitlines()) - 2


@pytest.mark.parametrize("after", [3, 6])
def test_killed_it_ends_as_one_that_was_not(
    after: int, whole: Path, rl, base: Path, ckpt: Path
) -> None:
    """Also where a checkpoint lies between two updates on the same answers (3)."""
    name = f"killed-{after}"
    command = [sys.executable, "-m", *words_of(ckpt, name, *TWICE)]
    process = subprocess.Popen(
        command, env=where(base), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 90
    while process.poll() is None and time.monotonic() < deadline:
        if list((base / "runs" / name).glob(f"*/checkpoints/step_{after:06d}")):
            break
        time.sleep(0.005)
    process.kill()
    process.wait()
    mine = the_run(base, name)
    assert RunCheckpoints(mine / "checkpoints").steps()[-1] < 7
    done = rl(name, *TWICE, "resume=auto")
    assert "resuming" in done.stdout and "go or no-go" not in done.stdout
    assert filecmp.cmp(
        last(mine) / "model.safetensors", last(whole) / "model.safetensors", shallow=False
    )
    assert rollouts(mine) == rollouts(whole)
    keys = ("train/loss", "rl/reward", "rl/kl", "rl/clipped", "rl/entropy")
    assert [[row[key] for key in keys] for row in metrics(mine)] == [
        [row[key] for key in keys] for row in metrics(whole)
    ]


@pytest.mark.parametrize(
    "more",
    [
        ["trainer.devices=2"],
        ["data.micro_tokens=90"],
        ["trainer.strategy=fsdp", "trainer.devices=2", "data.micro_tokens=90"],
    ],
)
def test_how_a_step_is_split_changes_nothing(more: list[str], rl, base: Path) -> None:
    """Two processes, or micro-batches of a few answers, of which one process may have more: the
    same answers, and two updates on them but for sums in another order."""
    name = more[0].replace(".", "-").replace("=", "-")
    rl(name, *TWICE, *more, "max_steps=2", "save_every=1")
    rl(f"{name}-plain", *TWICE, "max_steps=2")
    other, mine = the_run(base, f"{name}-plain"), the_run(base, name)
    one, two = folder.read_weights(last(other)), folder.read_weights(last(mine))
    gaps = torch.cat([(one[key] - two[key]).abs().flatten() for key in one])
    # AdamW makes a whole step of a gradient that is rounding alone, whichever weight has it
    assert (gaps > 1e-6).float().mean() < 1e-4
    told = [
        sorted(
            [row["question"], row["sample"], row["completion"], row["reward"], row["advantage"]]
            for row in rollouts(run)
        )
        for run in (mine, other)
    ]
    assert told[0] == told[1] and len(told[0]) >= 32
    for key in ("train/loss", "rl/entropy", "rl/kl", "rl/gradient_norm"):
        assert [float(row[key]) for row in metrics(mine)] == pytest.approx(
            [float(row[key]) for row in metrics(other)], rel=1e-3, abs=1e-5
        )
    # as if killed before the second update on the same answers: every process goes on with its own
    # share of them
    shutil.rmtree(last(mine))
    done = rl(name, *TWICE, *more, "max_steps=2", "save_every=1", "resume=auto")
    assert "resuming" in done.stdout
    resumed = folder.read_weights(last(mine))
    assert RunCheckpoints(mine / "checkpoints").steps()[-1] == 2 and all(
        torch.equal(two[key], resumed[key]) for key in two
    )


def test_steps_without_a_signal_move_nothing_where_dead_groups_are_left_out(
    rl, base: Path, ckpt: Path
) -> None:
    words = [
        "algo=dapo",
        "algo.refill=1",
        "+reward@rewards.length=length",
        "rewards.length.free=100",
        "rewards.length.longest=200",
    ]
    done = rl("dead", *words, "rewards.answer.weight=0", "max_steps=3")
    run = the_run(base, "dead")
    before, after = folder.read_weights(ckpt), folder.read_weights(last(run))
    assert all(torch.equal(before[key], after[key]) for key in before) and len(metrics(run)) == 3
    assert "entropy not known: no signal" in done.stdout and len(rollouts(run)) == 3 * 2 * 4 * 8


def test_lines_after_the_step_resumed_from_go_and_strange_characters_stay(tmp_path: Path) -> None:
    from nanochat.callbacks.rollouts import forget_after

    rows = [{"step": step, "completion": f"a\u2028b\x85{step}"} for step in (1, 2, 3)]
    file = tmp_path / "rollouts.jsonl"
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text(text + '{"step": 1, "half', encoding="utf-8")
    forget_after(file, 2)
    assert [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]] == rows[
        :2
    ]


def test_what_cannot_work_is_one_line(rl) -> None:
    for words, reason in (
        (["init_from=null"], "phase rl starts from a checkpoint; add init_from=RUN@latest"),
        (
            ["rollout.samples=1"],
            "rollout.samples=1 must be a whole number from 2 up; try rollout.samples=2",
        ),
        (
            ["rollout=null"],
            "rollout must be a group of settings; set one of it, as rollout.max_tokens=…",
        ),
        (["rollout.temperature=0"], "rollout.temperature=0 must be a number above 0"),
        (
            ["rollout.max_tokens=64"],
            "rollout.max_tokens=64 leaves no room for a question in the model's context of 64",
        ),
        (
            ["algo=ppo"],
            "algo=ppo is not known; choose from: dapo, dr_grpo, grpo, nanochat, reinforce",
        ),
        (["algo.clip=0.2"], "algo.clip is not a setting; did you mean algo.clip_"),
        (["algo.kl=-1"], "algo.kl=-1"),
        (
            ["algo=nanochat", "rollout.samples=12"],
            "rollout.samples=12 is not a multiple of algo.pass_rows=8",
        ),
        (
            ["plan.ratio=5"],
            (
                "plan.ratio=5 cannot take effect: data.num_epochs or max_steps set the length of a "
                "run on questions"
            ),
        ),
        (
            ["batch_tokens=512"],
            "batch_tokens=512 cannot take effect: rollout.questions and rollout.samples",
        ),
        (["compute.compile=true"], "compute.compile=true cannot take effect"),
        (
            ["rollout.questions=100", "max_steps=null"],
            "less than one step of rollout.questions=100",
        ),
        (["rewards.answer.weight=0"], "no reward has a weight"),
    ):
        done = rl("wrong", *words, code=2)
        said = processes.complaints(done.stderr)
        assert reason in said and len(said.strip().splitlines()) == 1, said


def test_it_refuses_to_begin_where_nothing_can_be_learned(rl, base: Path) -> None:
    done = rl("refused", "force=false", "rewards.answer.weight=1.0", code=2)
    assert (
        processes.complaints(done.stderr).startswith("error: no-go: ")
        and "force=true trains all the same" in done.stderr
    )
    assert (
        "recommendation: no-go, because of " in done.stdout
        and len(processes.complaints(done.stderr).strip().splitlines()) == 1
    )
    assert not RunCheckpoints(the_run(base, "refused") / "checkpoints").steps()
