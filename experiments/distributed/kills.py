"""SIGKILL to a run of two processes, again and again, some of them while it saves; it then ends as
the run that was left alone.

    python experiments/distributed/kills.py FOLDER cpu_ddp|cpu_fsdp [kills] [setting …]

The runs are the command `python -m nanochat.train … trainer=cpu_ddp resume=auto`; the command and
its ranks are killed together. It appends a row to FOLDER/kills.csv: trainer and settings, kills,
those within a save, largest difference of weights and of optimizer state at the end, steps whose
loss in metrics.csv differs.
"""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments.distributed.equality import COMMON, words_of
from tests.distributed.runs_of_ranks import end_of, gap
from tests.train.conftest import environment, losses, the_run

from nanochat.checkpoint.atomic import TEMPORARY
from nanochat.checkpoint.runs import RunCheckpoints

OTHERWISE = ("trainer=", "save_every", "max_steps", "+optim", "evals")


def start(base: Path, words: list[str]) -> "subprocess.Popen[bytes]":
    """The command in a process group of its own, with what it says in FOLDER/said."""
    said = (base / "said").open("ab")
    command = [sys.executable, "-m", "nanochat.train", *words]
    return subprocess.Popen(
        command, env=environment(base), stdout=said, stderr=said, cwd=base, start_new_session=True
    )


def checkpoints_of(base: Path, name: str) -> Path:
    return next((base / "runs" / name).glob("*/checkpoints"), base / "none yet")


def saves(root: Path) -> bool:
    return any(root.glob(f"{TEMPORARY}step_*"))


def kill(base: Path, words: list[str], name: str, in_save: bool, rng: random.Random) -> bool:
    """Start the run and kill it: `in_save`, as soon as it saves; else some steps after its next
    checkpoint. Whether that was within a save."""
    before = RunCheckpoints(checkpoints_of(base, name)).steps()
    process = start(base, [*words, f"run_name={name}"])
    while process.poll() is None:
        root = checkpoints_of(base, name)
        if saves(root) if in_save else RunCheckpoints(root).steps() != before:
            break
        time.sleep(0.002)
    time.sleep(rng.random() * (0.01 if in_save else 0.1))
    if process.poll() is not None:
        raise SystemExit(f"it came to its end before the last kill, see {base / 'said'}")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return saves(checkpoints_of(base, name))


def main(base: Path, trainer: str, kills: int, more: list[str]) -> None:
    base.mkdir(parents=True, exist_ok=True)
    words = [w for w in COMMON if not w.startswith(OTHERWISE)] + words_of("base", base)
    words += [f"trainer={trainer}", "save_every=2", f"max_steps={6 * kills}", "resume=auto", *more]
    whole, name, rng = f"whole-{trainer}", f"killed-{trainer}", random.Random(2)
    assert start(base, [*words, f"run_name={whole}"]).wait() == 0, base / "said"
    within = sum(kill(base, words, name, n % 2 == 0, rng) for n in range(kills))
    assert start(base, [*words, f"run_name={name}"]).wait() == 0, base / "said"
    runs = the_run(base, name), the_run(base, whole)
    gaps = [gap(a, b) for a, b in zip(*map(end_of, runs), strict=True)]
    mine, other = map(losses, runs)
    differ = sum(mine.get(step) != other[step] for step in other)
    with (base / "kills.csv").open("a") as file:
        csv.writer(file).writerow([" ".join([trainer, *more]), kills, within, *gaps, differ])


if __name__ == "__main__":
    kills, *more = sys.argv[3:] or ["20"]
    main(Path(sys.argv[1]).absolute(), sys.argv[2], int(kills), more)
