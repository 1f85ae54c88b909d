"""Kill a training run many times and compare it with one that was left alone: `python experiments/kill_resume/run.py [kills]`.

Each time the process gets SIGKILL, while it starts, while it trains and evaluates, or while it writes a checkpoint; then `resume=auto`
starts it again. At the end every loss in metrics.csv and the weights must be the same to the last bit.
"""

import csv
import filecmp
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

STEPS = 120
MOMENTS = ("starting", "training", "training", "writing a checkpoint")
START_SECONDS = 8.0  # measured: two cores, from the command to the first step
WORDS = [
    "+phase=base", "model=d2", "trainer=cpu", "data=pydocs", "model.sequence_len=64", "batch_tokens=2048", "data.rows_per_device=8",
    "data.num_workers=2", "tokenizer.vocab_size=1024", "trainer.compile=false", f"max_steps={STEPS}", "save_every=2", "eval_every=20",
    "eval_tokens=4096", "sample.prompts=[]", "progress=none",
]  # fmt: skip


def start(base: Path, name: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "nanochat.train", *WORDS, f"run_name={name}", "resume=auto"]
    return subprocess.Popen(
        command, env={**os.environ, "NANOCHAT_BASE_DIR": str(base), "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL
    )


def trained(runs: Path) -> int:
    """Rows in metrics.csv."""
    return sum(len(file.read_text().splitlines()) for file in runs.glob("*/metrics.csv"))


def wait_for(process: subprocess.Popen, event: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None and not event():
        time.sleep(0.0005)


def only(base: Path, name: str) -> Path:
    (run,) = [p.parent for p in (base / "runs" / name).glob("*/config.yaml")]
    return run


def losses(run: Path) -> dict[str, str]:
    with (run / "metrics.csv").open(newline="") as file:
        return {row["step"]: row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]}


def main() -> None:
    wanted, rng = int(sys.argv[1]) if len(sys.argv) > 1 else 20, random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        assert start(base, "whole").wait() == 0
        kills, writing, runs = 0, 0, base / "runs" / "killed"
        while kills < wanted:
            process = start(base, "killed")
            moment = MOMENTS[kills % len(MOMENTS)]
            if moment == "starting":
                time.sleep(rng.uniform(0.2, 1.0) * START_SECONDS)
            else:
                rows = trained(runs)
                wait_for(process, lambda rows=rows: trained(runs) > rows)
                if moment == "training":
                    time.sleep(rng.uniform(0.0, 1.0))
                else:
                    wait_for(process, lambda: any(runs.glob("*/checkpoints/.writing-step_*")))
            if process.poll() is not None:
                print("the run ended before it was killed often enough; raise STEPS")
                break
            process.kill()
            process.wait()
            half = any(runs.glob("*/checkpoints/.writing-step_*"))
            kills, writing = kills + 1, writing + half
            steps = sorted(p.name for p in runs.glob("*/checkpoints/step_*"))
            print(
                f"kill {kills:2}  {moment}, {trained(runs)} steps logged, last whole checkpoint {steps[-1] if steps else 'none'}"
                + (", one half written" if half else ""),
                flush=True,
            )
        assert start(base, "killed").wait() == 0
        a, b, end = only(base, "whole"), only(base, "killed"), f"checkpoints/step_{STEPS:06d}/model.safetensors"
        print(f"{kills} kills, {writing} of them with a checkpoint half written")
        print(f"losses equal to the last digit: {losses(a) == losses(b)} ({len(losses(b))} steps)")
        print(f"weights equal to the last bit: {filecmp.cmp(a / end, b / end, shallow=False)}")


if __name__ == "__main__":
    main()
