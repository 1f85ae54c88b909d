"""Midtraining and SFT as a user runs them: a chain of phases, what each inherits, kill and resume,
two processes, wrong settings."""

import filecmp
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat.checkpoint.runs import RunCheckpoints
from tests import processes
from tests.train.conftest import environment, losses, the_run

pytestmark = pytest.mark.slow
# what makes a run of seconds; sizes and tokenizer come from the checkpoint
QUICK = [
    "trainer=cpu",
    "data.num_workers=0",
    "data.prepare_workers=0",
    "compute.compile=false",
    "sample.prompts=[]",
    "progress=lines",
    "save_every=3",
    "eval_every=6",
    "checkpoints.keep_last=3",
]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("talks") / "own.jsonl"
    with file.open("w") as out:
        for i in range(300):
            turns = [("user", f"the river {i % 17}"), ("assistant", f"a stone house {i % 5}")]
            if i % 4 == 0:
                turns += (
                    [("user", "and"), ("assistant", "great old light " * (i % 9))] if i % 9 else []
                )
            out.write(
                json.dumps([{"role": role, "content": content} for role, content in turns]) + "\n"
            )
    return file


@pytest.fixture(scope="module")
def chat(talks: Path, shared_base: Path) -> Run:
    """Run a chat phase on the small file; the process must end with `code`."""

    def call(*words: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
        command = ["nanochat.train", *QUICK, "data=jsonl", f"data.path={talks}", *words]
        done = processes.run(command, env=environment(shared_base))
        assert done.returncode == code, (
            f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
        return done

    return call


@pytest.fixture(scope="module")
def base(train: Run, shared_base: Path) -> Path:
    train("run_name=chat-base", "max_steps=6", "batch_tokens=512", "optim.groups.matrix.lr=0.03")
    return the_run(shared_base, "chat-base")


@pytest.fixture(scope="module")
def mid(chat: Run, base: Path, shared_base: Path) -> Path:
    words = ["+phase=mid"]
    done = chat(*words, "run_name=chat-mid", "init_from=chat-base@latest", "data.num_epochs=2")
    assert "2 epochs of" in done.stdout and "0.03 (muon)" in done.stdout
    return the_run(shared_base, "chat-mid")


SFT = ["+phase=sft", "init_from=chat-mid@latest", "data.num_epochs=3"]


@pytest.fixture(scope="module")
def sft(chat: Run, mid: Path, shared_base: Path) -> Path:
    chat(*SFT, "run_name=chat-sft")
    return the_run(shared_base, "chat-sft")


def last(run: Path) -> Path:
    checkpoints = RunCheckpoints(run / "checkpoints")
    return checkpoints.path(checkpoints.steps()[-1])


def lineage(run: Path) -> dict:
    return json.loads((last(run) / "lineage.json").read_text())


def test_each_phase_learns_and_says_where_it_comes_from(base: Path, mid: Path, sft: Path) -> None:
    for run, parent in ((mid, base), (sft, mid)):
        told = lineage(run)
        assert Path(told["parent"]["path"]) == last(parent)
        assert told["data"]["tasks"]["train"]["own"]["held_out"] == 0.05
    learnt = [float(loss) for loss in losses(mid).values()]
    assert learnt[-1] < learnt[0] - 0.5
    assert float(losses(sft)[1]) < learnt[0] - 0.5, "it goes on from the weights of its parent"
    tokens = [(last(run) / "tokenizer.json").read_bytes() for run in (base, mid, sft)]
    assert tokens[0] == tokens[1] == tokens[2]


def test_a_phase_inherits_what_the_one_before_had(
    base: Path, mid: Path, sft: Path, chat: Run
) -> None:
    config, plan = lineage(sft)["config"], lineage(sft)["plan"]
    assert config["batch_tokens"] == 512 and config["optim"]["groups"]["matrix"]["lr"] == 0.03
    assert plan["lr_factor"] == 0.5, "the factor of the batch, not 1"
    assert config["optim"]["schedule"]["init_lr_frac"] == 0.8, "the schedule is the phase's own"
    done = chat(
        *SFT, "run_name=other", "batch_tokens=1024", "optim.groups.matrix.lr=0.01", "dry_run=true"
    )
    said = " ".join(done.stdout.replace("│", " ").split())
    assert (
        "batch_tokens 1,024 chosen for this run" in said
        and "optim.groups.matrix.lr 0.01 (muon) chosen for this run" in said
    )
    assert f"optim.groups.head.lr 0.008 (adamw) chat-mid, {last(mid).name}" in said
    done = chat(*SFT, "run_name=other", "optim=adamw", "dry_run=true")
    assert "optim.groups.matrix.lr 0.004 (adamw) chosen for this run" in " ".join(
        done.stdout.replace("│", " ").split()
    )


def test_the_optimizer_goes_on_where_the_parents_stopped(
    mid: Path, chat: Run, shared_base: Path
) -> None:
    done = chat(
        *SFT,
        "run_name=warm",
        "max_steps=1",
        "optim.groups.matrix.lr=0.0",
        "optim.groups.embedding.lr=0.0",
    )
    assert re.search(r"optimizer: the parent's moments for (\d\d) of \1 parameters\n", done.stdout)
    done = chat(*SFT, "run_name=cold", "max_steps=1", "init_optimizer=false")
    assert "moments" not in done.stdout
    warm, cold = (losses(the_run(shared_base, name)) for name in ("warm", "cold"))
    assert warm[1] == cold[1], "the first loss is from before the first update"


def test_sft_without_mid_works_and_says_what_to_expect(base: Path, chat: Run) -> None:
    done = chat("+phase=sft", "init_from=chat-base@latest", "run_name=straight", "max_steps=2")
    assert (
        "note: init_from is a base checkpoint, which was not trained on conversations"
        in done.stdout
    )


def test_the_classic_recipe_gives_each_conversation_a_row(
    mid: Path, chat: Run, shared_base: Path
) -> None:
    done = chat("+phase=sft_classic", "init_from=chat-mid@latest", "max_steps=4", "~evals.tasks")
    assert "2,048 tokens = 4 rows x 64 tokens x 1 processes x 8 accumulated" in done.stdout, (
        "32 conversations a step"
    )
    assert "x 1.0000 for the batch size" in done.stdout
    run = the_run(shared_base, "sft-classic-d2")
    config = lineage(run)["config"]
    assert config["optim"]["schedule"]["init_lr_frac"] == 0.02 and config["phase"] == "sft"
    assert config["optim"]["groups"]["matrix"] == {
        "rule": "muon",
        "lr": 0.02,
        "momentum": 0.95,
        "ns_steps": 5,
        "variant": "classic",
    }
    assert lineage(run)["data"]["packing"] == "single" and len(losses(run)) == 4


@pytest.mark.parametrize("phase", ["mid", "sft"])
def test_killed_it_ends_as_one_that_was_not(
    phase: str, mid: Path, sft: Path, chat: Run, talks: Path, shared_base: Path
) -> None:
    whole, name = {"mid": mid, "sft": sft}[phase], f"chat-killed-{phase}"
    words = (
        SFT if phase == "sft" else ["+phase=mid", "init_from=chat-base@latest", "data.num_epochs=2"]
    )
    command = [
        sys.executable,
        "-m",
        "nanochat.train",
        *QUICK,
        "data=jsonl",
        f"data.path={talks}",
        *words,
        f"run_name={name}",
    ]
    process = subprocess.Popen(
        command, env=environment(shared_base), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 90
    while process.poll() is None and time.monotonic() < deadline:
        if list((shared_base / "runs" / name).glob("*/checkpoints/step_*")):
            break
        time.sleep(0.01)
    process.kill()
    process.wait()
    killed = RunCheckpoints(the_run(shared_base, name) / "checkpoints").steps()
    assert killed and killed[-1] < int(last(whole).name.removeprefix("step_"))
    chat(*words, f"run_name={name}", "resume=auto")
    mine = the_run(shared_base, name)
    assert losses(mine) == losses(whole)
    assert filecmp.cmp(
        last(mine) / "model.safetensors", last(whole) / "model.safetensors", shallow=False
    )


def test_a_run_from_another_checkpoint_is_another_run(
    base: Path, mid: Path, chat: Run, shared_base: Path
) -> None:
    """init_from=RUN@latest is written down as what it was, so resume=auto does not go on with a run
    from an older one."""
    config = lineage(mid)["config"]
    assert config["init_from"] == f"chat-base/{base.name}@6"
    words = ["+phase=mid", "data.num_epochs=2", "run_name=chat-mid", "resume=auto"]
    assert "this run is finished" in chat(*words, "init_from=chat-base@latest").stdout
    older = f"chat-base/{base.name}@5"
    done = chat(*words[:-1], f"resume={mid}", f"init_from={older}", code=2)
    assert f"init_from: chat-base/{base.name}@6 -> {older}" in done.stderr


def test_two_processes_train_as_one(mid: Path, sft: Path, chat: Run, shared_base: Path) -> None:
    chat(*SFT, "run_name=chat-two", "trainer.devices=2")
    one, two = losses(sft), losses(the_run(shared_base, "chat-two"))
    assert sorted(one) == sorted(two), "as many steps on every rank"
    assert all(abs(float(one[step]) - float(two[step])) < 1e-4 for step in one), (
        "sums in another order"
    )


def test_the_answers_of_a_chat_checkpoint(sft: Path, base: Path, shared_base: Path) -> None:
    def talk(*words: str, said: str = "") -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "nanochat.cli", "temperature=0", *words]
        return subprocess.run(
            command,
            env=environment(shared_base),
            input=said,
            capture_output=True,
            text=True,
            timeout=60,
        )

    done = talk("ckpt=chat-sft@latest", "max_tokens=20", said="the river 3\n\nand\n" * 4)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count("you: ") == 8
        and "(the context of 64 tokens is full: the oldest turn is forgotten)" in done.stdout
    )
    assert "a stone house" in done.stdout
    assert talk("ckpt=chat-sft@latest", "prompt=the river, 3", "max_tokens=20").stdout.startswith(
        "a stone house"
    )
    refused = talk("ckpt=chat-base@latest", "prompt=hi")
    assert refused.returncode == 2 and "is a base checkpoint, which does not chat" in refused.stderr


def test_what_cannot_work_is_one_line(base: Path, mid: Path, chat: Run, talks: Path) -> None:
    for words, reason in (
        (["+phase=sft"], "phase sft starts from a checkpoint; add init_from=RUN@latest"),
        (
            [*SFT, "plan.ratio=5"],
            "plan.ratio=5 cannot take effect: data.num_epochs or max_steps set the length",
        ),
        (
            [*SFT, "data.sequence_len=32"],
            "data.sequence_len=32 is not the model's context; set model.sequence_len",
        ),
        (
            [*SFT, "tokenizer.vocab_size=300"],
            "init_from=chat-mid@latest brings its own architecture and tokenizer",
        ),
        ([*SFT, "data.path=/no/such/file.jsonl"], "path=/no/such/file.jsonl is not a file"),
    ):
        done = chat(*words, code=2)
        said = processes.complaints(done.stderr)
        assert reason in said and len(said.strip().splitlines()) == 1, said
    bad = talks.with_name("bad.jsonl")
    bad.write_text(talks.read_text() + '[{"role": "assistant", "content": "x"}]\n')
    done = chat(*SFT, f"data.path={bad}", code=2)
    assert (
        "line 301: message 0 is of assistant where user comes" in done.stderr
        and "data.on_bad=skip" in done.stderr
    )
    done = chat(*SFT, f"data.path={bad}", "data.on_bad=skip", "max_steps=1", "run_name=skips")
    assert "1 │" in done.stdout


def test_paths_of_tasks_are_made_absolute_and_words_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nanochat.train import absolute_paths

    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("a\n")
    config = {
        "data": {
            "train_tasks": {"s": {"path": "words.txt"}, "l": {"path": "library"}, "gone": None},
            "val_tasks": {},
            "rendered_dir": "r",
        },
        "evals": {"tasks": {"of": {"s": {"path": "words.txt"}}}},
    }
    absolute_paths(config)
    here = str(tmp_path / "words.txt")
    assert config["data"]["train_tasks"] == {
        "s": {"path": here},
        "l": {"path": "library"},
        "gone": None,
    }
    assert config["evals"]["tasks"]["of"]["s"]["path"] == here and config["data"][
        "rendered_dir"
    ] == str(tmp_path / "r")
