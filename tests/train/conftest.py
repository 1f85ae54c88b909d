"""A small corpus of made-up sentences, and runs of the real command in processes of their own."""

import csv
import json
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import processes

WORDS = """
the a of and to in river stone house light night small great old green walks sings turns finds holds
under over near before after slowly never often water field road bird child hand door year morning
winter summer letter song
""".split()

# what makes a run of seconds: two layers of width 64, 16 rows of 64 tokens in 4 micro-batches;
# fp32, which all CPUs have
TINY = [
    "+phase=base",
    "model=d2",
    "trainer=cpu",
    "model.head_dim=32",
    "model.aspect_ratio=32",
    "model.sequence_len=64",
    "batch_tokens=1024",
    "data.rows_per_device=4",
    "data.num_workers=0",
    "data.prepare_workers=0",
    "tokenizer.vocab_size=320",
    "compute.compile=false",
    "compute.precision=fp32",
    "save_every=5",
    "eval_every=10",
    "eval_tokens=2048",
    "sample.prompts=[]",
    "progress=lines",
]
STEPS = 24
WHOLE = [f"max_steps={STEPS}", "save_every=3", "eval_every=6", "checkpoints.keep_last=3"]
Train = Callable[..., "subprocess.CompletedProcess[str]"]


def make_corpus(folder: Path, documents: int = 400, seed: int = 0) -> Path:
    """`folder/text.jsonl` with made-up documents of 5 to 60 sentences; the same on every
    machine."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    with (folder / "text.jsonl").open("w") as file:
        for _ in range(documents):
            sentences = [
                " ".join(rng.choice(WORDS) for _ in range(rng.randint(4, 12))) + "."
                for _ in range(rng.randint(5, 60))
            ]
            file.write(json.dumps({"text": " ".join(sentences)}) + "\n")
    return folder


def make_talks(file: Path) -> Path:
    """Forty conversations about sums."""
    with file.open("w") as lines:
        for i in range(40):
            asked = {"role": "user", "content": f"What is {i} + 1?"}
            lines.write(json.dumps([asked, {"role": "assistant", "content": str(i + 1)}]) + "\n")
    return file


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def shared_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One NANOCHAT_BASE_DIR for the runs of this session: the tokenizer and the shards are made
    once."""
    return tmp_path_factory.mktemp("base")


def environment(base: Path, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "NANOCHAT_BASE_DIR": str(base),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        **more,
    }


@pytest.fixture(scope="session")
def tiny(corpus: Path) -> list[str]:
    return [*TINY, "data=local", f"data.path={corpus}"]


@pytest.fixture(scope="session")
def train(shared_base: Path, tiny: list[str]) -> Train:
    """Run `python -m nanochat.train` on the small corpus with more words; the process must end with
    `code`."""

    def call(
        *words: str, code: int = 0, base: Path = shared_base, **more: str
    ) -> subprocess.CompletedProcess[str]:
        done = processes.run(
            ["nanochat.train", *tiny, *words], env=environment(base, **more), cwd=base
        )
        assert done.returncode == code, (
            f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
        return done

    return call


@pytest.fixture(scope="session")
def whole(train: Train, shared_base: Path) -> Path:
    """A run that was not interrupted, which interrupted ones are compared with."""
    train("run_name=whole", *WHOLE)
    return the_run(shared_base, "whole")


def the_run(base: Path, name: str) -> Path:
    """The one run folder of this name."""
    folders = [p.parent for p in (base / "runs" / name).glob("*/config.yaml")]
    assert len(folders) == 1, folders
    return folders[0]


def losses(run: Path) -> dict[int, str]:
    """Step -> loss as it stands in metrics.csv, every digit of it."""
    with (run / "metrics.csv").open(newline="") as file:
        return {
            int(row["step"]): row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]
        }
